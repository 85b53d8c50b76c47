"""Users that the API has deleted, through the SDK's runner into DuckDB."""

import pytest
from fivetran_connector_sdk import Operations
from fivetran_connector_sdk_cli import runtime
from fivetran_connector_sdk_cli.records import make_truncate

import connector
import sdk
from memory_api import EPOCH, ID, URL, timestamp

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
    with pytest.raises(connector.SyncError, match="HTTP 401"):
        sync(mark_deleted="true")
    assert destination.operations == []


def test_a_full_sync_of_an_empty_list_marks_everybody(api, tmp_path):
    api.add(3)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.delete("1", "2", "3")
    full_sync(tmp_path)
    assert sdk.deleted(tmp_path) == {"1", "2", "3"}


def test_users_deleted_during_a_full_sync_mark_nobody_else(api, tmp_path):
    api.add(100)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.before = [None, None, lambda: api.delete("1", "2", "3"), None, lambda: api.delete("90")]
    full_sync(tmp_path)
    assert sdk.deleted(tmp_path) <= {"1", "2", "3", "90"}
    assert sdk.deleted(tmp_path) >= {"90"}


@pytest.mark.parametrize("dies_at", [0, 9, 45, 90])
def test_a_full_sync_that_dies_is_finished_by_the_next_one(api, tmp_path, dies_at):
    api.add(100)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.delete("5", "50", "100")
    api.at_offset = {dies_at: (404, {}, "gone")}
    with pytest.raises(RuntimeError, match="404"):
        full_sync(tmp_path, parallel_requests="1")
    api.at_offset = {}
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    assert sdk.deleted(tmp_path) == {"5", "50", "100"}


def test_a_user_that_slips_past_a_page_answered_early_does_not_look_deleted(
    api, tmp_path, monkeypatch
):
    """The last page is answered first; then a user that the page before would have had moves."""
    api.add(27)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    asked = len(api.requests)
    early = api.page({"offset": 18, "limit": 10})
    api.at_offset = {
        9: lambda page: api.touch("15") or api.page({"offset": 9, "limit": 10}),
        18: lambda page: [early, page][len(api.requests) > asked + 3],
    }
    full_sync(tmp_path, parallel_requests="1")
    assert sdk.deleted(tmp_path) == set()


def test_where_the_sdk_can_defer_the_marks_a_sync_that_dies_leaves_none(
    api, tmp_path, monkeypatch
):
    """With an `op.truncate` as SDK 3.1 is expected to have it, over the runner of 3.0.0."""

    def truncate(table: str, *, schema=None, deferred: bool = False):
        with runtime.producer_lock:
            runtime.current().truncate(make_truncate(table, schema, deferred))

    monkeypatch.setattr(Operations, "truncate", staticmethod(truncate))
    api.add(100)
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    api.delete("5", "100")
    api.at_offset = {45: (404, {}, "gone")}
    with pytest.raises(RuntimeError, match="404"):
        full_sync(tmp_path, parallel_requests="1")
    assert sdk.deleted(tmp_path) == set()
    api.at_offset = {}
    sdk.run(connector.connector, tmp_path, CONFIGURATION)
    assert sdk.deleted(tmp_path) == {"5", "100"}


# Start date


def test_a_start_date_is_where_the_first_sync_begins_and_no_later_one(api, sync):
    api.add(300)
    start = timestamp(EPOCH.replace(minute=4))
    assert list(sync(start_date=start).table) == [str(number) for number in range(240, 301)]
    assert api.requests[0]["updated_since"] == start
    state = {"last_updated_at": timestamp(EPOCH)}
    assert len(sync(state, start_date=start).table) == 300
    assert len(sync({}, start_date="2024-01-01").all("checkpoint")) > 3


@pytest.mark.parametrize("value", ["2999-01-01", "soon", "1700000000", "<date>"])
def test_a_start_date_that_cannot_be_used_is_an_error(value):
    with pytest.raises(ValueError, match=r"`start_date` (must be an ISO 8601 date|is a place)"):
        connector.validate_configuration({"base_url": URL, "start_date": value})


def test_a_start_date_with_mark_deleted_is_an_error():
    settings = {"base_url": URL, "start_date": "2024-01-01", "mark_deleted": "true"}
    with pytest.raises(ValueError, match="`start_date` cannot be set with mark_deleted"):
        connector.validate_configuration(settings)
    connector.validate_configuration(settings | {"mark_deleted": "false"})


@pytest.mark.parametrize("value", ["yes", "1", "True", "deleted"])
def test_a_toggle_that_is_neither_true_nor_false_is_an_error(value):
    with pytest.raises(ValueError, match="`mark_deleted` must be true or false, but is"):
        connector.validate_configuration({"base_url": URL, "mark_deleted": value})


# A state that belongs to another API


def test_an_incremental_sync_that_reads_nothing_warns_that_the_state_may_be_another_apis(
    api, sync, capsys
):
    api.add(3)
    sync({"last_updated_at": "2030-01-01T00:00:00Z"})
    output = capsys.readouterr().out
    assert "No row was updated since 2030-01-01T00:00:00Z" in output
    assert "fivetran reset" in output


def test_no_such_warning_where_the_last_row_comes_again_or_the_list_is_empty(api, sync, capsys):
    sync()
    api.add(3)
    sync()
    sync()
    assert '"WARNING"' not in capsys.readouterr().out
    assert ID in api.users["1"]
