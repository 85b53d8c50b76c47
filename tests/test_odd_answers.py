"""Answers of real APIs that are not as the description says, and that a sync reads all the same."""

import json
from datetime import timedelta
from email.utils import format_datetime

import pytest
import requests

import memory_api
from connector import SyncError
from memory_api import (
    CREATED_AT,
    EPOCH,
    ID,
    ROWS,
    UPDATED_AT,
    URL,
    cut_to_day,
    cut_to_minute,
    envelope,
    names,
    timestamp,
)

# Values


@pytest.mark.parametrize("value", ["", False, None])
def test_an_empty_time_is_null_without_a_warning(api, sync, capsys, value):
    api.add(250, **{CREATED_AT: value})
    table = sync().table
    assert {row[CREATED_AT] for row in table.values()} == {None}
    assert '"WARNING"' not in capsys.readouterr().out


@pytest.mark.parametrize(
    "value",
    [
        "0000-00-00 00:00:00",
        "N/A",
        1700000000,
        1.5,
        True,
        {},
        [2024],
        "9999-12-31T23:59:59-05:00",
        "0001-01-01T00:00:00+02:00",
        "2024-02-30",
        "20240115T103000Z",
        "2024-W03-1",
    ],
    ids=str,
)
def test_a_time_that_cannot_be_read_is_null_with_one_warning_a_sync(api, sync, capsys, value):
    api.add(250, **{CREATED_AT: value})
    for _ in range(2):
        table = sync({}, parallel_requests="4").table
        assert {row[CREATED_AT] for row in table.values()} == {None}
        output = capsys.readouterr().out
        assert output.count('"WARNING"') == bool(value)
        assert (CREATED_AT in output) == bool(value)


def test_a_half_emoji_and_bytes_that_are_no_text_are_replaced(api, sync):
    user = {ID: "1", "name": "Jo \ud83d\ude00 \ud83d", UPDATED_AT: "2024-01-15"}
    api.answers = {1: (200, {}, json.dumps(envelope([user], 1)))}
    assert sync().table["1"]["name"] == "Jo \U0001f600 ?"
    body = json.dumps(envelope([user | {"name": "Jo X"}], 1)).encode().replace(b"X", b"\xff")
    api.answers = {2: (200, {}, body)}
    assert sync({}).table["1"]["name"] == "Jo \ufffd"


# Envelopes and statuses


@pytest.mark.parametrize(
    "answer", [{ROWS: None, "total": 0}, {ROWS: {}}, (200, {}, "{}"), (204, {}, "")], ids=str
)
def test_an_empty_page_may_have_no_list(api, sync, verdict, answer):
    api.answers = {1: answer, 2: answer}
    assert sync({"last_updated_at": "2024-01-15"}).table == {}
    assert verdict() is None
    assert len(api.requests) == 2


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
    api.answers = {1: (200, {"Content-Type": content_type}, body.encode(encoding))}
    assert sync().table["1"]["name"] == name


@pytest.mark.parametrize(
    "answer",
    [
        requests.ConnectionError("refused"),
        requests.ConnectTimeout(),
        requests.exceptions.ChunkedEncodingError(),
        requests.exceptions.ContentDecodingError(),
        *[(status, {}, "") for status in (408, 425, 429, 500, 501, 502, 503, 504)],
        *[(status, {}, "") for status in (507, 520, 521, 522, 524, 525, 527, 529, 530, 598)],
        *[(status, {"Retry-After": "45.5"}, "") for status in (202, 401, 403, 420, 503)],
        (200, {}, '{"data": ['),
        (200, {}, ""),
        (200, {"Content-Type": "text/html"}, "<html>"),
    ],
    ids=str,
)
def test_an_answer_that_may_pass_is_waited_for(api, sync, clock, answer):
    api.add(250)
    api.answers = {1: answer, 3: answer}
    assert set(sync().table) == set(api.users)
    assert len(clock.waits) == 2
    assert min(clock.waits) >= (45.5 if "45.5" in str(answer) else 1)
    assert {request["limit"] for request in api.requests} == {"100"}


@pytest.mark.parametrize("seconds", [-30, 0, 20, 300])
def test_retry_after_may_be_a_date_by_the_clock_of_the_api(api, sync, clock, seconds):
    api.add(3)
    until = api.now + timedelta(seconds=seconds + 1)  # a request takes one
    api.answers = {1: (503, {"Retry-After": format_datetime(until, usegmt=True)}, "")}
    sync()
    assert max(seconds, 1) <= clock.waits[0] <= max(seconds, 4)


@pytest.mark.parametrize("retry_after", ["soon", "-1", "nan", "", "1e400", "inf"])
def test_a_retry_after_that_cannot_be_read_is_practically_none(api, sync, clock, retry_after):
    api.add(3)
    api.answers = {1: (503, {"Retry-After": retry_after}, "")}
    assert len(sync().table) == 3
    assert clock.waits[0] < 4


def test_a_limiter_that_sends_retry_after_with_every_answer_is_read(api, sync, clock):
    api.add(250)
    api.limit_max = 50
    answer = api.answer

    def limited(request):
        status, headers, body = answer(request)
        return status, headers | {"Retry-After": "3000"}, body

    api.answer = limited
    assert set(sync().table) == set(api.users)
    assert clock.waits == []


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "1"}, {"Retry-After": "0.5"}])
@pytest.mark.parametrize("asked_before", [0, 60])
def test_the_tries_of_a_page_outlast_a_limit_per_minute(api, sync, clock, headers, asked_before):
    """The API answers 60 requests a minute, and does not say when the next minute begins."""
    api.add(1500)
    minutes = {0: asked_before}

    def count():
        minute = clock.now // 60
        minutes[minute] = minutes.get(minute, 0) + 1
        return (429, headers, "") if minutes[minute] > 60 else None

    api.before = [count] * 500
    assert len(sync(page_size="10").table) == 1500


# Pages that are too large, or too slow


def slow(api, most: int, answer):
    """Have pages of more rows than that answered with a timeout, or otherwise."""
    page = api.page

    def answer_page(parameters):
        is_slow = int(parameters["limit"]) > most
        if is_slow and isinstance(answer, Exception):
            raise answer
        return answer if is_slow else page(parameters)

    api.page = answer_page


@pytest.mark.parametrize(
    ("answer", "limits"),
    [
        (requests.ReadTimeout(), [100, 100, 50, 50, 25]),
        ((504, {}, ""), [100, 100, 50, 50, 25]),
        ((524, {}, ""), [100, 100, 50, 50, 25]),
        ((413, {"Retry-After": "5"}, ""), [100, 100, 50, 50, 25]),
        ((400, {}, "limit"), [100, 50, 25]),
        ((422, {}, "limit"), [100, 50, 25]),
    ],
    ids=str,
)
def test_a_page_that_is_too_large_is_asked_for_with_half_as_many_rows(
    api, sync, capsys, answer, limits
):
    api.add(120)
    slow(api, 30, answer)
    assert set(sync().table) == set(api.users)
    asked = [int(request["limit"]) for request in api.requests]
    assert asked[: len(limits)] == limits
    assert set(asked[len(limits) :]) == {25}
    assert "25 rows" in capsys.readouterr().out


@pytest.mark.parametrize("ties", [False, True])
def test_a_page_in_the_middle_may_be_too_large(api, sync, ties):
    api.add(500, updated_at=EPOCH if ties else None)
    api.refusal = lambda p: (
        (413, {}, "") if int(p["offset"]) > 150 and int(p["limit"]) > 50 else None
    )
    assert set(sync().table) == set(api.users)
    deep = [request["limit"] for request in api.requests if int(request["offset"]) > 150]
    assert deep[:2] == ["100", "100"]
    assert set(deep[2:]) == {"50"}


def test_no_outage_makes_pages_smaller_than_a_quarter(api, sync, clock):
    api.add(900)
    api.before = [lambda: (504, {}, "") if clock.now % 200 < 90 else None for _ in range(400)]
    api.page_lengths = lambda: clock.sleep(7) or 100  # an answer takes a while
    assert set(sync().table) == set(api.users)
    assert min(int(request["limit"]) for request in api.requests) == 25


@pytest.mark.parametrize("status", [500, 502, 503, 521])
def test_other_failures_make_no_page_smaller(api, sync, status):
    api.add(120)
    api.answers = dict.fromkeys((2, 3, 4, 5, 6), (status, {}, ""))
    assert set(sync().table) == set(api.users)
    assert {request["limit"] for request in api.requests} == {"100"}


# Times


STYLES = {
    "space": lambda time: time.strftime("%Y-%m-%d %H:%M:%S"),
    "zone": lambda time: (time + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S.123456+02:00"),
    "nanoseconds": lambda time: time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z"),
    "minutes": lambda time: time.strftime("%Y-%m-%dT%H:%MZ"),
    "days": lambda time: time.strftime("%Y-%m-%d"),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("lookback", ["10", "90", "9000"])
def test_an_api_that_compares_times_as_texts_loses_nothing(api, sync, style, lookback):
    api.compares_texts, api.stamp, api.seconds_per_request = True, STYLES[style], 0
    api.tie_order = lambda user: user[ID]
    for number in range(300):
        api.add(1, updated_at=api.now - timedelta(minutes=300 - number))
    api.before = [None, lambda: api.touch("1", "2"), None, lambda: api.touch("3", "150")]
    state = sync(lookback_seconds=lookback).state
    asked = len(api.requests)
    api.now += timedelta(hours=2)
    api.touch(*[str(number) for number in range(20, 50)])
    assert names(sync(lookback_seconds=lookback).table) == names(api.users)
    assert api.requests[asked]["updated_since"] == state["last_updated_at"]


@pytest.mark.parametrize("start", ["2024-01-15 10:30:00", "2024-01-15", "2024-01-15T12:30+02:00"])
def test_a_start_date_is_sent_as_it_was_written_and_in_the_first_sync_only(api, sync, start):
    api.add(300, updated_at=EPOCH + timedelta(days=20))
    sync(start_date=start)
    assert api.requests[0]["updated_since"] == start
    asked = len(api.requests)
    sync(start_date=start)
    assert start not in [request["updated_since"] for request in api.requests[asked:]]


# Totals, filters and clocks


FORMS = ["250", 250.0, "250.0", 0, "", 2.5, "1,250", {"value": 250}, [250], 250, 10**30]
TOTALS = memory_api.TOTALS | {
    **{repr(form): lambda total, rows, form=form: form for form in FORMS},
    "capped": lambda total, rows: min(total, 120),
}


@pytest.mark.parametrize(("parallel", "page_cap"), [("1", None), ("8", 30)])
@pytest.mark.parametrize("total", TOTALS)
def test_every_row_is_read_and_the_form_passes_whatever_the_total_says(
    api, sync, verdict, total, parallel, page_cap
):
    api.add(190)
    api.add(60, updated_at=EPOCH + timedelta(days=1))
    api.total, api.page_cap = TOTALS[total], page_cap
    assert set(sync(parallel_requests=parallel).table) == set(api.users)
    api.touch("7", "190", "250")
    assert names(sync(parallel_requests=parallel).table) == names(api.users)
    assert verdict() is None


@pytest.mark.parametrize("total", ["left out", "null", "negative", "capped", "''"])
def test_a_total_that_promises_no_more_rows_is_no_warning(api, sync, capsys, total):
    api.add(250)
    api.total = TOTALS[total]
    sync()
    assert '"WARNING"' not in capsys.readouterr().out


@pytest.mark.parametrize("excess", [1, 40, 5000])
def test_a_total_that_promises_rows_that_do_not_come_is_a_warning(api, sync, capsys, excess):
    api.add(250)
    api.total = lambda total, rows: 250 + excess
    assert set(sync().table) == set(api.users)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if '"WARNING"' in line]
    assert str(250 + excess) in warning


def test_a_total_that_ignores_the_filter_may_come_with_timeouts_behind_the_last_row(api, sync):
    api.add(500)
    api.counts_all = True
    state = {"last_updated_at": api.updated_at("481")}
    api.refusal = lambda p: (504, {}, "") if p["offset"] != "0" and not api.page(p)[ROWS] else None
    assert set(sync(state).table) == set(map(str, range(481, 501)))


@pytest.mark.parametrize("changes", [0, 5])
def test_a_sync_ends_though_the_total_ignores_the_filter_and_rows_change_all_the_time(
    api, sync, changes
):
    api.add(5000)
    api.counts_all = True
    victims = iter(range(1, 5000))
    page = api.page

    def change_and_page(parameters):
        assert len(api.requests) < 400
        api.touch(*(str(next(victims)) for _ in range(changes)))
        return page(parameters)

    api.page = change_and_page
    state = {"last_updated_at": timestamp(EPOCH + timedelta(seconds=4990))}
    table = sync(state).table
    assert changes or set(table) == {str(number) for number in range(4990, 5001)}


def test_rows_stamped_hours_ahead_of_the_clock_are_all_read(api, sync):
    """Local times marked as UTC, as the playground writes them."""
    for number in range(120):
        api.add(100, updated_at=api.now + timedelta(hours=9, seconds=number))
    assert set(sync().table) == set(api.users)


def test_rows_are_all_read_though_the_date_header_is_a_year_behind(api, sync):
    api.add(12_000)
    api.skew = timedelta(days=-365)
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize(("count", "changes", "most"), [(14_000, 7, 300), (3_000, 30, 100)])
def test_a_filter_that_cuts_times_to_the_day_is_read_in_few_requests(
    api, sync, count, changes, most
):
    api.add(count)
    api.cut = cut_to_day
    api.now = EPOCH + timedelta(hours=23)
    for number in range(changes):
        api.before += [None] * 9 + [lambda number=number: api.touch(str(number * 5 + 1))]
    assert names(sync().table) == names(api.users)
    assert len(api.requests) <= most


def test_a_filter_that_cuts_times_to_the_day_may_come_with_refused_depths(api, sync):
    for day in range(4):
        api.add(6000, updated_at=EPOCH + timedelta(days=day, hours=7))
    api.cut = cut_to_day
    api.offset_max = 9_900
    assert set(sync().table) == set(api.users)


def test_a_filter_that_cuts_times_to_the_minute_may_come_with_refused_depths(api, sync):
    for second in range(60):
        api.add(400, updated_at=EPOCH + timedelta(seconds=second))
    api.cut = cut_to_minute
    api.offset_max = 9_900
    with pytest.raises(SyncError, match="offset"):
        sync()


# Errors that come as answers


@pytest.mark.parametrize(
    "url", ["http://a..b/users", "http://" + "a" * 70 + ".com", "http://[::1]x"], ids=str
)
def test_an_address_that_no_host_can_have_is_an_error_that_names_base_url(sync, url):
    with pytest.raises((SyncError, ValueError), match="base_url"):
        sync(base_url=url)


def test_a_smaller_page_size_is_advised_only_after_timeouts_and_5xx(api, sync):
    for answer, is_advised in [
        (requests.ReadTimeout(), True),
        ((502, {}, ""), True),
        ((524, {}, ""), True),
        ((413, {}, ""), True),
        ((429, {}, ""), False),
        ((403, {"Retry-After": "1"}, ""), False),
        (requests.ConnectionError(), False),
        ((200, {}, "<html>"), False),
    ]:
        api.answers = dict.fromkeys(range(len(api.requests), len(api.requests) + 20), answer)
        with pytest.raises(SyncError) as caught:
            sync(base_url=URL)
        assert ("page_size" in str(caught.value)) == is_advised
