"""How a sync reads ahead: how far, in what order, at what cost, and how it stops."""

import threading
import time
import tracemalloc
from datetime import timedelta
from types import SimpleNamespace

import pytest

import connector
import http_server
from connector import SyncError
from memory_api import EPOCH, UPDATED_AT, MemoryApi

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
    api.before = (
        [None] * 20 + [lambda: api.touch("250")] + [None] * 10 + [lambda: api.touch("251")]
    )
    traffic.wait_for = parallel
    assert set(sync(page_size="5", parallel_requests=str(parallel)).table) == set(api.users)
    assert traffic.most == parallel


@pytest.mark.parametrize("parallel", PARALLEL)
def test_users_come_in_order_whatever_the_number_of_requests(api, sync, parallel):
    api.add(300)
    times = [
        row[UPDATED_AT]
        for row in sync(page_size="7", parallel_requests=str(parallel)).all("upsert")
    ]
    assert times == sorted(times)
    assert len(times) == 300


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize(
    ("count", "page_size"), [(0, 100), (1, 100), (100, 100), (5000, 100), (5000, 37), (40, 2)]
)
def test_a_full_sync_asks_for_no_more_pages_than_it_must(
    api, sync, monkeypatch, parallel, count, page_size
):
    monkeypatch.setattr(connector, "WINDOW_ROWS", 1000)
    api.add(count)
    sync(page_size=str(page_size), parallel_requests=str(parallel))
    windows = len({request.get("updated_since") for request in api.requests})
    assert len(api.requests) <= count / (page_size - 1) + 1 + windows - 1
    assert sum(int(request["offset"]) for request in api.requests) < 1000 * len(api.requests)


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
    api.at_offset = {180: (401, {}, "")}
    with pytest.raises(SyncError, match="401"):
        sync(page_size="10", parallel_requests="8")
    assert len(destination.table) == 181


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


def test_after_a_retry_after_half_as_many_requests_are_in_flight(api, traffic, sync):
    api.add(3000)
    traffic.wait_for = 8
    api.answers = {150: (429, {}, "")}

    def forget_the_most():
        traffic.wait_for, traffic.most = 4, 0

    api.before = [None] * 165 + [forget_the_most]
    assert set(sync(page_size="10", parallel_requests="8").table) == set(api.users)
    assert traffic.most == 4


def test_with_one_request_at_a_time_writing_and_reading_alternate(api, sync, destination):
    api.add(500)
    asked = []
    upsert = destination.upsert
    destination.upsert = lambda table, row: asked.append(len(api.requests)) or upsert(table, row)
    sync(page_size="50", parallel_requests="1")
    assert [asked[0], asked[50], asked[99]] == [1, 2, 3]


@pytest.mark.parametrize("parallel", PARALLEL)
def test_no_page_is_refused_repeatedly_by_an_api_with_a_narrow_rate_limit(
    api, sync, clock, parallel
):
    """One request a second: all that wait together would be refused together, but for one."""
    api.add(600)
    last = [-1.0]
    answer = api.answer

    def limited(request):
        if clock.now < last[0] + 1:
            return 429, {"Retry-After": "1"}, ""
        last[0] = clock.now
        return answer(request)

    api.answer = limited
    assert len(sync(page_size="5", parallel_requests=str(parallel)).table) == 600


@pytest.mark.parametrize("parallel", PARALLEL)
def test_an_api_that_takes_one_request_in_250_seconds_is_read_to_its_end(
    api, sync, clock, parallel
):
    api.add(600)
    free_at = [0.0]
    answer = api.answer

    def limited(request):
        if clock.now < free_at[0]:
            return 429, {"Retry-After": "250"}, ""
        free_at[0] = clock.now + 250
        return answer(request)

    api.answer = limited
    assert len(sync(parallel_requests=str(parallel)).table) == 600


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

    def unavailable(page):
        return page if "updated_since" in api.requests[-1] else (503, {"Retry-After": "100"}, "")

    api.at_offset = dict.fromkeys((396, 495, 594, 693, 792, 891), unavailable)
    api.before = [
        None,
        None,
        None,
        lambda: api.touch("1"),
    ]  # page 297 begins with another user than expected
    assert set(sync(parallel_requests=str(parallel)).table) == set(api.users)
    assert clock.waits == []


def test_reading_ahead_begins_with_two_requests_and_grows_only_where_pages_are_waited_for(
    sync, destination
):
    api = MemoryApi()
    api.add(3000)
    now, most = [0], [0]
    lock = threading.Lock()
    with http_server.serve(api) as server:
        answer = api.answer

        def slow_answer(request):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(delay)
            with lock:
                now[0] -= 1
            return answer(request)

        api.answer = slow_answer
        delay = 0.03
        sync(base_url=server.url, parallel_requests="6")
        assert most[0] == 6
        checkpoint = destination.checkpoint
        destination.checkpoint = lambda state: time.sleep(0.05) or checkpoint(state)
        most[0], delay = 0, 0.0
        sync({}, base_url=server.url, parallel_requests="6")
        assert most[0] <= 3


def test_users_with_one_time_are_read_ahead_too(api, sync):
    api.add(1000, updated_at=EPOCH + timedelta(days=1))
    assert len(sync(page_size="6", parallel_requests="8").table) == 1000


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

    assert (
        peak(10_000) - peak(2_000) < 2_000_000
    )  # bytes; were the rows kept, it would be three times that
