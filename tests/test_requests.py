"""How requests are sent: ahead and how far, their pace, retries and page sizes, connections, proxies, kills and Ctrl-C."""

import random
import re
import signal
import ssl
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from time import sleep
from types import SimpleNamespace

import pytest
import requests
import trustme

import connector
import http_server
import sdk
from connector import SyncError
from memory_api import EPOCH, ID, ROWS, TOTALS, UPDATED_AT, MemoryApi, always

PARALLEL = [1, 2, 4, 8]


@pytest.fixture
def traffic(api):
    """How many requests are at the API at a time: each waits there until as many others have come as may."""
    traffic = SimpleNamespace(now=0, most=0, wait_for=1)
    lock = threading.Condition()
    answer = api.answer

    def counted(request):
        with lock:
            traffic.now += 1
            traffic.most = max(traffic.most, traffic.now)
            lock.notify_all()
            lock.wait_for(lambda: traffic.most >= traffic.wait_for, timeout=0.1)
        try:
            return answer(request)
        finally:
            with lock:
                traffic.now -= 1

    api.answer = counted
    return traffic


@pytest.mark.parametrize("parallel", PARALLEL)
def test_as_many_requests_are_in_flight_as_may_be_and_never_more(api, traffic, sync, parallel):
    api.add(500)
    api.before = [None] * 20 + [lambda: api.touch("1", "2")] + [None] * 10
    api.before += [lambda: api.touch("3", "4")]
    traffic.wait_for = parallel
    assert set(sync(page_size="5", parallel_requests=str(parallel)).table) == set(api.users)
    assert traffic.most == parallel


@pytest.mark.parametrize("parallel", [1, 8])
@pytest.mark.parametrize(
    ("count", "page_size"), [(0, 100), (1, 100), (100, 100), (2500, 100), (2500, 37), (40, 2)]
)
def test_a_full_sync_reads_rows_in_order_and_asks_for_no_more_pages_than_it_must(
    api, sync, monkeypatch, parallel, count, page_size
):
    monkeypatch.setattr(connector, "WINDOW_ROWS", 1000)
    api.add(count)
    upserts = sync(page_size=str(page_size), parallel_requests=str(parallel)).all("upsert")
    assert [row[ID] for row in upserts] == list(api.users)
    windows = len({request.get("updated_since") for request in api.requests})
    assert len(api.requests) <= count / max(page_size - 2, 1) + windows
    assert all(int(request["offset"]) + page_size <= 1000 for request in api.requests)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_no_more_is_read_ahead_than_a_few_pages(api, sync, destination, parallel, monkeypatch):
    api.add(500)
    ahead = []
    checkpoint = destination.checkpoint
    monkeypatch.setattr(
        destination,
        "checkpoint",
        lambda state: ahead.append(len(api.requests) - len(ahead) - 1) or checkpoint(state),
    )
    sync(page_size="5", parallel_requests=str(parallel))
    assert max(ahead) <= 2 * parallel


def test_what_was_read_before_an_error_is_delivered_first(api, sync, destination):
    api.add(300)
    api.refusal = lambda p: (
        (401, {}, "") if any(int(row[ID]) > 180 for row in api.page(p)[ROWS]) else None
    )
    with pytest.raises(SyncError, match="401"):
        sync(page_size="10", parallel_requests="8")
    assert 160 < len(destination.table) <= 180
    assert list(destination.table) == list(api.users)[: len(destination.table)]


def test_a_wait_that_the_api_asks_for_holds_back_every_request(api, traffic, sync, clock):
    api.add(300)
    traffic.wait_for = 4
    times = []
    api.answers = {9: (429, {"Retry-After": "30"}, "")}
    answer = api.answer
    api.answer = lambda request: times.append(clock.now) or answer(request)
    sync(page_size="10", parallel_requests="4")
    assert times.count(0) <= 9 + 2 * 3  # those in flight, and those sent before its turn came
    assert all(time == 0 or time >= 30 for time in times)


def test_with_one_request_at_a_time_writing_and_reading_alternate(api, sync, destination):
    api.add(500)
    asked = []
    upsert = destination.upsert
    destination.upsert = lambda table, row: asked.append(len(api.requests)) or upsert(table, row)
    sync(page_size="50", parallel_requests="1")
    assert [asked[0], asked[50], asked[99]] == [1, 2, 3]


@pytest.mark.parametrize("seconds", [1, 250])
@pytest.mark.parametrize("parallel", PARALLEL)
def test_an_api_that_takes_one_request_in_some_seconds_is_read_to_its_end(
    api, sync, clock, parallel, seconds
):
    """All that wait together would be refused together, but for one."""
    api.add(600)
    free_at, answer = [0.0], api.answer

    def limited(request):
        if clock.now < free_at[0]:
            return 429, {"Retry-After": str(seconds)}, ""
        free_at[0] = clock.now + seconds
        return answer(request)

    api.answer = limited
    assert len(sync(page_size="20", parallel_requests=str(parallel)).table) == 600


def test_pages_in_flight_that_failed_together_are_waited_for_once(api, sync, clock):
    api.add(300)
    answer = api.answer
    api.answer = lambda request: (
        (503, {"Retry-After": "10"}, "")
        if len(api.requests) > 0 and clock.now < 10
        else answer(request)
    )
    sync(parallel_requests="4")
    assert clock.waits == [10]


@pytest.mark.parametrize("parallel", PARALLEL)
def test_pages_that_a_new_window_has_made_useless_are_neither_waited_for_nor_requested_again(
    api, sync, clock, parallel
):
    api.add(900)
    api.refusal = lambda p: (
        (503, {"Retry-After": "100"}, "")
        if int(p["offset"]) > 390 and "updated_since" not in p
        else None
    )
    api.before = [None] * 3 + [lambda: api.touch("1", "2", "3")]
    assert set(sync(parallel_requests=str(parallel)).table) == set(api.users)
    assert clock.waits == []
    assert len({tuple(request.items()) for request in api.requests}) == len(api.requests)


def sizes(api) -> list:
    return [int(request["limit"]) for request in api.requests]


# In simulated time


@pytest.fixture
def simulated(api, clock, monkeypatch):
    """A server in front of the API, on which a request takes `seconds` of the clock.

    It has some `workers`: more requests wait for one, up to the 60 s after which they time out.
    With `most` requests it answers 503 to more. `in_flight` says how many there were, with each.
    `meanwhile` is called with the seconds that one is waited for.
    """
    simulated = SimpleNamespace(seconds=1, workers=99, most=99, in_flight=[], requests=[])
    simulated.meanwhile = lambda seconds: None
    thread, answer = threading.local(), api.answer

    class Request(Future):
        def __init__(self):
            super().__init__()
            simulated.requests = [other for other in simulated.requests if other.end > clock.now]
            ends = sorted(other.end for other in simulated.requests)
            simulated.in_flight.append(len(ends) + 1)
            start = ends[-simulated.workers] if len(ends) >= simulated.workers else clock.now
            self.end, self.fault = start + simulated.seconds, None
            if len(ends) >= simulated.most:
                self.end, self.fault = clock.now, (503, {}, "")
            if self.end > clock.now + 60:
                self.fault = requests.ReadTimeout()
            self.answered = min(self.end, clock.now + 60)
            simulated.requests.append(self)

        def cancel(self):
            return False  # it has been sent

        def set_running_or_notify_cancel(self):
            thread.request = self
            return super().set_running_or_notify_cancel()

        def done(self):
            return self.answered <= clock.now

        def result(self):
            simulated.meanwhile(max(self.answered - clock.now, 0))
            clock.now = max(clock.now, self.answered)
            return super().result()

    def answer_or_fail(request):
        if isinstance(thread.request.fault, Exception):
            raise thread.request.fault
        return thread.request.fault or answer(request)

    api.answer = answer_or_fail
    monkeypatch.setattr(connector, "Future", Request)
    return simulated


@pytest.mark.parametrize("updated_at", [None, EPOCH], ids=["", "one time"])
@pytest.mark.parametrize("page_cap", [None, 30])
@pytest.mark.parametrize("total", ["as it is", "left out"])
def test_a_list_at_rest_is_read_eight_pages_at_a_time(
    api, sync, clock, simulated, total, page_cap, updated_at
):
    api.add(1500, updated_at=updated_at)
    api.total, api.page_cap = TOTALS.get(total, api.total), page_cap
    sync(page_size="50", parallel_requests="")
    assert max(simulated.in_flight[:3]) <= 2
    assert clock.now <= len(api.requests) / 8 + 5  # until there are eight


def test_where_writing_takes_longer_than_reading_no_more_requests_are_in_flight_than_at_first(
    api, sync, clock, simulated, destination, monkeypatch
):
    api.add(3000)
    checkpoint = destination.checkpoint
    monkeypatch.setattr(
        destination, "checkpoint", lambda state: clock.sleep(2) or checkpoint(state)
    )
    sync(parallel_requests="8")
    assert max(simulated.in_flight) <= 3


@pytest.mark.slow
def test_a_few_ties_slow_reading_ahead_down_only_a_little(api, sync, clock, simulated):
    api.add(10_000)
    sync(parallel_requests="8")
    calm = clock.now
    api.users.clear()
    dice = random.Random(1)
    while len(api.users) < 10_000:
        count = dice.randint(2, 8) if dice.random() < 0.02 else 1
        api.add(count, updated_at=EPOCH + timedelta(seconds=len(api.users)))
    sync({}, parallel_requests="8")
    assert clock.now - calm <= 1.6 * calm


@pytest.mark.slow
@pytest.mark.parametrize("when", ["answered", "written"])
@pytest.mark.parametrize("changes", [5, 30, 150])
def test_a_list_that_moves_with_each_page_is_sent_few_requests_in_vain(
    api, sync, simulated, destination, monkeypatch, changes, when
):
    def move(pages=1.0):
        wait(simulated.requests)
        api.touch(*[user[ID] for user in api.sorted_users()[: int(pages * changes)]])

    checkpoint = destination.checkpoint
    if when == "answered":
        simulated.meanwhile = move
    else:
        monkeypatch.setattr(destination, "checkpoint", lambda state: move() or checkpoint(state))
    asked = []
    for parallel in ("1", "8"):
        api.users.clear()
        api.requests.clear()
        api.add(1000)
        sync({}, parallel_requests=parallel)
        asked.append(len(api.requests))
    assert asked[1] <= 1.6 * asked[0]


@pytest.mark.parametrize(
    "failure",
    [(429, {"Retry-After": "5"}, ""), (200, {}, "<html>"), requests.ReadTimeout()],
    ids=str,
)
def test_any_failure_halves_what_may_be_in_flight_and_pages_without_one_win_it_back(
    api, sync, simulated, failure
):
    api.add(3000)
    api.answers = {40: failure}
    assert set(sync(page_size="10", parallel_requests="8").table) == set(api.users)
    first, after, last = (simulated.in_flight[i:j] for i, j in ((0, 40), (52, 64), (300, None)))
    assert (max(first), max(after), max(last)) == (8, 4, 8)


def test_a_server_that_answers_503_above_four_requests_is_read_at_nearly_that_pace(
    api, sync, clock, simulated
):
    api.add(10_000)
    simulated.seconds, simulated.most = 0.1, 4
    assert set(sync(parallel_requests="8").table) == set(api.users)
    assert clock.now < 10


def test_a_server_that_takes_one_request_at_a_time_is_not_asked_into_timeouts(
    api, sync, clock, simulated
):
    api.add(10_000)
    simulated.seconds, simulated.workers = 10, 1
    assert set(sync(parallel_requests="8").table) == set(api.users)
    assert clock.now <= 2.5 * 10 * 10_000 / 98


# Retries


def test_a_page_is_tried_seven_times_with_growing_waits_that_jitter(api, sync, clock):
    api.add(250)
    api.answers = dict.fromkeys(range(2, 99), (503, {}, ""))
    with pytest.raises(SyncError, match="503"):
        sync()
    assert len(api.requests) == 1 + 7
    for seconds, least in zip(clock.waits, [2, 4, 8, 16, 32, 60], strict=True):
        assert least <= seconds <= least + 1
    assert all(seconds != int(seconds) for seconds in clock.waits[:5])


def test_every_retry_is_logged_with_its_cause(api, sync, lines):
    api.add(1)
    api.answers = {1: (429, {"Retry-After": "7"}, ""), 2: requests.ReadTimeout()}
    sync()
    limited, slow = lines("WARNING")
    assert "429" in limited
    assert "7 s" in limited
    assert "api.example.com" in slow


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
    api.answers = always(answer)
    with pytest.raises(SyncError):
        sync()
    assert len(api.requests) == 3


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
    api.add(900)
    minutes = {0: asked_before}

    def count():
        minute = clock.now // 60
        minutes[minute] = minutes.get(minute, 0) + 1
        return (429, headers, "") if minutes[minute] > 60 else None

    api.before = [count] * 500
    assert len(sync(page_size="10").table) == 900


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
        ((200, {}, '{"data": [{"id": "1'), [100, 100, 50, 50, 25]),
        ((400, {}, "limit"), [100, 50, 25]),
        ((422, {}, "limit"), [100, 50, 25]),
    ],
    ids=str,
)
def test_a_page_that_is_too_large_is_asked_for_with_half_as_many_rows(
    api, sync, lines, answer, limits
):
    api.add(120)
    slow(api, 30, answer)
    assert set(sync().table) == set(api.users)
    assert sizes(api)[: len(limits)] == limits
    assert any(re.search(r"\b25\b", line) for line in lines(""))


@pytest.mark.parametrize("most", [30, 50, 99])
def test_a_page_size_that_is_refused_is_one_line_that_says_what_was_accepted(
    api, sync, lines, destination, most
):
    api.add(250)
    api.limit_max = most
    assert set(sync(parallel_requests="8").table) == set(api.users)
    _, line, _ = lines("")
    assert str(sizes(api)[-1]) in line
    assert destination.warnings == []


def test_a_timeout_after_a_page_size_was_refused_is_a_failure_like_others(api, sync):
    api.add(120)
    api.limit_max = 60
    api.answers = {2: requests.ReadTimeout(), 3: (504, {}, "")}
    assert set(sync().table) == set(api.users)


@pytest.mark.parametrize(("parallel", "ties"), [("1", True), ("8", False)])
def test_pages_that_slow_answers_have_made_smaller_become_larger_again(api, sync, ties, parallel):
    api.add(6000, updated_at=EPOCH if ties else None)
    api.before = [lambda: (504, {}, "")] * 4
    assert set(sync(parallel_requests=parallel).table) == set(api.users)
    assert sizes(api)[4] < sizes(api)[-1] == 100
    assert len(api.requests) < 180


@pytest.mark.parametrize("parallel", ["1", "8"])
def test_an_api_that_is_too_slow_for_large_pages_is_seldom_asked_for_them(api, sync, parallel):
    api.add(3000)
    slow(api, 30, requests.ReadTimeout())
    assert set(sync(parallel_requests=parallel).table) == set(api.users)
    assert sum(size > 30 for size in sizes(api)) <= 4 + 6 * int(parallel)


def test_a_page_in_the_middle_may_be_too_large(api, sync):
    api.add(500)
    api.refusal = lambda p: (
        (413, {}, "")
        if int(p["limit"]) > 50 and any(int(row[ID]) > 250 for row in api.page(p)[ROWS])
        else None
    )
    assert set(sync().table) == set(api.users)
    assert sizes(api)[:2] == [100, 100]
    assert 50 in sizes(api)


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


# Connections, and processes that end


SYNC = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import connector, sdk
folder = Path(sys.argv[3])
try:
    sdk.run(connector.connector, folder, {"base_url": sys.argv[4], "page_size": "10"})
finally:
    (folder / "ended").touch()
"""


@pytest.fixture
def server():
    api = MemoryApi()
    api.add(240)
    with http_server.serve(api) as server:
        yield server


def start_sync(folder: Path, url: str) -> subprocess.Popen:
    """Start a sync in a process of its own, with the SDK's runner."""
    tests = Path(__file__).resolve().parent
    return subprocess.Popen(
        [sys.executable, "-c", SYNC, str(tests), str(tests.parent), str(folder), url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("fault", ["reset", "cut", "stall"])
def test_a_fault_at_the_socket_costs_another_try_and_no_user(
    server, sync, clock, monkeypatch, fault
):
    monkeypatch.setattr(connector, "READ_TIMEOUT", 0.3)
    server.faults = {1: fault, 4: fault}
    assert set(sync(base_url=server.url, parallel_requests="4").table) == set(server.api.users)
    assert len(clock.waits) == 2


def test_a_server_that_is_not_there_is_an_error_that_says_so(sync):
    refused = r"127\.0\.0\.1.*refused.*base_url"
    with http_server.refused_url() as url, pytest.raises(SyncError, match=refused):
        sync(base_url=url)


def test_connections_are_kept_alive_and_no_more_than_the_requests_at_a_time(server, sync):
    connections = []
    verify = server.verify_request
    server.verify_request = lambda *args: connections.append(args) or verify(*args)
    sync(base_url=server.url, page_size="2", parallel_requests="3")
    assert server.asked > 200
    assert len(connections) <= 3


def peers(server) -> list:
    """The connections that requests come by, in their order, from now on."""
    found, answer = [], server.api.answer
    server.api.answer = lambda request: found.append(request.peer) or answer(request)
    return found


@pytest.mark.parametrize(
    "failure", [(503, {}, ""), (429, {}, ""), (200, {}, "<html>"), (504, {}, "")], ids=str
)
def test_after_a_failed_try_the_connection_is_a_new_one(server, sync, clock, failure):
    server.api.answers = {3: failure}
    found = peers(server)
    sync(base_url=server.url, page_size="50")
    assert len(set(found[:3])) == len(set(found[3:])) == 1
    assert found[2] != found[3]


def test_no_cookies_are_sent_back(server, sync):
    sent, answer = [], server.api.answer

    def with_cookie(request):
        status, headers, body = answer(request)
        sent.append(request.headers.get("Cookie"))
        return status, headers | {"Set-Cookie": "session=1; Path=/"}, body

    server.api.answer = with_cookie
    sync(base_url=server.url)
    assert set(sent) == {None}
    assert len(sent) > 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on Windows")
def test_a_sync_that_is_killed_and_started_again_ends_with_the_same_table(server, tmp_path):
    killed = []
    for at in (1, 12, 18):  # requests: by the last ones, some pages are written
        server.asked = 0
        process = start_sync(tmp_path, server.url)
        server.faults = {at: process.kill}
        killed.append(process.wait(timeout=60))
    assert set(killed) == {-signal.SIGKILL}
    server.faults = {}
    server.asked = 0
    assert start_sync(tmp_path, server.url).wait(timeout=60) == 0
    assert {id: row["name"] for id, row in sdk.table(tmp_path).items()} == {
        id: user["name"] for id, user in server.api.users.items()
    }
    assert sdk.state(tmp_path) == {"last_updated_at": server.api.updated_at("240")}
    assert server.asked < 240 / 10  # what had been checkpointed is not read again


@pytest.mark.slow
def test_a_sync_that_fails_ends_though_another_request_is_stalled(server, tmp_path):
    server.faults = {2: "stall", 3: "stall", 4: "stall", 5: "stall"}
    server.api.answers = {1: lambda page: page | {ROWS: [*page[ROWS][:9], {ID: None}]}}
    assert start_sync(tmp_path, server.url).wait(timeout=30) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT can be sent to a process there")
def test_a_sync_that_is_interrupted_ends_though_a_request_is_stalled(server, tmp_path):
    answer, stalled = server.api.answer, Event()

    def answer_first_pages(request):
        if server.asked > 4:
            stalled.set()
            server.ended.wait()
        return answer(request)

    server.api.answer = answer_first_pages
    process = start_sync(tmp_path, server.url)
    assert stalled.wait(timeout=30)
    state = tmp_path / "files" / "state.json"
    while not state.exists():  # until its first page is written
        assert process.poll() is None
        sleep(0.1)
    for _ in range(15):  # the SDK may swallow a SIGINT, if it is still writing
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        if (tmp_path / "ended").exists():
            break
    assert process.wait(timeout=5) != 0  # of the 60 s that the answer would be waited for
    times = [user[UPDATED_AT] for user in server.api.users.values()]
    assert sdk.state(tmp_path)["last_updated_at"] in times


# Proxies and certificates of the environment


@pytest.fixture
def environment(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_a_proxy_of_the_environment_is_used(sync, environment, monkeypatch):
    api = MemoryApi()
    api.add(30)
    with http_server.serve(api) as proxy:  # it is asked with the whole address, and answers itself
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert set(sync(base_url="http://users.invalid/users").table) == set(api.users)
        assert proxy.asked > 0


def test_a_proxy_that_fails_is_named(sync, environment, monkeypatch):
    with http_server.refused_url() as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        with pytest.raises(SyncError, match=r"users\.invalid.*proxy|proxy.*users\.invalid"):
            sync(base_url="http://users.invalid/users")


def test_an_https_proxy_is_asked_to_connect(sync, environment, monkeypatch):
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            asked.append(self.path)
            self.send_error(502)

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        Thread(target=proxy.serve_forever, args=[0.01], daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        with pytest.raises(SyncError, match=r"proxy.*users\.invalid|users\.invalid.*proxy"):
            sync(base_url="https://users.invalid/users")
        proxy.shutdown()
    assert asked[0] == "users.invalid:443"


def test_a_certificate_authority_of_ones_own_is_honored(sync, environment, monkeypatch, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    api = MemoryApi()
    api.add(3)
    with http_server.Server(api) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        url = f"https://localhost:{server.server_port}/users"
        with pytest.raises(SyncError, match=r"localhost.*certificate"):
            sync(base_url=url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        assert len(sync(base_url=url).table) == 3
        server.shutdown()


# Memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_users(monkeypatch):
    monkeypatch.setattr(
        connector, "op", SimpleNamespace(upsert=lambda table, row: None, checkpoint=dict)
    )
    monkeypatch.setattr(connector.log, "LOG_LEVEL", connector.log.Level.INFO)

    def peak(count: int) -> int:
        api = MemoryApi()
        api.add(count)
        with http_server.serve(api) as server:
            tracemalloc.start()
            try:
                connector.update({"base_url": server.url, "parallel_requests": "8"}, {})
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    # bytes; were the rows kept, it would be three times that
    assert peak(10_000) - peak(2_000) < 2_000_000
