"""Full syncs: those that mark deleted users, through the SDK's runner into DuckDB, and those from a start date on."""

from contextlib import suppress

import pytest

import connector
import sdk
from memory_api import ID, ROWS, URL, envelope

CONFIGURATION = {"base_url": URL, "page_size": "10", "mark_deleted": "true"}


def full_sync(folder, **configuration):
    """Run a sync with an emptied state, as a re-sync does."""
    (folder / "files" / "state.json").unlink(missing_ok=True)
    return sdk.run(connector.connector, folder, CONFIGURATION | configuration)


def test_a_full_sync_marks_the_users_deleted_since_the_last_one(api, tmp_path):
    api.add(50)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.delete("7", "20", "50")
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    assert sdk.deleted(tmp_path) == set()  # an incremental sync cannot know
    full_sync(tmp_path)
    assert sdk.deleted(tmp_path) == {"7", "20", "50"}
    api.add(1, updated_at=api.now, **{ID: "7"})
    full_sync(tmp_path)
    assert sdk.deleted(tmp_path) == {"20", "50"}


def test_without_the_setting_nobody_is_marked(api, tmp_path):
    api.add(20)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.delete("7")
    full_sync(tmp_path, mark_deleted="false")
    full_sync(tmp_path, mark_deleted="")
    assert sdk.deleted(tmp_path) == set()


def test_a_full_sync_that_gets_no_page_marks_nobody(api, sync, destination):
    api.add(3)
    api.answers = {1: (401, {}, "")}
    with pytest.raises(connector.SyncError, match="401"):
        sync(mark_deleted="true")
    assert destination.operations == []


@pytest.mark.parametrize(
    "answer",
    [
        envelope([], 0),
        envelope([], 3),
        {ROWS: None, "total": 0},
        (200, {}, "{}"),
        (204, {}, ""),
        {"error": "out of order"},
        {"error": "out of order", ROWS: [], "total": 0},
        (500, {}, ""),
    ],
    ids=str,
)
def test_a_full_sync_that_gets_no_row_marks_nobody(api, tmp_path, clock, answer):
    api.add(3)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.answers = dict.fromkeys(range(2, 99), answer)
    with suppress(RuntimeError):
        full_sync(tmp_path)
    assert sdk.deleted(tmp_path) == set()


def test_an_incremental_sync_marks_nobody(api, sync):
    api.add(3)
    sync({"last_updated_at": "2024-01-01"}, mark_deleted="true")
    assert sync({}, mark_deleted="false").all("truncate") == []


def test_users_deleted_during_a_full_sync_mark_nobody_else(api, tmp_path):
    api.add(100)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.before = [None, None, lambda: api.delete("1", "2", "3"), None, lambda: api.delete("90")]
    full_sync(tmp_path)
    assert sdk.deleted(tmp_path) <= {"1", "2", "3", "90"}
    assert sdk.deleted(tmp_path) >= {"90"}


@pytest.mark.parametrize("dies_with", [1, 2, 6, 11])
def test_a_full_sync_that_dies_with_any_request_is_finished_by_the_next_one(
    api, tmp_path, dies_with
):
    api.add(100)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.delete("5", "50", "100")
    api.answers = {len(api.requests) + dies_with: (401, {}, "gone")}
    with pytest.raises(RuntimeError, match="401"):
        full_sync(tmp_path, parallel_requests="1")
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    assert sdk.deleted(tmp_path) == {"5", "50", "100"}


# Start date


@pytest.mark.parametrize("value", ["2999-01-01", "soon", "1700000000", "<date>"])
def test_a_start_date_that_cannot_be_used_is_an_error(value):
    with pytest.raises(ValueError, match="start_date"):
        connector.validate_configuration({"base_url": URL, "start_date": value})


def test_a_start_date_with_mark_deleted_is_an_error():
    settings = {"base_url": URL, "start_date": "2024-01-01", "mark_deleted": "true"}
    with pytest.raises(ValueError, match=r"start_date.*mark_deleted"):
        connector.validate_configuration(settings)
    connector.validate_configuration(settings | {"mark_deleted": "false"})


@pytest.mark.parametrize("value", ["ja", "deleted", "2"])
def test_a_toggle_that_is_neither_true_nor_false_is_an_error_that_names_both(value):
    with pytest.raises(ValueError, match=r"mark_deleted.*true or false"):
        connector.validate_configuration({"base_url": URL, "mark_deleted": value})
