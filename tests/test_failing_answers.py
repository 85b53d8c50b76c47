"""What a sync does when the API answers with an error, with nothing, or with something else than a page of users."""

import json
from datetime import timedelta
from email.utils import format_datetime

import pytest
import requests

from connector import SyncError
from memory_api import EPOCH


def answer_all(answer) -> dict:
    return dict.fromkeys(range(1, 1000), answer)


# Answers that are tried again


@pytest.mark.parametrize(
    "answer",
    [
        requests.ConnectionError("refused"),
        requests.ConnectTimeout(),
        requests.ReadTimeout(),
        requests.exceptions.ChunkedEncodingError(),
        *[(status, {}, "") for status in (408, 429, 500, 502, 503, 504)],
        (200, {}, '{"data": ['),
        (200, {}, ""),
        (200, {"Content-Type": "text/html"}, "<html>"),
    ],
    ids=str,
)
def test_a_page_that_fails_is_tried_again(api, sync, clock, answer):
    api.add(250)
    api.answers = {1: answer, 3: answer, 4: answer}
    assert set(sync().table) == set(api.users)
    assert len(api.requests) == 6
    assert len(clock.waits) == 3


def test_a_page_is_tried_six_times_with_growing_waits_that_jitter(api, sync, clock):
    api.answers = answer_all((503, {}, ""))
    with pytest.raises(SyncError, match=r"no page at offset 0: HTTP 503 Service Unavailable\. Tries: 6, in \d+ s"):
        sync()
    assert len(api.requests) == 6
    for wait, (least, most) in zip(clock.waits, [(1, 2), (2, 3), (4, 5), (8, 9), (16, 17)], strict=True):
        assert least <= wait <= most
    assert all(wait != int(wait) for wait in clock.waits)


def test_a_page_is_not_tried_for_longer_than_ten_minutes(api, sync, clock):
    api.answers = answer_all((429, {"Retry-After": "250"}, ""))
    with pytest.raises(SyncError, match=r"HTTP 429 Too Many Requests\. Tries: 3, in 500 s"):
        sync()


def test_every_wait_is_logged_with_its_cause_and_length(api, sync, capsys):
    api.add(1)
    api.answers = {1: (429, {"Retry-After": "7"}, ""), 2: requests.ReadTimeout()}
    sync()
    output = capsys.readouterr().out
    assert "HTTP 429 Too Many Requests. Waiting 7.0 s before try 2 of 6" in output
    assert "no answer from api.example.com within 60 s (try a smaller page_size). Waiting" in output
    assert output.count('"WARNING"') == 2


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("0", 0),
        ("12", 12),
        (format_datetime(EPOCH + timedelta(days=30, seconds=21), usegmt=True), 20),
        (format_datetime(EPOCH, usegmt=True), 0),
    ],
)
def test_retry_after_is_obeyed_in_both_its_forms(api, sync, clock, retry_after, seconds):
    api.answers = {1: (503, {"Retry-After": retry_after}, "")}
    sync()
    assert clock.waits in ([seconds], [])
    assert sum(clock.waits) == seconds


@pytest.mark.parametrize("retry_after", ["soon", "-1", "1.5", ""])
def test_a_retry_after_that_cannot_be_read_is_as_good_as_none(api, sync, clock, retry_after):
    api.answers = {1: (503, {"Retry-After": retry_after}, "")}
    sync()
    assert 1 <= clock.waits[0] <= 2


def test_a_retry_after_beyond_ten_minutes_fails_at_once_and_says_so(api, sync, clock):
    api.answers = {1: (429, {"Retry-After": "601"}, "")}
    with pytest.raises(SyncError, match=r"HTTP 429 .* asks to wait 601 s, longer than the 600 s"):
        sync()
    assert clock.waits == []


# Answers that are not


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "HTTP 401 Unauthorized: check api_key"),
        (403, "HTTP 403 Forbidden: check api_key"),
        (404, "HTTP 404 Not Found: check base_url"),
        (400, "HTTP 400 Bad Request at offset 0: no such thing"),
        (422, "HTTP 422 .* at offset 0: no such thing"),
        (418, "HTTP 418 .* at offset 0: no such thing"),
        (501, "HTTP 501 Not Implemented at offset 0: no such thing"),
    ],
)
def test_other_errors_fail_at_once(api, sync, status, says):
    api.answers = answer_all((status, {}, "no such thing"))
    with pytest.raises(SyncError, match=says):
        sync()
    assert len(api.requests) == 1


def test_of_a_large_error_body_200_characters_are_quoted(api, sync):
    api.answers = {1: (400, {}, "x" * 5_000_000)}
    with pytest.raises(SyncError) as caught:
        sync()
    assert str(caught.value).count("x") == 200


@pytest.mark.parametrize("location", ["http://[::1", "/\udcff"])
def test_a_redirect_to_what_is_no_address_is_an_error(api, sync, location):
    api.answers = answer_all((302, {"Location": location}, ""))
    with pytest.raises(SyncError, match=r"The API cannot be asked: \w+\. Check base_url"):
        sync()


def test_a_date_out_of_range_is_as_good_as_none(api, sync):
    api.answers = {1: (200, {"Date": "Wed, 03 Apr 99999999999 12:34:56 GMT"}, '{"data": [], "total": 0}')}
    sync()


def test_an_endless_redirect_is_an_error(api, sync):
    api.answers = answer_all((302, {"Location": "https://api.example.com/users"}, ""))
    with pytest.raises(SyncError, match=r"TooManyRedirects\. Check base_url"):
        sync()


# Answers that are wrong


def with_user(**fields):
    """An answer whose third page has a user that is not as it should be, in its middle."""
    return lambda page: page | {"data": [*page["data"][:3], page["data"][3] | fields, *page["data"][4:]]}


WRONG = {
    "a list": (lambda page: [page], "a JSON object, but got a list of 1"),
    "a text": (lambda page: "users", "a JSON object, but got a string of 5 characters"),
    "no data": (lambda page: {"total": 250}, "`data` to be a list of users, but got nothing"),
    "data as object": (
        lambda page: page | {"data": {"id": 1}},
        "`data` to be a list of users, but got an object",
    ),
    "user as text": (
        lambda page: page | {"data": ["jo@example.com"]},
        "each user to be a JSON object, but got a string of 14 characters",
    ),
    "no id": (with_user(id=None), "`id` of each user to be a string or a whole number, but got nothing"),
    "id as object": (with_user(id={}), "`id` of each user to be a string or a whole number, but got an object"),
    "no time": (with_user(updatedAt=None), "`updatedAt` of user 202 to be an ISO 8601 time, but got nothing"),
    "time as number": (with_user(updatedAt=1700000000), "`updatedAt` of user 202 .* but got 1700000000"),
    "no time at all": (with_user(updatedAt="soon"), "`updatedAt` of user 202 to be an ISO 8601 time, but got 'soon'"),
    "a long text": (with_user(id=1, updatedAt="x" * 41), "but got a string of 41 characters"),
    "out of year": (with_user(updatedAt="0001-01-01T00:00:00+02:00"), "`updatedAt` of user 202 .* but got '0001"),
    "created when": (with_user(createdAt="soon"), "`createdAt` of user 202 to be an ISO 8601 time, but got 'soon'"),
    "no total": (lambda page: page | {"total": None}, "`total` to be a whole number, 0 or more, but got nothing"),
    "total below 0": (lambda page: page | {"total": -1}, "`total` to be a whole number, 0 or more, but got -1"),
    "total as text": (lambda page: page | {"total": "250"}, "`total` to be a whole number, 0 or more, but got '250'"),
    "total in part": (lambda page: page | {"total": 2.5}, "`total` to be a whole number, 0 or more, but got 2.5"),
    "total as truth": (lambda page: page | {"total": True}, "`total` to be a whole number, 0 or more, but got True"),
    "other offset": (lambda page: page | {"offset": 7}, "`offset` to be 198, as asked for, but got 7"),
    "out of order": (with_user(updatedAt="2024-01-01T00:00:01Z"), "out of order: `updatedAt` of user 202 is earlier"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_that_says_what_is_wrong_and_the_state_stays_behind_it(api, sync, destination, name):
    answer, says = WRONG[name]
    api.add(250)
    api.answers = {3: answer}
    with pytest.raises(SyncError, match=says) as caught:
        sync()
    assert "offset 198" in str(caught.value)
    assert "@example.com" not in str(caught.value)
    assert list(destination.table) == [str(number) for number in range(1, 200)]
    assert destination.state == {"last_updated_at": api.users["199"]["updatedAt"]}


def test_a_total_smaller_than_its_first_page_is_an_error(api, sync):
    api.add(3)
    api.answers = {1: lambda page: page | {"total": 2}}
    with pytest.raises(SyncError, match="`total` to be at least 3, the users of its first page, but got 2"):
        sync()


def test_a_total_without_users_is_an_error(api, sync):
    api.answers = {1: lambda page: page | {"total": 5}}
    with pytest.raises(SyncError, match="5 users match, but returns only 0"):
        sync()


def test_a_missing_offset_is_no_error(api, sync):
    api.add(3)
    api.answers = {1: lambda page: {"data": page["data"], "total": 3}}
    assert len(sync().table) == 3


def test_a_login_page_and_an_empty_body_say_what_came(api, sync):
    api.answers = answer_all((200, {"Content-Type": "text/html"}, "<html>Log in</html>"))
    with pytest.raises(SyncError, match=r"not JSON \(text/html, 19 bytes; is base_url the API"):
        sync()
    api.answers = answer_all((200, {}, ""))
    with pytest.raises(SyncError, match=r"not JSON \(application/json, 0 bytes"):
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
    with pytest.raises(SyncError, match="The state's last_updated_at should be an ISO 8601 time"):
        sync(state)
    assert api.requests == []
