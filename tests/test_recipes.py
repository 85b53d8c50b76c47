"""Each recipe for another API, run by the SDK against such an API: the form passes, and the tables are equal."""

import json
from base64 import b64encode
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest
import responses

import sdk
from memory_api import (
    CREATED_AT,
    EPOCH,
    ID,
    ROWS,
    UPDATED_AT,
    MemoryApi,
    instant,
    names,
    timestamp,
)

BASE = "https://api.example.com"


@contextmanager
def served(method: str, url: str, page, **headers: str):
    """Answer requests to an address with the page that a function makes of the query and the body's JSON.

    One without those headers gets HTTP 401. Gives the list of the pages' parameters.
    """
    asked = []

    def answer(request):
        if any(request.headers.get(name.replace("_", "-")) != headers[name] for name in headers):
            return 401, {}, ""
        parameters = dict(parse_qsl(urlsplit(request.url).query))
        parameters |= json.loads(request.body or "{}")
        asked.append(parameters)
        status, more_headers, body = page(parameters)
        return status, {"Content-Type": "application/json"} | more_headers, json.dumps(body)

    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.add_callback(method, url, callback=answer)
        yield asked


@pytest.fixture
def users():
    """An API in memory, not served: 250 users, of whom up to 30 share a time."""
    api = MemoryApi()
    for number in range(25):
        api.add(10, updated_at=EPOCH + timedelta(minutes=number // 3))
    return api


def page_of(api: MemoryApi, since: str | None, parameters: dict) -> dict:
    """What an API in memory answers to the offset and limit of a request."""
    offset, limit = parameters["offset"], parameters["limit"]
    page = api.page({"updated_since": since, "offset": offset, "limit": limit})
    return page | {ROWS: [dict(row) for row in page[ROWS]]}  # a caller may change them


def assert_that_tables_are_equal_after_each_sync(module, folder, configuration, api, found):
    """Run the form and three syncs, in front of two of which a user changes."""
    assert sdk.form_failure(module.connector, configuration) is None
    assert sdk.run(module.connector, folder, configuration) == len(api.users)
    assert found() == names(api.users)
    for changed in ("7", "120"):
        api.touch(changed)
        assert sdk.run(module.connector, folder, configuration) < 100
        assert found() == names(api.users)
        api.now += timedelta(minutes=10)


def test_a_token_is_kept_while_it_is_valid_and_asked_for_again_then(tmp_path, users, monkeypatch):
    module = sdk.adapted(tmp_path, "expiring_token")
    now, valid, given = 1000.0, set(), []
    monkeypatch.setattr(module, "monotonic", lambda: now)
    monkeypatch.setattr(module, "sleep", lambda seconds: None)

    def give_token(request):
        given.append(f"token {len(given)}")
        valid.add(f"Bearer {given[-1]}")
        is_down = len(given) == 1
        return (503, {}, "") if is_down else (200, {}, json.dumps({"access_token": given[-1]}))

    def answer(request):
        is_allowed = request.headers["Authorization"] in valid
        return users.answer(request) if is_allowed else (401, {}, "")

    configuration = {"base_url": f"{BASE}/users", "api_key": "s3cr3t-key"}
    with responses.RequestsMock() as mock:
        mock.add_callback(responses.GET, f"{BASE}/users", callback=answer)
        mock.add_callback(responses.POST, f"{BASE}/token", callback=give_token)
        sdk.run(module.connector, tmp_path, configuration)
        assert names(sdk.table(tmp_path)) == names(users.users)
        assert len(given) == 2  # the first attempt failed
        valid.clear()
        now += 600
        sdk.run(module.connector, tmp_path, configuration)
        assert len(given) == 3


def test_times_that_are_numbers_are_stored_as_times_and_asked_for_as_numbers(tmp_path, users):
    module = sdk.adapted(tmp_path, "epoch")

    def page(parameters):
        since = parameters.get("updated_since")
        since = since and timestamp(datetime.fromtimestamp(int(since), UTC))
        answer = page_of(users, since, parameters)
        for row in answer[ROWS]:
            row[UPDATED_AT] = int(instant(row[UPDATED_AT]).timestamp())
        return 200, {}, answer

    with served("GET", f"{BASE}/users", page):
        assert_that_tables_are_equal_after_each_sync(
            module,
            tmp_path,
            {"base_url": f"{BASE}/users"},
            users,
            lambda: names(sdk.table(tmp_path)),
        )
    times = {row["id"]: row["updated_at"] for row in sdk.table(tmp_path).values()}
    assert times["1"] == EPOCH.replace(tzinfo=None)


def test_odoo_is_asked_by_post_and_its_false_becomes_null_where_it_is_no_boolean(tmp_path, users):
    module = sdk.adapted(tmp_path, "odoo")

    def page(parameters):
        since = [time for field, _, time in parameters["domain"] if field == "write_date"]
        rows = page_of(users, since[0] if since else None, parameters)[ROWS]
        return (
            200,
            {},
            [
                {
                    "id": int(row[ID]),
                    "name": row["name"],
                    "email": False,
                    "active": row[ID] == "2",
                    "write_date": f"{instant(row[UPDATED_AT]):%Y-%m-%d %H:%M:%S}",
                }
                for row in rows
            ],
        )

    def found():
        return {str(id): name for id, name in sdk.rows(tmp_path, "id, name", "partner")}

    configuration = {"base_url": f"{BASE}/json/2", "api_key": "s3cr3t-key"}
    url = f"{BASE}/json/2/res.partner/search_read"
    with served("POST", url, page, Authorization="Bearer s3cr3t-key") as asked:
        assert_that_tables_are_equal_after_each_sync(module, tmp_path, configuration, users, found)
    assert {parameters["order"] for parameters in asked} == {"write_date asc, id asc"}
    assert set(sdk.rows(tmp_path, "email, active, id = 2", "partner")) == {
        (None, False, False),
        (None, True, True),
    }


def test_postgrest_has_basic_authentication_a_total_in_a_header_and_a_key_of_two_fields(
    tmp_path, users
):
    module = sdk.adapted(tmp_path, "postgrest")

    def page(parameters):
        since = parameters.get("updated_at", "").removeprefix("gte.")
        answer = page_of(users, since, parameters)
        rows = [
            {
                "order_id": int(row[ID]) // 100,
                "line": int(row[ID]) % 100,
                "product": row["name"],
                "updated_at": row[UPDATED_AT],
            }
            for row in answer[ROWS]
        ]
        return 206, {"Content-Range": f"0-0/{answer['total']}"}, rows

    def found():
        lines = sdk.rows(tmp_path, "order_id, line, product", "order_line")
        return {str(order * 100 + line): product for order, line, product in lines}

    configuration = {"base_url": BASE, "api_key": "reader:s3cr3t-key"}
    basic = f"Basic {b64encode(b'reader:s3cr3t-key').decode()}"
    with served("GET", f"{BASE}/order_lines", page, Authorization=basic) as asked:
        assert_that_tables_are_equal_after_each_sync(module, tmp_path, configuration, users, found)
    assert {parameters["order"] for parameters in asked} == {"updated_at,order_id,line"}
    # the first sync knows from the totals that no page follows its last one
    assert max(int(parameters["offset"]) for parameters in asked) < 250


def test_a_filter_that_leaves_out_its_own_time_is_asked_for_a_second_less(tmp_path, users):
    module = sdk.adapted(tmp_path, "exclusive_filter")
    users.exclusive = True
    for number in range(250):
        users.add(updated_at=EPOCH + timedelta(hours=1, microseconds=number))
    users.stamp = lambda time: time.isoformat(timespec="microseconds")
    users.touch("3", "4", "5")

    def page(parameters):
        answer = page_of(users, parameters.get("updated_after"), parameters)
        rows = [
            {
                "id": row[ID],
                "attributes": {
                    name: row[name] for name in ("name", "email", CREATED_AT, UPDATED_AT)
                },
            }
            for row in answer[ROWS]
        ]
        return 200, {}, {"data": rows, "meta": {"total": answer["total"]}}

    configuration = {"base_url": f"{BASE}/users", "api_key": "s3cr3t-key"}
    with served("GET", f"{BASE}/users", page, X_Api_Key="s3cr3t-key"):
        assert_that_tables_are_equal_after_each_sync(
            module, tmp_path, configuration, users, lambda: names(sdk.table(tmp_path))
        )


def test_of_two_tables_only_the_one_without_a_state_is_read_in_full(tmp_path):
    module = sdk.adapted(tmp_path, "orders")
    apis = {"orders": MemoryApi(), "customers": MemoryApi()}
    configuration = {"base_url": f"{BASE}/v1/?status=any", "mark_deleted": "true"}

    def answer_of(api):
        def answer(request):
            status, headers, body = api.answer(request)
            body = json.loads(body)
            rows = [row | {"updated_at": row[UPDATED_AT]} for row in body[ROWS]]
            return status, headers, json.dumps({"results": rows, "count": body["total"]})

        return answer

    with responses.RequestsMock() as mock:
        for path, api in apis.items():
            api.add(150)
            mock.add_callback(responses.GET, f"{BASE}/v1/{path}", callback=answer_of(api))
        sdk.run(module.connector, tmp_path, configuration)
        for api in apis.values():
            api.delete("7")
        state = sdk.state(tmp_path)
        del state["last_updated_at"]["customers"]
        (tmp_path / "files" / "state.json").write_text(json.dumps(state))
        sdk.run(module.connector, tmp_path, configuration)
    assert sdk.deleted(tmp_path, "customers") == {"7"}
    assert sdk.deleted(tmp_path, "orders") == set()
    assert all(request["status"] == "any" for api in apis.values() for request in api.requests)
