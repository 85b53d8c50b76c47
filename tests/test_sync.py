"""What a sync does when nothing goes wrong and nothing moves."""

from datetime import UTC, datetime, timedelta

import pytest

import connector
from memory_api import CREATED_AT, EPOCH, ID, UPDATED_AT, timestamp


def test_the_schema_is_one_table_with_its_key_and_typed_columns():
    texts = dict.fromkeys(("id", "name", "email", "address", "company", "job"), "STRING")
    times = dict.fromkeys(("updatedAt", "createdAt"), "UTC_DATETIME")
    assert connector.schema({}) == [
        {"table": "user", "primary_key": ["id"], "columns": texts | times}
    ]


def test_the_first_sync_asks_without_updated_since(api, sync):
    api.add(3)
    sync()
    assert api.requests == [
        {"order_by": UPDATED_AT, "order_type": "asc", "limit": "100", "offset": "0"}
    ]


def test_the_next_sync_reads_only_the_edge_and_what_changed(api, sync, destination):
    api.add(250)
    sync()
    api.touch("7")
    api.add(1, updated_at=api.now)
    destination.operations.clear()
    assert [user[ID] for user in sync().all("upsert")] == ["250", "7", "251"]


def test_an_unchanged_second_sync_is_one_request(api, sync):
    api.add(250)
    sync()
    asked = len(api.requests)
    sync()
    assert len(api.requests) == asked + 1


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 198, 199, 200, 201, 1000])
def test_no_count_of_users_falls_between_two_pages(api, sync, count):
    api.add(count)
    assert list(sync().table) == list(api.users)


def test_an_empty_list_is_no_error_and_leaves_the_state_as_it_was(api, sync):
    assert sync().table == {}
    assert sync().state == {}
    assert sync({"last_updated_at": "2024-01-15T10:30:00Z"}).state in (
        {},
        {"last_updated_at": "2024-01-15T10:30:00Z"},
    )


def test_every_page_is_checkpointed_after_its_rows_and_never_ahead_of_them(api, sync):
    api.add(250)
    delivered = []
    kinds = []
    for kind, value in sync().operations:
        if kind == "upsert":
            delivered.append(value[UPDATED_AT])
        else:
            assert value == {"last_updated_at": timestamp(delivered[-1])}
        kinds.append(kind[0])
    assert "".join(kinds).count("c") == 3
    assert kinds[-1] == "c"


def test_the_state_is_one_text_as_the_api_wrote_it_and_is_what_the_next_sync_asks_with(api, sync):
    api.add(1, **{UPDATED_AT: "2024-01-15T10:30:00.1234567+02:00"})
    assert sync().state == {"last_updated_at": "2024-01-15T10:30:00.1234567+02:00"}
    sync(lookback_seconds="86400")
    assert api.requests[1]["updated_since"] == "2024-01-15T10:30:00.1234567+02:00"


@pytest.mark.parametrize("lookback", ["10", "", "3600"])
def test_the_state_stays_lookback_seconds_behind_the_start_and_the_rest_is_read_again(
    api, sync, destination, lookback
):
    api.add(250)
    for age in (9, -9):
        settled = api.now - timedelta(seconds=int(lookback or 300) + age)
        api.add(2, updated_at=settled)
    for _ in range(2):
        destination.operations.clear()
        assert sync(lookback_seconds=lookback).state == {"last_updated_at": api.updated_at("252")}
    assert [row[ID] for row in destination.all("upsert")] == ["251", "252", "253", "254"]


@pytest.mark.parametrize("cap", [2, 7, 50, 99])
def test_an_api_that_returns_fewer_users_than_asked_is_followed(api, sync, cap):
    api.add(120)
    api.page_cap = cap
    assert list(sync().table) == list(api.users)


def test_a_field_the_schema_does_not_name_passes_through(api, sync):
    api.add(1, nickname="Jo", tags=["a", "b"], settings={"theme": "dark"}, age=41)
    row = sync().table["1"]
    assert (row["nickname"], row["tags"], row["settings"], row["age"]) == (
        "Jo",
        ["a", "b"],
        {"theme": "dark"},
        41,
    )


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"city": "Zürich"}, '{"city": "Zürich"}'),
        (["a", 1], '["a", 1]'),
        (True, "true"),
        (12, "12"),
        ("text", "text"),
        (None, None),
    ],
)
def test_what_is_no_text_in_a_string_column_is_stored_as_json(api, sync, value, stored):
    api.add(1, name=value)
    assert sync().table["1"]["name"] == stored


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-01-15T10:30:00Z", (2024, 1, 15, 10, 30)),
        ("2024-01-15T10:30:00", (2024, 1, 15, 10, 30)),
        ("2024-01-15 10:30:00", (2024, 1, 15, 10, 30)),
        ("2024-01-15", (2024, 1, 15)),
        ("2024-01-15T10:30Z", (2024, 1, 15, 10, 30)),
        ("2024-01-15T10:30:00+02:00", (2024, 1, 15, 8, 30)),
        ("2024-01-15T10:30:00-0330", (2024, 1, 15, 14, 0)),
        ("2024-01-15T10:30:00+02", (2024, 1, 15, 8, 30)),
        ("2024-01-15T10:30:00.5Z", (2024, 1, 15, 10, 30, 0, 500000)),
        ("2024-01-15T10:30:00,25Z", (2024, 1, 15, 10, 30, 0, 250000)),
        ("2024-01-15T10:30:00.1234567+02:00", (2024, 1, 15, 8, 30, 0, 123456)),
        ("2024-01-15T10:30:00.123456789012Z", (2024, 1, 15, 10, 30, 0, 123456)),
        ("0001-01-01T00:00:00Z", (1, 1, 1)),
    ],
)
def test_a_time_is_read_in_every_form_an_api_may_use(api, sync, text, time):
    api.add(1, **{UPDATED_AT: text, CREATED_AT: text})
    api.now = EPOCH + timedelta(days=30)
    row = sync().table["1"]
    assert row[UPDATED_AT] == row[CREATED_AT] == datetime(*time, tzinfo=UTC)
