"""What the README says of adapting the connector: its recipes, and the line for a filter that leaves out its own time."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import responses

import sdk
from memory_api import EPOCH, ROWS, UPDATED_AT, URL, MemoryApi, instant, names


def test_the_recipe_for_a_deletion_flag(api, tmp_path):
    connector = sdk.adapted(tmp_path, "deletion_flag")
    api.add(5, is_deleted=False)
    sdk.run(connector, tmp_path, {"base_url": URL})
    api.users["3"]["is_deleted"] = True
    api.touch("3")
    sdk.run(connector, tmp_path, {"base_url": URL})
    assert sdk.deleted(tmp_path) == {"3"}


def test_the_recipe_for_a_token_that_expires(api, tmp_path):
    connector = sdk.adapted(tmp_path, "token")
    api.add(250)
    given = []

    def give_token(request):
        given.append(f"token {len(given)}")
        return 200, {}, json.dumps({"access_token": given[-1]})

    answer = api.answer
    api.answer = lambda request: (
        answer(request)
        if request.headers.get("Authorization", "").removeprefix("Bearer ") in given
        else (401, {}, "")
    )
    with responses.RequestsMock() as mock:
        mock.add_callback(responses.GET, URL, callback=lambda request: api.answer(request))
        mock.add_callback(responses.POST, "https://api.example.com/token", callback=give_token)
        sdk.run(connector, tmp_path, {"base_url": URL, "api_key": "s3cr3t"})
    assert names(sdk.table(tmp_path)) == names(api.users)
    assert 1 <= len(given) <= 8


def test_the_recipe_for_epoch_numbers(api, tmp_path):
    connector = sdk.adapted(tmp_path, "epoch")
    api.add(250)
    page = api.page

    def epoch_page(parameters):
        if since := parameters.get("updated_since"):
            time = datetime.fromtimestamp(int(since), UTC)
            parameters = parameters | {"updated_since": time.strftime("%Y-%m-%dT%H:%M:%SZ")}
        answer = page(parameters)
        return answer | {
            ROWS: [
                row | {UPDATED_AT: int(instant(row[UPDATED_AT]).timestamp())}
                for row in answer[ROWS]
            ]
        }

    api.page = epoch_page
    assert connector.run_test("test_connection", {"base_url": URL}).failure is None
    for _ in range(2):
        api.touch("7")
        sdk.run(connector, tmp_path, {"base_url": URL})
        assert names(sdk.table(tmp_path)) == names(api.users)
        api.now += timedelta(seconds=600)
    # what the state says is asked for again: up to now before the last change, then that alone
    assert [sdk.run(connector, tmp_path, {"base_url": URL}) for _ in range(2)] == [2, 1]


def test_the_recipe_for_several_lists_marks_deleted_rows_of_the_list_that_is_read_in_full(
    tmp_path,
):
    connector = sdk.adapted(tmp_path, "several_lists")
    apis = {"users": MemoryApi(), "teams": MemoryApi()}
    configuration = {"base_url": "https://api.example.com/v1/?status=any", "mark_deleted": "true"}
    with responses.RequestsMock() as mock:
        for path, api in apis.items():
            api.add(150)
            mock.add_callback(
                responses.GET, f"https://api.example.com/v1/{path}", callback=api.answer
            )
        sdk.run(connector, tmp_path, configuration)
        for api in apis.values():
            api.delete("7")
        state = {"user": sdk.state(tmp_path)["user"]}
        (tmp_path / "files" / "state.json").write_text(json.dumps(state))
        sdk.run(connector, tmp_path, configuration)
    assert sdk.deleted(tmp_path, "team") == {"7"}
    assert sdk.deleted(tmp_path, "user") == set()
    assert all(request["status"] == "any" for api in apis.values() for request in api.requests)


@pytest.fixture
def exclusive(tmp_path):
    """The connector with the line of the README for APIs whose filter leaves out its own time."""
    readme = (sdk.PROJECT / "README.md").read_text(encoding="utf-8")
    line = re.search(r'^[ `]*("updated_since": request\.since.*?)`*$', readme, re.MULTILINE)[1]
    code = (sdk.PROJECT / "connector.py").read_text(encoding="utf-8")
    shipped = re.search(r'"updated_since": request\.since.*', code)[0]
    return sdk.adapted(tmp_path, replacements={shipped: line})


def test_the_line_for_a_filter_that_leaves_out_its_own_time_loses_nothing(
    exclusive, api, tmp_path
):
    configuration = {"base_url": URL, "parallel_requests": "1"}
    api.exclusive = True
    api.stamp = lambda time: time.isoformat(timespec="microseconds")
    api.add(250, updated_at=EPOCH)
    for number in range(250):
        api.add(updated_at=EPOCH + timedelta(seconds=2, microseconds=number))
    api.add(500)
    assert exclusive.run_test("test_connection", configuration).failure is None
    api.requests.clear()
    ids = iter(api.users)
    api.before = [lambda: api.touch(next(ids), next(ids)) for _ in range(10)]
    sdk.run(exclusive, tmp_path, configuration)
    assert len(api.requests) <= 16  # for ten pages
    sdk.run(exclusive, tmp_path, configuration)
    assert names(sdk.table(tmp_path)) == names(api.users)
