"""What a sync does when the API answers with an error, with nothing, or with something else than a page of users."""

import json

import pytest
import requests

from connector import SyncError
from memory_api import EPOCH, ID, ROWS, UPDATED_AT, envelope


def answer_all(answer) -> dict:
    return dict.fromkeys(range(1, 1000), answer)


# Answers that may pass


def test_a_page_is_tried_seven_times_with_growing_waits_that_jitter(api, sync, clock):
    api.add(250)
    api.answers = dict.fromkeys(range(2, 99), (503, {}, ""))
    with pytest.raises(SyncError, match="503"):
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
    ("status", "says"), [(401, "api_key"), (403, "api_key"), (404, "base_url"), (418, "offset 0")]
)
def test_other_errors_fail_at_once_and_say_what_to_check(api, sync, status, says):
    api.answers = answer_all((status, {}, ""))
    with pytest.raises(SyncError, match=rf"{status}\b.*\b{says}"):
        sync()
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [202, 300, 400, 401, 404, 418, 429, 500, 503])
def test_the_first_words_of_the_body_are_quoted_for_any_status_but_200(api, sync, status):
    for headers in ({}, {"Retry-After": "7"}, {"Retry-After": "601"}):
        body = json.dumps({"reason": "full moon" + 10**6 * "x"})
        api.answers = dict.fromkeys(range(1, 99), (status, headers, body))
        with pytest.raises(SyncError, match="full moon") as caught:
            sync()
        assert 100 < str(caught.value).count("x") < 200


@pytest.mark.parametrize("name", ["error", "message"])
def test_of_a_200_that_is_no_page_only_the_error_or_message_is_quoted(api, sync, name):
    """The rest may be people's data."""
    api.answers = {1: {"users": "jo@example.com", name: "full moon", "jo@example.com": 1}}
    with pytest.raises(SyncError, match=r"\busers\b.*full moon") as caught:
        sync()
    assert "jo@" not in str(caught.value)


@pytest.mark.parametrize(
    "location", ["http://[::1", "/\udcff", "https://api.example.com/users", "ftp://example.com/"]
)
def test_a_redirect_that_leads_nowhere_is_an_error_that_names_base_url(api, sync, location):
    api.answers = answer_all((302, {"Location": location}, ""))
    with pytest.raises(SyncError, match="base_url"):
        sync()


def test_a_400_for_any_page_size_says_that_the_request_is_refused_in_the_words_of_the_api(
    api, sync
):
    api.answers = answer_all((400, {}, "full moon"))
    with pytest.raises(SyncError, match=r"request.*400.*full moon"):
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
    "no time": (with_user(**{UPDATED_AT: None}), ["data.3.updatedAt", "null", "created"]),
    "empty time": (with_user(**{UPDATED_AT: ""}), ["data.3.updatedAt", "ISO 8601"]),
    "epoch": (with_user(**{UPDATED_AT: 1700000000}), ["data.3.updatedAt", "a number"]),
    "epoch text": (with_user(**{UPDATED_AT: "1700000000"}), ["data.3.updatedAt", "ISO 8601"]),
    "words": (with_user(**{UPDATED_AT: "jo@example.com"}), ["data.3.updatedAt", "ISO 8601"]),
    "no year": (with_user(**{UPDATED_AT: "0001-01-01T00:00:00+02:00"}), ["data.3.updatedAt"]),
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
    with pytest.raises(SyncError) as caught:
        sync()
    words = [f"offset {api.requests[-1]['offset']}", *words]
    assert [word for word in words if word not in str(caught.value)] == []
    assert "@example.com" not in str(caught.value)
    read = list(destination.table)
    assert read == list(api.users)[: len(read)]
    assert 100 < len(read) < 250
    assert destination.state == {"last_updated_at": api.updated_at(read[-1])}


@pytest.mark.parametrize("value", [None, 1700000000, "soon"])
def test_only_a_time_that_is_null_is_to_be_filled_when_a_row_is_created(api, sync, value):
    api.answers = {1: envelope([{ID: "1", UPDATED_AT: value}], 1)}
    with pytest.raises(SyncError, match=UPDATED_AT) as caught:
        sync()
    assert ("created" in str(caught.value)) == (value is None)


def test_to_sort_by_the_key_is_the_first_advice_for_a_list_that_cannot_be_paged(api, sync):
    api.add(300, updated_at=EPOCH)
    api.tie_order = lambda user: int(user[ID]) * (1 if api.requests[-1]["offset"] == "0" else -1)
    with pytest.raises(SyncError, match=rf"Sort\b.*\b{ID}\b.*page_size"):
        sync()


@pytest.mark.parametrize("offset", [{}, {"offset": None}, {"offset": "0"}], ids=str)
def test_an_offset_that_is_missing_is_no_error(api, sync, offset):
    api.add(3)
    api.answers = {1: lambda page: {ROWS: page[ROWS], "total": 3} | offset}
    assert len(sync().table) == 3


def test_a_page_for_people_says_what_came(api, sync):
    api.answers = answer_all((200, {"Content-Type": "text/html"}, "<html>Log in</html>"))
    with pytest.raises(SyncError, match=r"JSON.*text/html.*base_url") as caught:
        sync()
    assert "Log in" not in str(caught.value)


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


def test_certificates_that_cannot_be_read_are_an_error_that_names_the_file(sync, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(SyncError, match="/no/such/file"):
        sync(base_url="https://127.0.0.1:9/users")
