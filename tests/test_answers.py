"""Answers that are not as the README asks: those that a sync reads all the same, and those that it says are wrong."""

import json
from functools import partial
from operator import getitem, truediv

import pytest
import requests

import connector
from connector import SyncError, Unavailable
from memory_api import EPOCH, ID, ROWS, UPDATED_AT, URL, always, envelope

# Bodies and statuses that are read


def test_a_half_emoji_and_bytes_that_are_no_text_are_replaced(api, sync):
    user = {ID: "1", "name": "Jo \ud83d\ude00 \ud83d", UPDATED_AT: "2024-01-15"}
    api.answers = always((200, {}, json.dumps(envelope([user], 1))))
    assert sync().table["1"]["name"] == "Jo \U0001f600 ?"
    body = json.dumps(envelope([user | {"name": "Jo X"}], 1)).encode().replace(b"X", b"\xff")
    api.answers = always((200, {}, body))
    assert sync({}).table["1"]["name"] == "Jo \ufffd"


@pytest.mark.parametrize("control", ["\n", "\t", "\x01", "\x1f"], ids=ascii)
def test_control_characters_that_json_does_not_allow_are_read(api, sync, control):
    body = json.dumps(envelope([{ID: "1", "name": "Jo X", UPDATED_AT: "2024-01-15"}], 1))
    api.answers = always((200, {}, body.replace("X", control)))
    assert sync().table["1"]["name"] == f"Jo {control}"


@pytest.mark.parametrize(
    "answer", [{ROWS: None, "total": 0}, {ROWS: {}}, (200, {}, "{}"), (204, {}, "")], ids=str
)
def test_an_empty_page_may_have_no_list(api, sync, verdict, answer):
    api.answers = always(answer)
    assert sync({"last_updated_at": "2024-01-15"}).table == {}
    assert verdict() is None
    assert len(api.requests) <= 3


@pytest.mark.parametrize("status", [200, 204, 400, 404, 416, 422])
@pytest.mark.parametrize("ties", [False, True])
def test_an_offset_behind_the_end_may_be_refused_in_any_way(api, sync, status, ties):
    api.add(250, updated_at=EPOCH if ties else None)
    api.total_excess = 40
    answer = (status, {"Retry-After": "3"}, "{}")
    api.refusal = lambda p: None if api.page(p)[ROWS] or p["offset"] == "0" else answer
    for state in ({}, None):
        assert set(sync(state).table) == set(api.users)
    assert len(api.requests) < 16


@pytest.mark.parametrize("status", [404, 416])
def test_a_list_that_shrinks_in_front_of_an_offset_is_read_to_its_end(api, sync, status):
    api.add(250, updated_at=EPOCH)
    api.refusal = lambda p: None if api.page(p)[ROWS] else (status, {}, "")
    api.before = [None, lambda: api.delete(*(str(number) for number in range(1, 200)))]
    assert set(sync().table) >= set(api.users)


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        ("application/json", "utf-8"),
        ("application/json", "utf-8-sig"),
        ("text/html; charset=iso-8859-1", "utf-8"),
        ("application/json; charset=iso-8859-1", "iso-8859-1"),
        ("application/json; charset=windows-1252", "windows-1252"),
        ("application/json; charset=shift_jis", "shift_jis"),
        ("text/plain", "utf-8"),
        ("", "utf-8"),
    ],
)
def test_a_body_is_read_in_the_encoding_that_it_has(api, sync, content_type, encoding):
    name = "Jo 山" if encoding == "shift_jis" else "Zo\u00eb"
    body = json.dumps(
        envelope([{ID: "1", "name": name, UPDATED_AT: "2024-01-15"}], 1), ensure_ascii=False
    )
    api.answers = always((200, {"Content-Type": content_type}, body.encode(encoding)))
    assert sync().table["1"]["name"] == name


# Errors in a body with status 200


@pytest.mark.parametrize("has_rows", [False, True])
@pytest.mark.parametrize(
    "error", [{"error": "full moon"}, {"errors": [{"reason": "full moon"}]}], ids=str
)
def test_an_error_without_rows_is_a_failed_try_that_is_quoted(api, sync, lines, error, has_rows):
    api.add(250)
    answer = error | ({ROWS: [], "total": 0} if has_rows else {})
    api.answers = {1: answer, 3: answer}
    assert set(sync().table) == set(api.users)
    assert ["full moon" in line for line in lines("WARNING")] == [True, True]
    api.answers = always(answer | {"user": "jo@example.com"})
    with pytest.raises(SyncError, match="full moon") as caught:
        sync()
    assert "jo@" not in str(caught.value)


@pytest.mark.parametrize(
    "words", [{"message": "full moon"}, {"error": False}, {"error": None, "errors": []}], ids=str
)
def test_words_that_are_no_error_are_not_taken_for_one(api, sync, words):
    api.answers = always(envelope([], 0) | words)
    sync()
    assert len(api.requests) <= 2


def test_rows_beside_an_error_are_read(api, sync):
    api.add(3)
    api.answers = always(lambda page: page | {"errors": ["one field was left out"]})
    assert set(sync().table) == set(api.users)


# Errors that will not pass


@pytest.mark.parametrize(
    ("status", "says"), [(401, "api_key"), (403, "api_key"), (404, "base_url"), (418, "offset 0")]
)
def test_other_errors_fail_at_once_and_say_what_to_check(api, sync, status, says):
    api.answers = always((status, {}, ""))
    with pytest.raises(SyncError, match=rf"{status}\b.*\b{says}") as caught:
        sync()
    assert len(api.requests) == 1
    assert "parallel_requests" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 409])
def test_what_is_refused_behind_the_first_page_may_come_of_parallel_requests(api, sync, status):
    api.add(250, updated_at=EPOCH)  # so that the rows behind it need an offset
    api.refusal = lambda p: (status, {}, "") if p["offset"] != "0" else None
    with pytest.raises(SyncError, match=rf"{status}\b.*parallel_requests"):
        sync(parallel_requests="8")


def test_a_404_shows_the_address_without_its_query(api, sync):
    api.answers = always((404, {}, ""))
    with pytest.raises(SyncError, match=URL) as caught:
        sync(base_url=f"{URL}?tenant=acme")
    assert "acme" not in str(caught.value)


@pytest.mark.parametrize("status", [202, 300, 400, 401, 404, 418, 429, 500, 503])
def test_the_first_words_of_the_body_are_quoted_for_any_status_but_200(api, sync, status):
    for headers in ({}, {"Retry-After": "7"}, {"Retry-After": "601"}):
        body = json.dumps({"reason": "full moon" + 10**6 * "x"})
        api.answers = always((status, headers, body))
        with pytest.raises(SyncError, match="full moon") as caught:
            sync()
        assert 100 < str(caught.value).count("x") < 200


@pytest.mark.parametrize("status", [200, 401, 403, 404, 418, 500, 503])
def test_a_page_for_people_is_not_quoted(api, sync, status):
    page = "<!DOCTYPE html><title>Log in</title>"
    api.answers = always((status, {"Content-Type": "text/html"}, page))
    with pytest.raises(
        SyncError, match=r"text/html.*base_url" if status == 200 else str(status)
    ) as caught:
        sync()
    assert "Log in" not in str(caught.value)


def test_a_400_for_any_page_size_says_that_the_request_is_refused_in_the_words_of_the_api(
    api, sync
):
    api.answers = always((400, {}, "full moon"))
    with pytest.raises(SyncError, match=r"request.*400.*full moon"):
        sync()
    asked = [int(request["limit"]) for request in api.requests]
    assert asked == [100, 50, 25, 12, 6, 3, 2]


@pytest.mark.parametrize(
    "location", ["http://[::1", "/\udcff", "https://api.example.com/users", "ftp://example.com/"]
)
def test_a_redirect_that_leads_nowhere_is_an_error_that_names_base_url(api, sync, location):
    api.answers = always((302, {"Location": location}, ""))
    with pytest.raises(SyncError, match="base_url"):
        sync()


@pytest.mark.parametrize(
    "url", ["http://a..b/users", "http://" + "a" * 70 + ".com", "http://[::1]x"], ids=str
)
def test_an_address_that_no_host_can_have_is_an_error_that_names_base_url(sync, url):
    with pytest.raises((SyncError, ValueError), match="base_url"):
        sync(base_url=url)


@pytest.mark.parametrize(
    ("answer", "is_advised"),
    [
        (requests.ReadTimeout(), True),
        ((502, {}, ""), True),
        ((413, {}, ""), True),
        ((429, {}, ""), False),
        ((403, {"Retry-After": "1"}, ""), False),
        (requests.ConnectionError(), False),
        ((200, {}, "<html>"), False),
    ],
    ids=str,
)
def test_a_smaller_page_size_is_advised_only_after_timeouts_and_5xx(api, sync, answer, is_advised):
    api.answers = always(answer)
    with pytest.raises(SyncError) as caught:
        sync()
    assert ("page_size" in str(caught.value)) == is_advised


def test_certificates_that_cannot_be_read_are_an_error_that_names_the_file(sync, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(SyncError, match="/no/such/file"):
        sync(base_url="https://127.0.0.1:9/users")


# Rows that are wrong


def with_user(**fields):
    """An answer whose third page has a user that is not as it should be, in its middle."""
    return lambda page: page | {ROWS: [*page[ROWS][:3], page[ROWS][3] | fields, *page[ROWS][4:]]}


LONG_TEXT = "Sunday " * 9
WRONG = {
    "data as object": (lambda page: page | {ROWS: {"id": 1}}, ["an object"]),
    "data as text": (lambda page: page | {ROWS: "jo@example.com"}, ["a string"]),
    "user as text": (lambda page: page | {ROWS: ["jo@example.com"]}, ["row 0", "a string"]),
    "user as null": (lambda page: page | {ROWS: [None]}, ["row 0", "null"]),
    "no id": (with_user(id=None), ["row 3", "id", "null"]),
    "empty id": (with_user(id=""), ["row 3", "id"]),
    "id as object": (with_user(id={"a": "jo@example.com"}), ["row 3", "id", "an object"]),
    "id as boolean": (with_user(id=True), ["row 3", "id", "a boolean"]),
    "no time": (with_user(**{UPDATED_AT: None}), ["row 3", UPDATED_AT, "null"]),
    "time as number": (with_user(**{UPDATED_AT: 17e8}), ["row 3", UPDATED_AT, "a number"]),
    "time as array": (with_user(**{UPDATED_AT: []}), ["row 3", UPDATED_AT, "an array"]),
    "empty time": (with_user(**{UPDATED_AT: ""}), ["row 3", UPDATED_AT]),
    "epoch text": (with_user(**{UPDATED_AT: "1700000000"}), ["row 3", UPDATED_AT, "1700000000"]),
    "long": (with_user(**{UPDATED_AT: LONG_TEXT}), ["row 3", UPDATED_AT, LONG_TEXT[:40]]),
    "no year": (with_user(**{UPDATED_AT: "0001-01-01T00:00:00+02:00"}), ["row 3", "0001-01-01"]),
    "out of order": (with_user(**{UPDATED_AT: "2024-01-01T00:00:01Z"}), ["sort", UPDATED_AT]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_is_an_error_that_names_it_and_the_state_stays_in_front_of_its_page(
    api, sync, destination, name
):
    answer, words = WRONG[name]
    api.add(250)
    api.answers = {3: answer}
    with pytest.raises(SyncError) as caught:
        sync()
    words = [f"offset {api.requests[2]['offset']}", *words]
    assert [word for word in words if word not in str(caught.value)] == []
    assert "@example.com" not in str(caught.value)
    assert LONG_TEXT[:41] not in str(caught.value)
    read = list(destination.table)
    assert read == list(api.users)[: len(read)]
    assert 100 < len(read) < 250
    assert destination.state == {"last_updated_at": api.updated_at(read[-1])}


def test_a_row_without_a_field_says_which_there_are(api, sync):
    api.answers = always(envelope([{ID: "1", "changed": "now", "jo@example.com": 1}], 1))
    with pytest.raises(SyncError, match=rf"row 0\b.*{UPDATED_AT}.*\bchanged\b") as caught:
        sync()
    assert "jo@" not in str(caught.value)


def test_to_sort_by_the_key_is_the_advice_for_a_list_that_cannot_be_paged(api, sync):
    api.add(300, updated_at=EPOCH)
    api.page_cap = 100
    api.tie_order = lambda user: int(user[ID]) * (1 if api.requests[-1]["offset"] == "0" else -1)
    with pytest.raises(SyncError, match=r"(?i)\bsort\b.*\bkey\b.*page_size"):
        sync()


# Errors of the section for the API


@pytest.mark.parametrize("where", ["http_request", "rows_of"])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (partial(getitem, {}, "rows"), "KeyError"),
        (partial(getitem, None, 0), "TypeError"),
        (partial(int, "jo@example.com"), "ValueError"),
        (partial(truediv, 1, 0), "ZeroDivisionError"),
        (partial(json.loads, "{"), "JSONDecodeError"),  # raised in another file
        (partial(open, "/no/such/jo@example.com"), "FileNotFoundError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_raises_is_an_error_that_names_the_exception_and_the_line(
    api, sync, monkeypatch, where, call, name
):
    def broken(*args):
        return call()

    monkeypatch.setattr(connector, where, broken)
    line = broken.__code__.co_firstlineno + 1
    with pytest.raises(SyncError, match=rf"{name}\b.*\b{line}\b") as caught:
        sync()
    assert "base_url" not in str(caught.value)
    assert "jo@" not in str(caught.value)
    assert len(api.requests) == (where == "rows_of")


@pytest.mark.parametrize("body", [{"users": [], "total": 3, "jo@example.com": 1}, [1], "x", None])
def test_an_answer_without_the_rows_says_which_fields_it_has(api, sync, body):
    api.answers = always((200, {}, json.dumps(body)))
    line = connector.rows_of.__code__.co_firstlineno + 1
    name = "KeyError" if isinstance(body, dict) else "TypeError"
    with pytest.raises(SyncError, match=rf"{name}\b.*\b{line}\b") as caught:
        sync()
    for field in body if isinstance(body, dict) else ():
        assert (field in str(caught.value)) == field.isidentifier()
    assert "base_url" not in str(caught.value)
    assert len(api.requests) == 1


@pytest.mark.parametrize("where", ["http_request", "rows_of"])
def test_its_own_errors_are_those_of_the_sync(api, sync, monkeypatch, clock, where):
    works = getattr(connector, where)
    errors = [Unavailable("half moon"), SyncError("full moon")]

    def fail(*args):
        if errors and api.requests:
            raise errors.pop(0)
        return works(*args)

    api.add(250)
    monkeypatch.setattr(connector, where, fail)
    with pytest.raises(SyncError, match="full moon"):
        sync()
    assert len(clock.waits) == 1
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError(), OverflowError(), ZeroDivisionError()], ids=repr
)
def test_no_error_of_the_total_stops_a_sync(api, sync, monkeypatch, error):
    def broken(body, headers):
        raise error

    monkeypatch.setattr(connector, "total_of", broken)
    api.add(250)
    assert set(sync().table) == set(api.users)
