"""What a sync does when the API answers with an error, with nothing, or with something else than a page of users."""

import json

import pytest
import requests

from connector import SyncError
from memory_api import CREATED_AT, ID, ROWS, UPDATED_AT, envelope


def answer_all(answer) -> dict:
    return dict.fromkeys(range(1, 1000), answer)


# Answers that may pass


def test_a_page_is_tried_seven_times_with_growing_waits_that_jitter(api, sync, clock):
    api.add(250)
    api.at_offset = {99: (503, {}, "")}
    with pytest.raises(SyncError, match=r"offset 99.*503"):
        sync()
    assert len(api.requests) == 1 + 7
    for wait, least in zip(clock.waits, [2, 4, 8, 16, 32, 60], strict=True):
        assert least <= wait <= least + 1
    assert all(wait != int(wait) for wait in clock.waits[:5])


def test_every_retry_is_logged_with_its_cause(api, sync, capsys):
    api.add(1)
    api.answers = {1: (429, {"Retry-After": "7"}, ""), 2: requests.ReadTimeout()}
    sync()
    output = capsys.readouterr().out
    assert output.count('"WARNING"') == 2
    assert "429" in output
    assert "7 s" in output
    assert "api.example.com" in output


def test_a_retry_after_beyond_ten_minutes_fails_at_once_and_says_how_long(api, sync, clock):
    api.answers = {1: (429, {"Retry-After": "601"}, "")}
    with pytest.raises(SyncError, match=r"429.*601 s"):
        sync()
    assert clock.waits == []


@pytest.mark.parametrize(
    "answer",
    [requests.ConnectionError(), (200, {"Content-Type": "text/html"}, "<html>"), (500, {}, "")],
    ids=str,
)
def test_before_the_api_is_known_to_be_there_three_tries_are_enough(api, sync, answer):
    api.answers = answer_all(answer)
    with pytest.raises(SyncError):
        sync()
    assert len(api.requests) == 3


# Answers that will not


@pytest.mark.parametrize(
    ("status", "says"), [(401, "api_key"), (403, "api_key"), (404, "base_url"), (418, "418")]
)
def test_other_errors_fail_at_once_with_the_words_of_the_api(api, sync, status, says):
    api.answers = answer_all((status, {}, "no such thing"))
    with pytest.raises(SyncError, match=rf"{status}.*no such thing") as caught:
        sync()
    assert says in str(caught.value)
    assert len(api.requests) == 1


def test_of_a_large_error_body_200_characters_are_quoted(api, sync):
    api.answers = {1: (418, {}, "x" * 5_000_000)}
    with pytest.raises(SyncError) as caught:
        sync()
    assert str(caught.value).count("x") == 200


@pytest.mark.parametrize(
    "location", ["http://[::1", "/\udcff", "https://api.example.com/users", "ftp://example.com/"]
)
def test_a_redirect_that_leads_nowhere_is_an_error_that_names_base_url(api, sync, location):
    api.answers = answer_all((302, {"Location": location}, ""))
    with pytest.raises(SyncError, match="base_url"):
        sync()


def test_a_request_that_is_always_refused_is_an_error_with_the_words_of_the_api(api, sync):
    api.answers = answer_all((400, {}, "no such thing"))
    with pytest.raises(SyncError, match=r"400.*no such thing"):
        sync()
    asked = [int(request["limit"]) for request in api.requests]
    assert asked == [100, 50, 25, 12, 6, 3, 2]


# Answers that are wrong


def with_user(**fields):
    """An answer whose third page has a user that is not as it should be, in its middle."""
    return lambda page: page | {ROWS: [*page[ROWS][:3], page[ROWS][3] | fields, *page[ROWS][4:]]}


WRONG = {
    "a list": (lambda page: [page], ["object", "array"]),
    "a text": (lambda page: "users", ["object", "string"]),
    "no data": (lambda page: {"total": 250}, ["data", "missing"]),
    "data as object": (lambda page: page | {ROWS: {"id": 1}}, ["data", "an object"]),
    "user as text": (lambda page: page | {ROWS: ["jo@example.com"]}, ["data.0", "a string"]),
    "no id": (with_user(id=None), ["data.3.id", "null"]),
    "empty id": (with_user(id=""), ["data.3.id", "1 character"]),
    "id as object": (with_user(id={}), ["data.3.id", "an object"]),
    "no time": (with_user(**{UPDATED_AT: None}), ["data.3.updatedAt", "ISO 8601", "null"]),
    "empty time": (with_user(**{UPDATED_AT: ""}), ["data.3.updatedAt", "ISO 8601"]),
    "epoch": (with_user(**{UPDATED_AT: 1700000000}), ["data.3.updatedAt", "a number"]),
    "epoch text": (with_user(**{UPDATED_AT: "1700000000"}), ["data.3.updatedAt", "ISO 8601"]),
    "words": (with_user(**{UPDATED_AT: "jo@example.com"}), ["data.3.updatedAt", "ISO 8601"]),
    "no year": (with_user(**{UPDATED_AT: "0001-01-01T00:00:00+02:00"}), ["data.3.updatedAt"]),
    "no total": (lambda page: {ROWS: page[ROWS]}, ["total", "missing"]),
    "total below 0": (lambda page: page | {"total": -1}, ["total", "0"]),
    "total in part": (lambda page: page | {"total": 2.5}, ["total", "integer"]),
    "other offset": (lambda page: page | {"offset": 7}, ["offset", "7"]),
    "out of order": (with_user(**{UPDATED_AT: "2024-01-01T00:00:01Z"}), ["order", "updatedAt"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_that_says_what_is_wrong_and_the_state_stays_behind_it(
    api, sync, destination, name
):
    answer, words = WRONG[name]
    api.add(250)
    api.answers = {3: answer}
    with pytest.raises(SyncError, match="offset 198") as caught:
        sync()
    assert [word for word in words if word not in str(caught.value)] == []
    assert "@example.com" not in str(caught.value)
    assert list(destination.table) == [str(number) for number in range(1, 200)]
    assert destination.state == {"last_updated_at": api.users["199"][UPDATED_AT]}


def test_null_and_a_number_for_a_time_do_not_read_the_same(api, sync):
    messages = []
    for value in (None, 1700000000, "soon"):
        api.answers = dict.fromkeys(
            range(1, 99), envelope([{ID: "1", UPDATED_AT: value, CREATED_AT: None}], 1)
        )
        with pytest.raises(SyncError) as caught:
            sync()
        messages.append(str(caught.value))
    assert len(set(messages)) == 3


@pytest.mark.parametrize("offset", [{}, {"offset": None}, {"offset": "0"}], ids=str)
def test_an_offset_that_is_missing_is_no_error(api, sync, offset):
    api.add(3)
    api.answers = {1: lambda page: {ROWS: page[ROWS], "total": 3} | offset}
    assert len(sync().table) == 3


def test_a_page_for_people_says_what_came(api, sync):
    api.answers = answer_all((200, {"Content-Type": "text/html"}, "<html>Log in</html>"))
    with pytest.raises(SyncError, match=r"JSON.*text/html.*base_url"):
        sync()


@pytest.mark.parametrize(
    "state",
    [
        {"last_updated_at": None},
        {"last_updated_at": 1700000000},
        {"last_updated_at": "yesterday"},
        {"last_updated_at": {"time": "2024-01-01"}},
        {"cursor": "2024-01-01T00:00:00Z"},
    ],
    ids=json.dumps,
)
def test_a_state_that_this_connector_did_not_write_is_an_error_and_no_full_sync(api, sync, state):
    with pytest.raises(ValueError, match=r"last_updated_at.*ISO 8601.*fivetran reset"):
        sync(state)
    assert api.requests == []


def test_keys_that_may_be_peoples_data_are_not_quoted(api, sync):
    api.answers = {1: lambda page: {"jo@example.com": [], "users": []}}
    with pytest.raises(SyncError, match="users") as caught:
        sync()
    assert "jo@" not in str(caught.value)


def test_certificates_that_cannot_be_read_are_an_error_that_names_the_file(sync, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(SyncError, match="/no/such/file"):
        sync(base_url="https://127.0.0.1:9/users")
