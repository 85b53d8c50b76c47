"""The setup form and its connection test, through the SDK's own machinery."""

import json
import socket
from datetime import timedelta

import pytest
import requests
from fivetran_connector_sdk import Logging
from fivetran_connector_sdk_cli import configuration_command

import connector
import http_server
from memory_api import EPOCH, ROWS, UPDATED_AT, URL, MemoryApi


def answer_all(answer) -> dict:
    return dict.fromkeys(range(1, 100), answer)


@pytest.fixture
def verdict(monkeypatch):
    """Run the tests of the form as the SDK does. Returns None, or what the first that fails says is wrong."""
    monkeypatch.setattr(Logging, "LOG_LEVEL", Logging.Level.INFO)
    tests = [test.name for test in connector.configuration_form().to_response().tests]

    def run(fails_at: str | None = None, **settings):
        for name in tests:
            failure = connector.connector.run_test(name, {"base_url": URL, **settings}).failure
            if failure is not None:
                assert fails_at in (None, name)
                return failure
        assert fails_at is None
        return None

    return run


def test_the_form_has_every_setting_and_hides_the_key():
    form = connector.configuration_form().to_response()
    assert {field.name for field in form.fields} == set(connector.Settings.model_fields)
    assert all(field.label and field.description for field in form.fields)
    assert [field.name for field in form.fields if field.required] == ["base_url"]
    assert [field.name for field in form.fields if field.text_field == 1] == ["api_key"]


def test_fivetran_configuration_fills_a_file_that_its_test_and_a_sync_accept(
    api, sync, tmp_path, capsys, monkeypatch, destination
):
    """Asked in the terminal, answered with Enter but for the address and the key."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where the key that encrypts lies
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    api.add(5)
    path = tmp_path / "configuration.json"
    form = connector.connector.get_configuration_form()
    answers = {"Base URL: ": URL}
    code = configuration_command.run_configuration_form(
        form, str(path), False, lambda prompt: answers.get(prompt, ""), lambda prompt: "s3cr3t"
    )
    assert code == 0
    configuration = json.loads(path.read_text(encoding="utf-8"))
    assert configuration["api_key"].startswith("fivetran_encrypted:")

    assert configuration_command.run_configuration_tests(connector.connector, form, str(path)) == 0
    assert "All tests passed!" in capsys.readouterr().out
    assert api.keys == ["Bearer s3cr3t"] * 10

    assert (
        len(sync(**configuration_command.decrypt_configuration_values(configuration)).table) == 5
    )


def test_an_api_as_the_readme_asks_for_passes(api, verdict):
    api.add(250)
    assert verdict() is None
    assert [request["offset"] for request in api.requests] == [
        "0",
        *("0", "0"),  # each test takes the steps of those before it
        *("0", "0", "99"),
        *("0", "0", "99", "0"),
    ]
    assert "updated_since" in api.requests[-1]
    assert [request["limit"] for request in api.requests[-4:]] == ["100", "100", "10", "10"]


@pytest.mark.parametrize("count", [0, 1, 2, 10, 11])
def test_an_api_with_few_users_passes(api, verdict, count):
    api.add(count)
    assert verdict() is None


def test_an_api_whose_users_have_one_time_passes(api, verdict):
    api.add(50, updated_at=EPOCH)
    assert verdict() is None


def test_a_page_size_that_is_refused_is_no_failure_as_a_sync_would_halve_it(api, verdict):
    api.add(50)
    api.limit_max = 5
    assert verdict() is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            requests.ConnectTimeout(),
            "no connection to api.example.com (none within 10 s; check base_url",
        ),
        (requests.ReadTimeout(), "no answer from api.example.com within 60 s"),
        (
            requests.exceptions.SSLError("self-signed"),
            "no secure connection to api.example.com (",
        ),
        (requests.ConnectionError(), "no connection to api.example.com ("),
        ((401, {}, "no"), "HTTP 401 Unauthorized at offset 0 (check api_key): no"),
        ((403, {}, "no"), "HTTP 403 Forbidden at offset 0 (check api_key): no"),
        ((404, {}, "no"), "HTTP 404 Not Found at offset 0 (check base_url): no"),
        ((500, {}, ""), "HTTP 500 Internal Server Error"),
        ((429, {"Retry-After": "30"}, ""), "HTTP 429 Too Many Requests"),
        ((200, {"Content-Type": "text/html"}, "<html>"), "a body that is not JSON (text/html"),
    ],
    ids=str,
)
def test_an_api_that_cannot_be_reached_fails_the_second_test_after_one_request(
    api, verdict, answer, says
):
    api.add(50)
    api.answers = answer_all(answer)
    assert says in verdict("test_2")
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, {}, "[]"), "`answer` should be an object, but is an array"),
        ((200, {}, "null"), "`answer` should be an object, but is null"),
        ((200, {}, '{"users": []}'), "`data` is missing; there is users"),
        ((400, {}, '{"error": "bad limit"}'), "The API refuses every page size down to 2 rows"),
        ((400, {}, '{"error": "no"}'), 'HTTP 400 Bad Request at offset 0: {"error": "no"}'),
    ],
    ids=str,
)
def test_an_answer_that_is_no_page_fails_the_third_test_without_a_retry(
    api, verdict, answer, says
):
    api.add(50)
    api.answers = answer_all(answer)
    assert says in verdict("test_3")
    asked = [request["limit"] for request in api.requests]
    smaller = ["50", "25", "12", "6", "3", "2"] if answer[0] == 400 else []
    assert asked == ["100", "100", "100", *smaller]


def test_a_page_that_fails_is_not_requested_again(api, verdict):
    api.add(50)
    api.answers = {3: (503, {}, "")}
    assert "HTTP 503" in verdict("test_3")
    assert len(api.requests) == 3


def test_unusable_settings_fail_without_a_request(api, verdict):
    assert "`page_size` must be a whole number" in verdict(page_size="many")
    assert api.requests == []


def test_a_name_that_is_not_found_is_told_from_a_server_that_is_down(verdict, monkeypatch):
    def not_found(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    with http_server.refused_url() as url:
        assert "refused; check base_url, and that the API is up" in verdict(base_url=url)
    monkeypatch.setattr(socket, "getaddrinfo", not_found)
    assert (
        "no connection to api.example.com (Name or service not known; check base_url" in verdict()
    )


def test_a_server_that_never_answers_fails_in_time(verdict, monkeypatch):
    monkeypatch.setattr(connector, "TEST_SECONDS", 0.3)
    with http_server.serve(MemoryApi()) as server:
        server.faults = {1: "stall"}
        assert verdict(base_url=server.url).startswith("The API did not answer within 0.3 s")


def test_users_that_are_sorted_only_within_a_page_fail(api, verdict):
    api.add(30, updated_at=EPOCH + timedelta(days=1))
    api.add(30)
    page, api.sorted_users = api.page, lambda: list(api.users.values())

    def sort_page(parameters):
        answer = page(parameters)
        return answer | {ROWS: sorted(answer[ROWS], key=lambda user: user[UPDATED_AT])}

    api.page = sort_page
    assert "it must sort all rows, and not only those of a page" in verdict(page_size="30")


def test_users_that_are_not_sorted_fail(api, verdict):
    api.add(50)
    api.answers = answer_all(lambda page: page | {ROWS: page[ROWS][::-1]})
    assert "out of order" in verdict()


def test_an_updated_since_that_is_ignored_fails(api, verdict):
    api.add(50)
    page = api.page
    api.page = lambda parameters: page(
        {n: v for n, v in parameters.items() if n != "updated_since"}
    )
    assert "returns rows updated before updated_since" in verdict()


def test_an_offset_that_is_ignored_fails(api, verdict):
    api.add(150)
    page = api.page
    api.page = lambda parameters: (
        page(parameters | {"offset": 0}) | {"offset": int(parameters["offset"])}
    )
    assert "the same page at every offset" in verdict()


def test_an_exclusive_updated_since_fails_unless_there_is_a_lookback(api, verdict):
    api.add(50)
    api.exclusive = True
    assert "set lookback_seconds to 1" in verdict()
    assert verdict(lookback_seconds="1") is None


def test_a_total_of_one_page_only_fails(api, verdict):
    api.add(50)
    api.page_cap = api.total_cap = 30
    assert "The API says that 30 rows match, but has more" in verdict()


def test_pages_of_one_user_fail(api, verdict):
    api.add(50)
    api.page_cap = 1
    assert "at least 2 rows per page" in verdict()
