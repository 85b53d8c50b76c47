"""What one sync writes and stores: rows, values by the type of their column, the state, deleted rows, several tables."""

import ast
import base64
import importlib.util
import json
import random
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import requests

import connector
import sdk
from connector import SyncError
from memory_api import (
    CREATED_AT,
    EPOCH,
    ID,
    ROWS,
    UPDATED_AT,
    URL,
    always,
    envelope,
    names,
    table,
    timestamp,
)


def test_the_first_sync_asks_for_all_rows_and_is_done_in_two_requests(api, sync):
    api.add(3)
    sync()
    asked = {"order_by": UPDATED_AT, "order_type": "asc", "limit": "100", "offset": "0"}
    assert api.requests[0] == asked
    assert len(api.requests) <= 2


def test_the_next_sync_reads_only_the_edge_and_what_changed(api, sync, destination):
    api.add(250)
    sync()
    api.touch("7")
    api.add(1, updated_at=api.now)
    destination.operations.clear()
    assert [user[ID] for user in sync().all("upsert")] == ["250", "7", "251"]


@pytest.mark.parametrize("parallel", ["1", "8"])
@pytest.mark.parametrize("ties", [1, 40])
def test_a_quiet_sync_takes_at_most_two_requests_and_no_warning(
    api, sync, destination, lines, parallel, ties
):
    for second in range(240 // ties):
        api.add(ties, updated_at=EPOCH + timedelta(seconds=second))
    sync(parallel_requests=parallel)
    asked = len(api.requests)
    sync(parallel_requests=parallel)
    assert len(api.requests) <= asked + 2
    assert lines("WARNING") == destination.warnings == []


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 198, 199, 200, 201, 1000])
def test_no_count_of_users_falls_between_two_pages(api, sync, count):
    api.add(count)
    assert list(sync().table) == list(api.users)


@pytest.mark.parametrize("state", [{}, {"last_updated_at": "2024-01-15T10:30:00Z"}])
def test_an_empty_list_is_no_error_and_leaves_the_state_as_it_was(api, sync, destination, state):
    destination.state = state
    assert sync().table == {}
    assert destination.state == state


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
    asked = len(api.requests)
    sync(lookback_seconds="86400")
    assert api.requests[asked]["updated_since"] == "2024-01-15T10:30:00.1234567+02:00"


@pytest.mark.parametrize(
    "state",
    [
        {"last_updated_at": None},
        {"last_updated_at": 1700000000},
        {"last_updated_at": "yesterday"},
        {"last_updated_at": {"time": "2024-01-01"}},
        {"last_updated_at": {"user": 1700000000}},
        {"last_updated_at": ["2024-01-01"]},
        {"cursor": "2024-01-01T00:00:00Z"},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("has_two", [False, True])
def test_a_state_that_this_connector_did_not_write_is_an_error_and_no_full_sync(
    request, api, sync, state, has_two
):
    if has_two:
        request.getfixturevalue("teams")
    with pytest.raises(ValueError, match=r"last_updated_at.*fivetran reset"):
        sync(state)
    assert api.requests == []


# Values by the type of their column


def test_a_field_the_schema_does_not_name_passes_through(api, sync):
    fields = {"nickname": "Jo", "tags": ["a", "b"], "settings": {"theme": "dark"}, "age": 41}
    api.add(1, **fields)
    assert sync().table["1"].items() >= fields.items()


NULL = "null, with one warning"
LARGE = {"type": "DECIMAL", "precision": 25, "scale": 5}
MONEY = {"type": "DECIMAL", "precision": 5, "scale": 2}
VALUES = [
    ("STRING", {"city": "Zürich"}, '{"city": "Zürich"}'),
    ("STRING", ["a", 1], '["a", 1]'),
    ("STRING", True, "true"),
    ("STRING", 12, "12"),
    ("STRING", "text", "text"),
    ("STRING", None, None),
    ("STRING", "", ""),
    ("XML", "<a/>", "<a/>"),
    ("JSON", {"a": [1]}, {"a": [1]}),
    *[("BOOLEAN", value, True) for value in (True, 1, "yes", "true")],
    *[("BOOLEAN", value, False) for value in (False, 0, "no", "false")],
    ("BOOLEAN", "perhaps", NULL),
    ("SHORT", 2**15, NULL),
    ("INT", -(2**31), -(2**31)),
    ("INT", "12", 12),
    ("INT", 2**40, NULL),
    ("INT", "many", NULL),
    ("LONG", 2**40, 2**40),
    ("LONG", 2**63, NULL),
    ("FLOAT", "1.5", 1.5),
    *[(kind, value, NULL) for kind in ("FLOAT", "DOUBLE") for value in (1e999, -1e999, "NaN")],
    ("DOUBLE", float("nan"), NULL),
    (LARGE, 12345679.91, Decimal("12345679.91")),
    (LARGE, "12345678901234567.89", Decimal("12345678901234567.89")),
    (LARGE, 7, Decimal(7)),
    *[(LARGE, value, NULL) for value in ("NaN", 1e999, "much")],
    (MONEY, 1.239, Decimal("1.239")),  # the SDK rounds it
    (MONEY, "-999.991", Decimal("-999.991")),
    (MONEY, 1000, NULL),
    (MONEY, 999.999, NULL),
    ("UTC_DATETIME", "2024-01-15T10:30:00+02:00", datetime(2024, 1, 15, 8, 30, tzinfo=UTC)),
    ("NAIVE_DATETIME", "2024-01-15T23:30:00-05:00", datetime(2024, 1, 15, 23, 30)),
    ("NAIVE_DATETIME", "2024-01-15 23:30:00", datetime(2024, 1, 15, 23, 30)),
    ("NAIVE_DATE", "2024-01-15T23:30:00-05:00", datetime(2024, 1, 15)),
    ("NAIVE_DATE", "2024-01-15", datetime(2024, 1, 15)),
    *[(kind, "soon", NULL) for kind in ("UTC_DATETIME", "NAIVE_DATETIME", "NAIVE_DATE")],
    ("BINARY", base64.b64encode(b"hi!?").decode(), b"hi!?"),
    ("BINARY", "no base64!", NULL),
    ("BINARY", "abc", NULL),
]


def is_date(column: dict | str) -> bool:
    return str(column).startswith("NAIVE")


@pytest.mark.parametrize(("column", "value", "stored"), VALUES, ids=str)
def test_a_value_is_read_by_the_type_of_its_column(
    api, sync, lines, monkeypatch, column, value, stored
):
    monkeypatch.setattr(connector, "TABLES", [table(columns={"x": column})])
    api.add(3, x=value)
    came = sync().table["1"]["x"]
    warnings = lines("WARNING")
    if stored is NULL:
        assert came is None
        assert [("x" in warning.replace(".", " ").split()) for warning in warnings] == [True]
        return
    assert warnings == []
    if is_date(column):
        assert (len(str(came)) == 10) == (column == "NAIVE_DATE")
        came = datetime.fromisoformat(str(came))
    elif isinstance(stored, Decimal):
        came = Decimal(came)
    assert came == stored
    assert isinstance(came, type(stored))


def test_the_sdk_takes_every_value_that_has_been_read(api, tmp_path, monkeypatch):
    columns = {f"x{number}": column for number, (column, _, _) in enumerate(VALUES)}
    monkeypatch.setattr(connector, "TABLES", [table(columns=columns)])
    api.add(2, **{f"x{number}": value for number, (_, value, _) in enumerate(VALUES)})
    assert sdk.run(connector.connector, tmp_path, {"base_url": URL}) == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [("INT", "x"), ("INT", 2**40), ("DOUBLE", "NaN"), ("BINARY", "#"), ("UTC_DATETIME", "x")],
    ids=str,
)
def test_a_value_that_cannot_be_read_is_an_error_where_it_is_part_of_the_key(
    api, sync, monkeypatch, column, value
):
    keyed = table(primary_key=[ID, "x"], columns={"x": column})
    monkeypatch.setattr(connector, "TABLES", [keyed])
    api.add(3, x=value)
    with pytest.raises(SyncError, match=r"offset 0\b.*\brow 0\b.*\bx\b"):
        sync()


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_time_is_null_without_a_warning(api, sync, lines, value):
    api.add(250, **{CREATED_AT: value})
    assert {row[CREATED_AT] for row in sync().table.values()} == {None}
    assert lines("WARNING") == []


@pytest.mark.parametrize(
    "value",
    [
        "0000-00-00 00:00:00",
        "N/A",
        1700000000,
        1.5,
        True,
        [2024],
        "9999-12-31T23:59:59-05:00",
        "0001-01-01T00:00:00+02:00",
        "2024-02-30",
        "20240115T103000Z",
        "2024-W03-1",
    ],
    ids=str,
)
def test_a_time_that_cannot_be_read_is_null_with_one_warning_a_sync(api, sync, lines, value):
    api.add(250, **{CREATED_AT: value})
    for _ in range(2):
        rows = sync({}, parallel_requests="4").table.values()
        assert {row[CREATED_AT] for row in rows} == {None}
        (warning,) = lines("WARNING")
        assert CREATED_AT in warning


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-01-15T10:30:00Z", (2024, 1, 15, 10, 30)),
        ("2024-01-15T10:30:00", (2024, 1, 15, 10, 30)),
        ("2024-01-15 10:30:00", (2024, 1, 15, 10, 30)),
        ("2024-01-15", (2024, 1, 15)),
        ("2024-01-15T10:30Z", (2024, 1, 15, 10, 30)),
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
    row = sync().table["1"]
    assert row[UPDATED_AT] == row[CREATED_AT] == datetime(*time, tzinfo=UTC)


# The section for the API


def with_tables(folder, tables: str):
    """Import a copy of connector.py that has other TABLES."""
    code = (sdk.PROJECT / "connector.py").read_text(encoding="utf-8")
    lines = code.splitlines()
    (node,) = (node for node in ast.parse(code).body if lines[node.lineno - 1][:6] == "TABLES")
    lines[node.lineno - 1 : node.end_lineno] = [f"TABLES = [{tables}]"]
    path = folder / "connector.py"
    path.write_text("\n".join(lines), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("adapted_connector", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLANET = 'Table("planet", primary_key={key}, updated_at="changed", columns={columns})'


def test_the_schema_has_every_table_with_its_key_and_typed_columns(tmp_path):
    columns = {"number": "INT", "star": "STRING", "mass": MONEY, "changed": "UTC_DATETIME"}
    planets = PLANET.format(key=["number", "star"], columns=columns)
    stars = planets.replace('"planet"', '"star"', 1)
    table = {"primary_key": ["number", "star"], "columns": columns}
    assert with_tables(tmp_path, f"{planets}, {stars}").schema({}) == [
        {"table": "planet"} | table,
        {"table": "star"} | table,
    ]


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (PLANET.format(key=["id"], columns={"moons": "NUMBER"}), ["planet", "moons", "NUMBER"]),
        (
            PLANET.format(key=["id"], columns={"moons": {"type": "NUMBER"}}),
            ["planet", "moons", "NUMBER"],
        ),
        (PLANET.format(key=[], columns={}), ["planet", "primary_key"]),
        (", ".join(2 * [PLANET.format(key=["id"], columns={})]), ["planet"]),
    ],
    ids=["unknown type", "unknown type in an object", "no key", "two of one name"],
)
def test_a_table_that_cannot_be_is_a_value_error_at_import_that_says_which(tmp_path, tables, says):
    with pytest.raises(ValueError, match="planet") as caught:
        with_tables(tmp_path, tables)
    assert [word for word in says if word not in str(caught.value)] == []


def test_an_api_of_another_shape_is_read(api, sync, monkeypatch):
    """Asked by POST, with a key in a header of its own; bare arrays, and the total in a header."""
    asked, answer = [], api.answer

    def http_request(table, url, key, page):
        asked.append(page.since)
        body = {"updated_since": page.since.text, "limit": page.limit, "offset": page.offset}
        return requests.Request("POST", url, headers={"X-Key": key}, json=body)

    def bare_answer(request):
        status, headers, body = answer(request)
        assert (request.method, request.headers["X-Key"]) == ("POST", "s3cr3t")
        body = json.loads(body)
        return status, headers | {"X-Total": str(body["total"])}, json.dumps(body[ROWS])

    api.answer = bare_answer
    monkeypatch.setattr(connector, "http_request", http_request)
    monkeypatch.setattr(connector, "rows_of", lambda body: body)
    monkeypatch.setattr(connector, "total_of", lambda body, headers: headers["X-Total"])
    api.add(250)
    assert set(sync(api_key="s3cr3t").table) == set(api.users)
    assert asked[0].text == ""
    assert asked[-1].text == timestamp(asked[-1]) == api.updated_at("250")
    assert asked[-1].utcoffset() == timedelta(0)


@pytest.mark.parametrize("key", [[ID, "part"], ["part", ID]])
def test_a_key_of_two_fields_tells_rows_apart(api, sync, monkeypatch, destination, key):
    monkeypatch.setattr(connector, "TABLES", [table(primary_key=key, columns={"part": "INT"})])
    for number in range(300):
        for part in (1, 2):
            api.add(updated_at=EPOCH, part=part, **{ID: f"{number:03} {part}"})
    page = api.page
    api.page = lambda p: (
        (answer := page(p)) | {ROWS: [row | {ID: row[ID].split()[0]} for row in answer[ROWS]]}
    )
    sync(parallel_requests="4")
    assert len(destination.table) == 600
    assert destination.warnings == []


def test_rows_of_one_answer_with_the_same_key_are_a_warning_at_once(
    api, sync, monkeypatch, destination
):
    monkeypatch.setattr(connector, "TABLES", [table(primary_key=["job"])])
    api.add(250)
    api.answers = {2: (401, {}, "gone")}
    with pytest.raises(SyncError, match="401"):
        sync()
    (warning,) = destination.warnings
    assert "primary_key" in warning


# Several tables


def test_each_table_has_its_own_list_and_its_own_place_in_the_state(api, teams, sync, destination):
    api.add(120)
    teams.add(3, updated_at=EPOCH)
    api.before = [None, lambda: teams.add(1, updated_at=EPOCH + timedelta(days=1)) and None]
    sync()
    state = {"user": api.updated_at("120"), "team": teams.updated_at("4")}
    assert destination.state == {"last_updated_at": state}
    assert [len(destination.tables[name]) for name in ("user", "team")] == [120, 4]
    asked = len(api.requests), len(teams.requests)
    teams.touch("2")
    sync()
    assert names(destination.tables["team"]) == names(teams.users)
    assert api.requests[asked[0]]["updated_since"] == state["user"]
    assert teams.requests[asked[1]]["updated_since"] == state["team"]


@pytest.mark.parametrize("failing", [["user"], ["team"], ["user", "team"]])
def test_a_table_that_fails_is_named_and_does_not_keep_the_others(
    api, teams, sync, destination, failing
):
    lists = {"user": api, "team": teams}
    for one in lists.values():
        one.add(150)
    for name in failing:
        lists[name].answers = {2: (401, {}, "gone")}
    with pytest.raises(SyncError, match="401") as caught:
        sync()
    assert [name for name in lists if f"`{name}`" in str(caught.value)] == failing
    place = {
        name: one.updated_at("100" if name in failing else "150") for name, one in lists.items()
    }
    assert destination.state == {"last_updated_at": place}
    sync()
    assert [len(destination.tables[name]) for name in lists] == [150, 150]


def test_an_unusable_answer_of_one_table_does_not_keep_the_others(api, teams, sync, destination):
    teams.add(3)
    for answer in ({"users": 1}, {ROWS: ["x"]}, (200, {}, "<html>")):
        api.answers = always(answer)
        with pytest.raises(SyncError, match="`user`"):
            sync({})
        assert set(destination.tables["team"]) == set(teams.users)


def test_the_text_of_a_state_is_the_first_tables_and_a_warning_says_so(
    api, teams, sync, destination
):
    api.add(120)
    teams.add(3)
    sync({"last_updated_at": api.updated_at("100")})
    assert len(destination.table) == 21
    assert len(destination.tables["team"]) == 3
    (warning,) = destination.warnings
    assert "`user`" in warning
    sync()
    assert len(destination.warnings) == 1


def test_the_state_of_several_tables_is_that_of_one_if_it_names_it(api, sync, destination):
    api.add(120)
    places = {"user": api.updated_at("100"), "team": "2024-01-01"}
    assert len(sync({"last_updated_at": places}).table) == 21
    assert destination.state["last_updated_at"] in (
        api.updated_at("120"),
        {"user": api.updated_at("120"), "team": "2024-01-01"},
    )


def test_a_path_goes_behind_that_of_base_url_and_in_front_of_its_query(api, teams, sync):
    urls, answer = [], teams.answer
    teams.answer = lambda request: urls.append(request.url) or answer(request)
    for base_url in (f"{URL}/?tenant=a", f"{URL}?tenant=a"):
        sync(base_url=base_url)
        assert urls[-1].startswith(f"{URL}/teams?tenant=a&")


# Deleted rows

MARKING = {"base_url": URL, "page_size": "10", "mark_deleted": "true"}


def full_sync(folder, **configuration):
    """Run a sync with an emptied state, as a re-sync does."""
    (folder / "files" / "state.json").unlink(missing_ok=True)
    return sdk.run(connector.connector, folder, MARKING | configuration)


@pytest.mark.slow
def test_a_full_sync_marks_the_users_deleted_since_the_last_one(api, tmp_path):
    api.add(50)
    sdk.run(connector.connector, tmp_path, MARKING)
    api.delete("7", "20", "50")
    sdk.run(connector.connector, tmp_path, MARKING)
    assert sdk.deleted(tmp_path) == set()  # an incremental sync cannot know
    full_sync(tmp_path)
    assert sdk.deleted(tmp_path) == {"7", "20", "50"}
    api.add(1, updated_at=api.now, **{ID: "7"})
    full_sync(tmp_path)
    assert sdk.deleted(tmp_path) == {"20", "50"}


@pytest.fixture
def marked(api, sync, destination):
    """The ids of the users that a sync with these settings marks, which are deleted after one without."""

    def run(*ids, **settings):
        sync({})
        api.delete(*ids)
        with suppress(SyncError):
            sync(**({"state": {}, "page_size": "10", "mark_deleted": "true"} | settings))
        return destination.deleted

    return run


def test_without_the_setting_and_in_an_incremental_sync_nobody_is_marked(api, marked):
    api.add(20)
    assert marked("7", mark_deleted="false") == set()
    assert marked("8", mark_deleted="") == set()
    assert marked("9", state=None) == set()


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
        (401, {}, ""),
    ],
    ids=str,
)
def test_a_full_sync_that_gets_no_row_marks_nobody(api, sync, destination, answer):
    api.add(3)
    sync()
    api.answers = dict.fromkeys(range(len(api.requests) + 1, 99), answer)
    with suppress(SyncError):
        sync({}, mark_deleted="true")
    assert destination.all("truncate") == []


def test_users_deleted_during_a_full_sync_mark_nobody_else(api, marked, sync):
    api.add(100)
    sync()
    api.before = [None, None, lambda: api.delete("1", "2", "3"), None, lambda: api.delete("90")]
    assert {"90"} <= marked() <= {"1", "2", "3", "90"}


@pytest.mark.parametrize("seed", range(6))
def test_a_full_sync_reads_on_behind_rows_that_change_while_it_runs(api, marked, sync, seed):
    """The API returns fewer rows than asked for, now and then, so that a short page is not the end."""
    api.add(60)
    sync()
    lengths = random.Random(seed)
    api.page_lengths = lambda: lengths.choice((3, 7, 10))
    ids = iter(range(1, 61))
    api.before = [lambda: api.touch(*(str(next(ids)) for _ in range(3)))] * 20
    assert marked() & set(api.users) == set()


@pytest.mark.parametrize("dies_with", [1, 2, 6, 11])
def test_a_full_sync_that_dies_with_any_request_is_finished_by_the_next_one(
    api, marked, sync, destination, dies_with
):
    api.add(100)
    sync()
    api.delete("5", "50", "100")
    api.answers = {len(api.requests) + dies_with: (401, {}, "gone")}
    with pytest.raises(SyncError, match="401"):
        sync({}, page_size="10", mark_deleted="true")
    sync({} if dies_with == 1 else None, page_size="10", mark_deleted="true")
    assert destination.deleted == {"5", "50", "100"}


def test_only_the_tables_that_are_read_from_their_start_are_marked(api, teams, sync, destination):
    api.add(3)
    teams.add(3)
    place = {"last_updated_at": {"user": api.updated_at("3")}}
    assert sync(place, mark_deleted="true").all("truncate") == ["team"]


@pytest.mark.parametrize("column", [{}, {"gone": "BOOLEAN"}])
def test_a_row_whose_field_says_so_is_deleted_until_it_says_otherwise(
    api, sync, destination, monkeypatch, column
):
    monkeypatch.setattr(connector, "TABLES", [table(deleted="gone", columns=column)])
    api.add(5, gone=False)
    api.users["2"]["gone"] = True
    assert set(sync().table) == {"1", "3", "4", "5"}
    assert destination.all("delete") == [{ID: "2"}]
    for id, gone in (("2", "no" if column else False), ("3", "yes" if column else True)):
        api.users[id]["gone"] = gone
        api.touch(id)
    assert "2" in sync().table
    assert destination.deleted == {"3"}


def test_the_sdk_marks_what_a_field_says_is_deleted(api, tmp_path, monkeypatch):
    keyed = table(deleted="gone", primary_key=[ID, "part"], columns={"part": "INT"})
    monkeypatch.setattr(connector, "TABLES", [keyed])
    api.add(5, gone=False, part=1)
    sdk.run(connector.connector, tmp_path, {"base_url": URL})
    api.users["3"]["gone"] = True
    api.touch("3")
    sdk.run(connector.connector, tmp_path, {"base_url": URL})
    assert sdk.deleted(tmp_path) == {"3"}


# What it says while it runs


@pytest.fixture
def slow_destination(destination, clock, monkeypatch):
    """Let each page take some seconds to write."""

    def slow(seconds: int):
        checkpoint = destination.checkpoint
        monkeypatch.setattr(
            destination, "checkpoint", lambda state: clock.sleep(seconds) or checkpoint(state)
        )

    return slow


def test_the_log_says_what_will_be_read_and_what_was_done(api, sync, lines):
    api.add(250)
    state = sync().state
    first, last = lines()
    assert [word in first for word in ("all", "api.example.com", "user")] == [True] * 3
    assert "250" in last
    sync()
    assert state["last_updated_at"] in lines()[0]


def numbers(line: str) -> list:
    return [int(number) for number in re.findall(r"\d+", line.replace(",", ""))]


@pytest.mark.parametrize("total", ["as it is", None, 0, 2**62])
def test_about_every_ten_seconds_the_log_says_how_far_the_sync_is(
    api, sync, clock, slow_destination, lines, total
):
    api.add(1000)
    api.total = lambda found, rows: found if total == "as it is" else total
    slow_destination(4)
    sync()
    _, *progress, last = lines()
    assert len(progress) == 3
    for line in progress:
        rows = numbers(line)[0]
        assert timestamp(EPOCH + timedelta(seconds=rows)) in line
        left = [number for number in numbers(line)[1:] if abs(number - (1000 - rows)) < 3]
        assert bool(left) == (total == "as it is")
    assert f"{clock.now:.0f} s" in last


def test_waits_and_retries_are_counted(api, sync, lines):
    api.add(3)
    api.answers = {1: (503, {"Retry-After": "20"}, "")}
    sync()
    assert {1, 3, 20} <= set(numbers(lines()[-1]))  # retries, rows, seconds of waiting


def test_a_long_sync_says_no_line_per_page(api, sync, lines):
    api.add(2000)
    sync(page_size="10")
    assert len(lines("")) == 2


@pytest.mark.parametrize("state", [{}, {"last_updated_at": "2030-01-01T00:00:00Z"}])
def test_a_sync_that_brings_no_row_warns_that_api_key_base_url_or_the_state_may_be_wrong(
    api, sync, destination, state
):
    api.add(3 if state else 0)
    sync(state)
    (warning,) = destination.warnings
    words = ("api_key", "base_url", "fivetran reset")
    assert [word for word in words if word not in warning] == []
