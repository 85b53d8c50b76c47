"""The setup form and its connection test, through the SDK's own machinery."""

import json
from datetime import timedelta

import pytest
import requests
from fivetran_connector_sdk_cli import configuration_command

import connector
from memory_api import (
    CREATED_AT,
    EPOCH,
    ID,
    ROWS,
    UPDATED_AT,
    URL,
    always,
    cut_to_day,
    cut_to_minute,
    envelope,
    instant,
    table,
    timestamp,
)


def test_the_form_has_every_setting_and_hides_the_key():
    form = connector.configuration_form().to_response()
    assert {field.name for field in form.fields} == set(connector.Settings.model_fields)
    assert all(field.label and field.description for field in form.fields)
    assert [field.name for field in form.fields if field.required] == ["base_url"]
    assert [field.name for field in form.fields if field.text_field == 1] == ["api_key"]
    assert [field.name for field in form.fields if field.toggle] == ["mark_deleted"]


def test_fivetran_configuration_fills_a_file_that_its_test_and_a_sync_accept(
    api, sync, tmp_path, capsys, monkeypatch, destination
):
    """Asked in the terminal, answered with Enter but for the address and the key."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where the key that encrypts lies
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    api.add(5)
    path = tmp_path / "configuration.json"
    form = connector.connector.get_configuration_form()
    answers = {"Base url: ": URL}
    code = configuration_command.run_configuration_form(
        form, str(path), False, lambda prompt: answers.get(prompt, ""), lambda prompt: "s3cr3t"
    )
    assert code == 0
    configuration = json.loads(path.read_text(encoding="utf-8"))
    assert configuration["api_key"].startswith("fivetran_encrypted:")

    assert configuration_command.run_configuration_tests(connector.connector, form, str(path)) == 0
    assert "All tests passed!" in capsys.readouterr().out
    assert set(api.keys) == {"Bearer s3cr3t"}

    assert (
        len(sync(**configuration_command.decrypt_configuration_values(configuration)).table) == 5
    )


@pytest.mark.parametrize("count", [0, 1, 2, 10, 250])
def test_an_api_as_the_readme_asks_for_passes(api, verdict, count):
    api.add(count)
    assert verdict() is None
    assert len(api.requests) <= 4


def test_an_empty_list_passes_and_the_log_says_that_nothing_was_checked(api, verdict, lines):
    assert verdict() is None
    assert len(lines("WARNING")) == 1
    api.add(3)
    assert verdict() is None
    assert lines("WARNING") == []


@pytest.mark.parametrize(
    "failure",
    [
        (429, {}, ""),
        (429, {"Retry-After": "7"}, ""),
        (503, {}, ""),
        (200, {}, "<html>"),
        requests.ReadTimeout(),
        requests.ConnectionError(),
    ],
    ids=str,
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_failure_that_passes_is_waited_for(api, verdict, clock, failure, number):
    api.add(250)
    api.answers = {number: failure}
    assert verdict() is None
    assert len(clock.waits) == 1


@pytest.mark.parametrize("page_size", ["10000", "500", "100", "2"])
@pytest.mark.parametrize("way", [{}, {"limit_max": 50}, {"page_cap": 50}], ids=str)
def test_a_page_size_above_what_the_api_gives_passes(api, verdict, page_size, way):
    api.add(250)
    for name, value in way.items():
        setattr(api, name, value)
    assert verdict(page_size=page_size) is None


@pytest.mark.parametrize(
    "way",
    [
        {"limit_max": 5},
        {"page_cap": 7},
        {"total_cap": 120},
        {"total_excess": 3},
        {"counts_all": True},
        {"hidden": set(map(str, range(1, 61)))},
        {"hidden": set(map(str, range(2, 250, 2)))},
        {"hidden": {"99", "100", "101"}},
        {"cut": cut_to_minute},
        {"cut": cut_to_day},
        {"compares_texts": True},
    ],
    ids=lambda way: "".join(way),
)
def test_an_api_with_ways_of_its_own_passes(api, verdict, way):
    api.add(250)
    for name, value in way.items():
        setattr(api, name, value)
    assert verdict() is None


def test_an_api_whose_users_have_one_time_passes(api, verdict):
    api.add(250, updated_at=EPOCH)
    assert verdict() is None


def test_a_user_that_is_added_meanwhile_is_no_fault(api, verdict):
    api.add(50)
    api.before = [None, lambda: api.add(1, updated_at=api.now) and None]
    assert verdict() is None


@pytest.mark.parametrize("count", [50, 250])
def test_it_asks_with_a_time_that_the_api_wrote(api, verdict, count):
    api.compares_texts = True
    api.stamp = lambda time: (time + timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S.12+02:00")
    api.add(count)
    assert verdict() is None
    asked = {p["updated_since"] for p in api.requests if "updated_since" in p}
    assert asked <= {user[UPDATED_AT] for user in api.users.values()}
    assert asked


@pytest.mark.parametrize("start", ["2024-01-01T00:02", "2025-01-01"])
def test_it_asks_with_the_start_date_too(api, verdict, start):
    """Without one, some APIs list only the last 30 days, say."""
    api.add(250)
    api.counts_all = True
    assert verdict(start_date=start) is None
    assert {p["updated_since"] >= start for p in api.requests} == {True}
    assert api.requests[0]["updated_since"] == start


@pytest.mark.parametrize(
    ("answer", "says", "most"),
    [
        (requests.ConnectTimeout(), "api.example.com", 3),
        (requests.exceptions.SSLError("self-signed"), "http", 3),
        (requests.ReadTimeout(), "60 s", 7),
        ((500, {}, ""), "500", 3),
        ((429, {"Retry-After": "30"}, ""), "429", 7),
        ((200, {"Content-Type": "text/html"}, "<html>"), "text/html", 3),
        ((401, {}, "no"), "api_key", 1),
        ((404, {}, "no"), "base_url", 1),
        ((200, {}, '{"users": []}'), "users", 1),
        ((200, {}, '{"data": [], "total": 7}'), "7", 1),
        ((400, {}, "full moon"), "full moon", 7),
    ],
    ids=str,
)
def test_an_api_that_gives_no_page_fails(api, verdict, answer, says, most):
    api.add(50)
    api.answers = always(answer)
    assert says in verdict()
    assert len(api.requests) <= most


def test_unusable_settings_fail_without_a_request(api, verdict):
    assert "page_size" in verdict(page_size="many")
    assert api.requests == []


def test_users_that_are_sorted_only_within_a_page_fail(api, verdict):
    api.add(30, updated_at=EPOCH + timedelta(days=1))
    api.add(30)
    page, api.sorted_users = api.page, lambda: list(api.users.values())

    def sort_page(parameters):
        answer = page(parameters)
        return answer | {ROWS: sorted(answer[ROWS], key=lambda user: user[UPDATED_AT])}

    api.page = sort_page
    assert "sort" in verdict(page_size="30")


def test_users_that_are_not_sorted_fail(api, verdict):
    api.add(50)
    api.answers = always(lambda page: page | {ROWS: page[ROWS][::-1]})
    assert "sorted" in verdict()


def test_an_updated_since_that_is_ignored_fails(api, verdict):
    for day in range(50):
        api.add(1, updated_at=EPOCH + timedelta(days=day))
    page = api.page
    api.page = lambda parameters: page(
        {n: v for n, v in parameters.items() if n != "updated_since"}
    )
    assert "before" in verdict()


def test_an_offset_that_is_ignored_fails(api, verdict):
    api.add(150)
    page = api.page
    api.page = lambda parameters: page(parameters | {"offset": 0})
    assert "offset" in verdict()


@pytest.mark.parametrize("count", [1, 50, 250])
def test_an_exclusive_updated_since_fails_and_says_where_to_ask_for_a_second_less(
    api, verdict, count
):
    api.add(count)
    api.exclusive = True
    assert "http_request" in verdict()


def test_an_api_that_reads_times_in_another_zone_than_it_writes_them_fails(api, verdict):
    """It takes a time without a zone for one of its own, 2 hours east."""
    api.stamp = lambda time: time.strftime("%Y-%m-%dT%H:%M:%S")
    api.cut = lambda since: timestamp(instant(since) + timedelta(hours=2))
    api.add(250)
    assert "zone" in verdict()


def test_pages_of_one_user_fail(api, verdict):
    api.add(50)
    api.page_cap = 1
    assert "50" in verdict()


def matching(users: list, since: str, read) -> list:
    return [user for user in users if instant(read(user)) >= instant(since)]


LEFT_OUT = {
    "rows that were never updated": lambda users, since: [
        user
        for user in matching(users, since, lambda user: user[UPDATED_AT])
        if int(user[ID]) % 3 == 0
    ],
    "by another time": lambda users, since: matching(users, since, lambda user: user[CREATED_AT]),
    "all": lambda users, since: [],
}


@pytest.mark.parametrize("page_size", ["20", "100", "1000"])
@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_filter_that_leaves_out_rows_that_the_list_has_fails(api, verdict, what, page_size):
    api.add(500)
    api.matching = lambda users, p: (
        LEFT_OUT[what](users, p["updated_since"]) if p.get("updated_since") else users
    )
    assert verdict(page_size=page_size)


def test_an_api_that_pages_before_it_filters_fails(api, verdict):
    api.add(500)
    page = api.page

    def page_then_filter(parameters):
        rows = page(parameters | {"updated_since": ""})[ROWS]
        found = api.matching(rows, parameters)
        return envelope(found, len(found))

    api.page = page_then_filter
    assert verdict()


def test_two_rows_of_one_answer_with_the_same_key_fail(api, verdict, monkeypatch):
    monkeypatch.setattr(connector, "TABLES", [table(primary_key=["job"])])
    api.add(50)
    assert "primary_key" in verdict()


def test_every_table_is_tested_and_the_one_that_fails_is_named(api, teams, verdict):
    api.add(50)
    teams.add(50)
    assert verdict() is None
    assert teams.requests
    teams.answers = always((401, {}, ""))
    assert "`team`" in verdict()
