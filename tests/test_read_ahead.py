"""How a sync reads ahead: how far, in what order, at what cost, and how it stops."""

import random
import threading
import tracemalloc
from concurrent.futures import Future, wait
from datetime import timedelta
from types import SimpleNamespace

import pytest
import requests

import connector
import http_server
from connector import SyncError
from memory_api import EPOCH, ID, TOTALS, MemoryApi

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
            lock.wait_for(lambda: traffic.most >= traffic.wait_for, timeout=0.2)
        try:
            return answer(request)
        finally:
            with lock:
                traffic.now -= 1

    api.answer = counted
    return traffic


@pytest.mark.parametrize("parallel", PARALLEL)
def test_as_many_requests_are_in_flight_as_may_be_and_never_more(api, traffic, sync, parallel):
    api.add(900)
    api.before = [None] * 20 + [lambda: api.touch("1", "2")] + [None] * 10
    api.before += [lambda: api.touch("3", "4")]
    traffic.wait_for = parallel
    assert set(sync(page_size="5", parallel_requests=str(parallel)).table) == set(api.users)
    assert traffic.most == parallel


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize(
    ("count", "page_size"), [(0, 100), (1, 100), (100, 100), (5000, 100), (5000, 37), (40, 2)]
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
    api.refusal = lambda p: (401, {}, "") if int(p["offset"]) > 180 else None
    with pytest.raises(SyncError, match="401"):
        sync(page_size="10", parallel_requests="8")
    assert list(destination.table)[:181] == list(api.users)[:181]


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


# In simulated time


@pytest.fixture
def server(api, clock, monkeypatch):
    """A server in front of the API, on which a request takes `seconds` of the clock.

    It has some `workers`: more requests wait for one, up to the 60 s after which they time out.
    With `most` requests it answers 503 to more. `in_flight` says how many there were, with each.
    `meanwhile` is called with the seconds that one is waited for.
    """
    server = SimpleNamespace(seconds=1, workers=99, most=99, in_flight=[], requests=[])
    server.meanwhile = lambda seconds: None
    thread, answer = threading.local(), api.answer

    class Request(Future):
        def __init__(self):
            super().__init__()
            server.requests = [other for other in server.requests if other.end > clock.now]
            ends = sorted(other.end for other in server.requests)
            server.in_flight.append(len(ends) + 1)
            start = ends[-server.workers] if len(ends) >= server.workers else clock.now
            self.end, self.fault = start + server.seconds, None
            if len(ends) >= server.most:
                self.end, self.fault = clock.now, (503, {}, "")
            if self.end > clock.now + 60:
                self.fault = requests.ReadTimeout()
            self.answered = min(self.end, clock.now + 60)
            server.requests.append(self)

        def cancel(self):
            return False  # it has been sent

        def set_running_or_notify_cancel(self):
            thread.request = self
            return super().set_running_or_notify_cancel()

        def done(self):
            return self.answered <= clock.now

        def result(self):
            server.meanwhile(max(self.answered - clock.now, 0))
            clock.now = max(clock.now, self.answered)
            return super().result()

    def answer_or_fail(request):
        if isinstance(thread.request.fault, Exception):
            raise thread.request.fault
        return thread.request.fault or answer(request)

    api.answer = answer_or_fail
    monkeypatch.setattr(connector, "Future", Request)
    return server


@pytest.mark.parametrize("updated_at", [None, EPOCH], ids=["", "one time"])
@pytest.mark.parametrize("page_cap", [None, 30])
@pytest.mark.parametrize("total", ["as it is", "left out"])
def test_a_list_at_rest_is_read_eight_pages_at_a_time(
    api, sync, clock, server, total, page_cap, updated_at
):
    api.add(5000, updated_at=updated_at)
    api.total, api.page_cap = TOTALS.get(total, api.total), page_cap
    sync(page_size="50", parallel_requests="")
    assert max(server.in_flight[:3]) <= 2
    assert clock.now <= len(api.requests) / 8 + 5  # until there are eight


def test_where_writing_takes_longer_than_reading_no_more_requests_are_in_flight_than_at_first(
    api, sync, clock, server, destination, monkeypatch
):
    api.add(3000)
    checkpoint = destination.checkpoint
    monkeypatch.setattr(
        destination, "checkpoint", lambda state: clock.sleep(2) or checkpoint(state)
    )
    sync(parallel_requests="8")
    assert max(server.in_flight) <= 3


def test_a_few_ties_slow_reading_ahead_down_only_a_little(api, sync, clock, server):
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


@pytest.mark.parametrize("when", ["answered", "written"])
@pytest.mark.parametrize("changes", [5, 30, 150])
def test_a_list_that_moves_with_each_page_is_sent_few_requests_in_vain(
    api, sync, server, destination, monkeypatch, changes, when
):
    def move(pages=1.0):
        wait(server.requests)
        api.touch(*[user[ID] for user in api.sorted_users()[: int(pages * changes)]])

    checkpoint = destination.checkpoint
    if when == "answered":
        server.meanwhile = move
    else:
        monkeypatch.setattr(destination, "checkpoint", lambda state: move() or checkpoint(state))
    asked = []
    for parallel in ("1", "8"):
        api.users.clear()
        api.requests.clear()
        api.add(1000)
        sync({}, parallel_requests=parallel)
        asked.append(len(api.requests))
    assert asked[1] <= 1.5 * asked[0]


@pytest.mark.parametrize(
    "failure",
    [(429, {"Retry-After": "5"}, ""), (503, {}, ""), (200, {}, "<html>"), requests.ReadTimeout()],
    ids=str,
)
def test_any_failure_halves_what_may_be_in_flight_and_pages_without_one_win_it_back(
    api, sync, server, failure
):
    api.add(3000)
    api.answers = {40: failure}
    assert set(sync(page_size="10", parallel_requests="8").table) == set(api.users)
    first, after, last = (server.in_flight[i:j] for i, j in ((0, 40), (52, 64), (300, None)))
    assert (max(first), max(after), max(last)) == (8, 4, 8)


def test_a_server_that_answers_503_above_four_requests_is_read_at_nearly_that_pace(
    api, sync, clock, server
):
    api.add(10_000)
    server.seconds, server.most = 0.1, 4
    assert set(sync(parallel_requests="8").table) == set(api.users)
    assert clock.now < 10


def test_a_server_that_takes_one_request_at_a_time_is_not_asked_into_timeouts(
    api, sync, clock, server
):
    api.add(10_000)
    server.seconds, server.workers = 10, 1
    assert set(sync(parallel_requests="8").table) == set(api.users)
    assert clock.now <= 2.5 * 10 * 10_000 / 98


# Memory


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
