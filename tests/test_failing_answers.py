"""What a sync does when the API answers with an error, with nothing, or with something else than a page of users."""

import json
from collections import Counter
from datetime import timedelta
from email.utils import format_datetime

import pytest
import requests

from connector import SyncError
from memory_api import CREATED_AT, EPOCH, ID, ROWS, UPDATED_AT, envelope


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
    assert len(clock.waits) == 3


def test_a_page_is_tried_six_times_with_growing_waits_that_jitter(api, sync, clock):
    api.add(250)
    api.at_offset = {99: (503, {}, "")}
    with pytest.raises(
        SyncError, match=r"no page at offset 99: HTTP 503 Service Unavailable\. Tries: 6, in \d+ s"
    ):
        sync()
    assert len(api.requests) == 7
    for wait, (least, most) in zip(
        clock.waits, [(1, 2), (2, 3), (4, 5), (8, 9), (16, 17)], strict=True
    ):
        assert least <= wait <= most
    assert all(wait != int(wait) for wait in clock.waits)


def test_a_page_is_not_tried_for_longer_than_ten_minutes(api, sync, clock):
    api.add(250)
    api.at_offset = {99: (429, {"Retry-After": "250"}, "")}
    with pytest.raises(SyncError, match=r"HTTP 429 Too Many Requests\. Tries: 3, in 500 s"):
        sync()


def test_every_wait_is_logged_with_its_cause_and_length(api, sync, capsys):
    api.add(1)
    api.answers = {1: (429, {"Retry-After": "7"}, ""), 2: requests.ReadTimeout()}
    sync()
    output = capsys.readouterr().out
    assert "HTTP 429 Too Many Requests. Waiting 7.0 s before try 2" in output
    assert (
        "no answer from api.example.com within 60 s (try a smaller page_size). Waiting" in output
    )
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
        (401, "HTTP 401 Unauthorized at offset 0 .check api_key.: no such thing"),
        (403, "HTTP 403 Forbidden at offset 0 .check api_key.: no such thing"),
        (404, "HTTP 404 Not Found at offset 0 .check base_url.: no such thing"),
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
    api.answers = {1: (418, {}, "x" * 5_000_000)}
    with pytest.raises(SyncError) as caught:
        sync()
    assert str(caught.value).count("x") == 200


@pytest.mark.parametrize("location", ["http://[::1", "/\udcff"])
def test_a_redirect_to_what_is_no_address_is_an_error(api, sync, location):
    api.answers = answer_all((302, {"Location": location}, ""))
    with pytest.raises(SyncError, match=r"base_url leads to no page \(\w+\): check it"):
        sync()


@pytest.mark.parametrize(
    "date", ["0", "", "-0000", "yesterday", "Wed, 03 Apr 99999999999 12:34:56 GMT"]
)
def test_an_unreadable_date_counts_as_none(api, sync, date):
    user = {ID: "1", UPDATED_AT: "2999-01-01T00:00:00Z"}
    api.answers = {1: (200, {"Date": date}, json.dumps(envelope([user], 1)))}
    assert sync().state["last_updated_at"] < "2999"


def test_a_page_size_that_is_refused_in_any_words_is_halved(api, sync):
    api.add(120)
    refusal = (422, {}, json.dumps({"error": "x" * 300, "field": "limit"}))
    api.answers = {1: refusal, 2: refusal}
    assert set(sync().table) == set(api.users)
    assert [request["limit"] for request in api.requests[:4]] == ["100", "50", "25", "25"]


def test_a_page_size_that_is_always_refused_is_an_error_with_the_words_of_the_api(api, sync):
    api.answers = answer_all((400, {}, "no such thing"))
    with pytest.raises(
        SyncError,
        match=r"refuses every page size down to 2 rows.* 400 Bad Request .*no such thing",
    ):
        sync()
    assert [request["limit"] for request in api.requests] == [
        "100",
        "50",
        "25",
        "12",
        "6",
        "3",
        "2",
    ]


def test_after_the_second_timeout_of_a_page_half_as_many_rows_are_asked_for(api, sync):
    api.add(250)
    api.at_offset = {
        99: lambda answer: (
            requests.ReadTimeout() if int(api.requests[-1]["limit"]) > 30 else answer
        )
    }
    assert set(sync().table) == set(api.users)
    assert [request["limit"] for request in api.requests[:5]] == ["100", "100", "100", "50", "25"]
    assert {request["limit"] for request in api.requests[5:]} == {"25"}


@pytest.mark.parametrize(
    "answer", [requests.ConnectionError(), (200, {"Content-Type": "text/html"}, "<html>")], ids=str
)
def test_before_any_page_has_come_three_tries_are_enough(api, sync, answer):
    api.answers = answer_all(answer)
    with pytest.raises(SyncError, match="Tries: 3"):
        sync()
    assert len(api.requests) == 3


def test_an_endless_redirect_is_an_error(api, sync):
    api.answers = answer_all((302, {"Location": "https://api.example.com/users"}, ""))
    with pytest.raises(SyncError, match=r"base_url leads to no page \(TooManyRedirects\)"):
        sync()


# Answers that are wrong


def with_user(**fields):
    """An answer whose third page has a user that is not as it should be, in its middle."""
    return lambda page: page | {ROWS: [*page[ROWS][:3], page[ROWS][3] | fields, *page[ROWS][4:]]}


WRONG = {
    "a list": (lambda page: [page], "`answer` should be an object, but is an array"),
    "a text": (lambda page: "users", "`answer` should be an object, but is a string"),
    "no data": (lambda page: {"total": 250}, "`data` is missing; there is total"),
    "data as object": (
        lambda page: page | {ROWS: {"id": 1}},
        "`data` should be a valid list, but is an object",
    ),
    "user as text": (
        lambda page: page | {ROWS: ["jo@example.com"]},
        "`data.0` should be an object, but is a string",
    ),
    "no id": (with_user(id=None), "`data.3.id` should be a valid string, but is null"),
    "id as object": (with_user(id={}), "`data.3.id` should be a valid string, but is an object"),
    "no time": (
        with_user(**{UPDATED_AT: None}),
        "`data.3.updatedAt` should be an ISO 8601 date and time, but is null",
    ),
    "time as number": (
        with_user(**{UPDATED_AT: 1700000000}),
        "`data.3.updatedAt` .*, but is a number",
    ),
    "no time at all": (
        with_user(**{UPDATED_AT: "soon"}),
        "`data.3.updatedAt` .*, but is another string",
    ),
    "a long text": (
        with_user(id=1, **{UPDATED_AT: "x" * 41}),
        "`data.3.updatedAt` .*, but is another string",
    ),
    "out of year": (
        with_user(**{UPDATED_AT: "0001-01-01T00:00:00+02:00"}),
        "`data.3.updatedAt` .*, but is another string",
    ),
    "created when": (
        with_user(**{CREATED_AT: "soon"}),
        "`data.3.createdAt` .*, but is another string",
    ),
    "no total": (
        lambda page: page | {"total": None},
        "`total` should be a valid integer, but is null",
    ),
    "total below 0": (
        lambda page: page | {"total": -1},
        "`total` should be greater than or equal to 0, but is a number",
    ),
    "total as text": (
        lambda page: page | {"total": "250"},
        "`total` should be a valid integer, but is a string",
    ),
    "total in part": (
        lambda page: page | {"total": 2.5},
        "`total` should be a valid integer, but is a number",
    ),
    "total as truth": (
        lambda page: page | {"total": True},
        "`total` should be a valid integer, but is a boolean",
    ),
    "other offset": (
        lambda page: page | {"offset": 7},
        "`offset` should be as requested, but is 7",
    ),
    "out of order": (
        with_user(**{UPDATED_AT: "2024-01-01T00:00:01Z"}),
        "the updatedAt of row 202 is earlier than that of row 201 before it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_that_says_what_is_wrong_and_the_state_stays_behind_it(
    api, sync, destination, name
):
    answer, says = WRONG[name]
    api.add(250)
    api.answers = {3: answer}
    with pytest.raises(SyncError, match=says) as caught:
        sync()
    assert "offset 198" in str(caught.value)
    assert "@example.com" not in str(caught.value)
    assert list(destination.table) == [str(number) for number in range(1, 200)]
    assert destination.state == {"last_updated_at": api.users["199"][UPDATED_AT]}


def test_a_total_smaller_than_its_first_page_is_no_end(api, sync):
    api.add(250)
    api.total_cap = 2
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize("offset", [{}, {"offset": None}])
def test_an_offset_that_is_missing_or_null_is_no_error(api, sync, offset):
    api.add(3)
    api.answers = {1: lambda page: envelope(page[ROWS], 3) | offset}
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
    with pytest.raises(ValueError, match="The state's last_updated_at should be an ISO 8601 time"):
        sync(state)
    assert api.requests == []


def test_the_start_of_a_sync_is_that_of_the_first_answer_that_succeeds(api, sync):
    api.add(3)
    api.add(1, updated_at=api.now)
    api.answers = {1: (503, {"Date": "none"}, "")}  # of a proxy; the local clock is far ahead
    assert sync().state == {"last_updated_at": api.updated_at("3")}


def test_keys_that_may_be_peoples_data_are_not_quoted(api, sync):
    api.answers = {1: lambda page: {"jo@example.com": [], "users": []}}
    with pytest.raises(SyncError, match="is missing; there is users") as caught:
        sync()
    assert "jo@" not in str(caught.value)


@pytest.mark.parametrize("bytes_", [b"\xed\xa0\x80", b"\xff"])
def test_bytes_that_are_no_text_are_replaced(api, sync, bytes_):
    user = {ID: "1", "name": "Jo X", UPDATED_AT: "2024-01-15"}
    body = json.dumps(envelope([user], 1)).encode().replace(b"X", bytes_)
    api.answers = {1: (200, {}, body)}
    assert sync().table["1"]["name"].startswith("Jo \ufffd")


def test_certificates_that_cannot_be_read_are_an_error(sync, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(SyncError, match=r"No request is possible.*/no/such/file"):
        sync(base_url="https://127.0.0.1:9/users")


def test_a_retry_after_of_0_does_not_use_up_all_tries_at_once(api, sync, clock):
    api.add(1)
    api.answers = dict.fromkeys((1, 2), (429, {"Retry-After": "0"}, ""))
    sync()
    assert clock.waits[0] == 0
    assert clock.waits[1] > 1


def test_a_retry_after_that_was_too_short_is_followed_by_growing_waits(api, sync, clock):
    """A limit per minute, say, by an API that always asks to wait for a second."""
    api.add(1)
    api.answers = dict.fromkeys(range(1, 3), (429, {"Retry-After": "1"}, ""))
    sync()
    assert clock.waits[0] == 1
    assert 4 <= clock.waits[1] <= 6


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "1"}])
def test_the_tries_of_a_page_outlast_a_limit_per_minute(api, sync, clock, headers):
    """The API answers 60 requests a minute, and says nothing true of when the next minute begins."""
    api.add(3000)
    answered = Counter()

    def count():
        minute = clock.now // 60
        answered[minute] += 1
        return (429, headers, "") if answered[minute] > 60 else None

    api.before = [count] * 500
    assert len(sync(page_size="20").table) == 3000
    assert sum(clock.waits) > 60
