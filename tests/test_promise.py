"""The promise: whatever happens to the list while it is read, and to the sync, no user is lost.

Each history is made up: a list of users, an API with its own ways, what happens to the list before each request,
faults, crashes. Then all is calm, and after one more sync every user that the API has must stand in the table as the
API has it. No sync may deliver a row twice that has not changed, or warn or fail without a cause.

The default run is the same each time. The environment variable HISTORIES runs others: with HISTORIES=20 twenty times
as many.
"""

import json
import os
import random
from collections import Counter
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from threading import current_thread, main_thread
from types import SimpleNamespace

import pytest
import requests
from hypothesis import HealthCheck, Phase, assume, given, note, reject, settings
from hypothesis import strategies as st

import connector
import plain_loop
from conftest import Crash, Destination, end_threads
from memory_api import (
    ID,
    ROWS,
    TOTALS,
    UPDATED_AT,
    URL,
    MemoryApi,
    envelope,
    instant,
    order_by_page_end,
    timestamp,
    whole_minutes,
)

MORE = int(os.environ.get("HISTORIES", "0"))
FAULTS = {
    "busy": (503, {"Retry-After": "1"}, "busy"),
    "broken": (500, {}, "broken"),
    "origin": (521, {}, "origin"),
    "limited": (403, {"Retry-After": "1.5"}, "limited"),
    "reset": requests.ConnectionError(),
    "slow": requests.ReadTimeout(),
    "cut": requests.exceptions.ChunkedEncodingError(),
    "login": (200, {"Content-Type": "text/html"}, "<html>Please log in</html>"),
}
GHOST = "ghost"
MARGIN = 5  # seconds that clocks and whole seconds take off the lookback
CALM = 20  # seconds: more than that


def with_a_space(time):
    return time.strftime("%Y-%m-%d %H:%M:%S")


STAMPS = {"in seconds": timestamp, "in minutes": whole_minutes, "with a space": with_a_space}
CUTS = {
    "as it is": lambda time: time,
    "to the minute": lambda time: time.replace(second=0),
    "to the day": lambda time: time.replace(hour=0, minute=0, second=0),
}
PAGES_OWN = "the page's own"  # PostgreSQL's, without an index: it depends on limit + offset
ORDERS = {
    "by number": lambda user: int(user[ID]),
    "by id": lambda user: user[ID],
    "by id backwards": lambda user: user[ID][::-1],
    PAGES_OWN: None,
}
# Which user: how far from where the page begins, where two pages meet; or the first of the window, or the last
PLACES = [-99, -2, -1, 0, 0, 1, 2, 99]


@cache
def requests_to_come(latest: int, faults: tuple) -> st.SearchStrategy:
    """What happens before each request. Changes show up to `latest` seconds late."""
    lateness = [0, 0, 0, 1, latest // 2, latest]
    events = [("touch", place, late) for place in PLACES for late in lateness] * 2
    events += [("insert", id, late) for id in range(5, 100, 12) for late in (0, 0, latest)]
    events += [("delete", place, 0) for place in PLACES] * 3
    events += [("tick", seconds, 0) for seconds in (1, 1, 2, latest // 2)] * 6
    events += [("fault", name, 0) for name in faults] * 2
    events += [("empty", 0, 0)] * 4
    return st.lists(st.lists(st.sampled_from(events), max_size=5), min_size=6, max_size=24)


def mostly(draw, value, *others):
    return draw(st.sampled_from([value] * (2 * len(others) or 1) + list(others)))


@st.composite
def histories(draw):
    """Draw an API with users, what happens to it during its requests, and the settings and crashes of the syncs."""
    history = SimpleNamespace(api=MemoryApi(), users_at=Counter())
    draw_clocks(draw, history)
    draw_pages(draw, history)
    draw_windows(draw, history)
    draw_exclusion(draw, history)
    draw_total(draw, history)
    draw_ties(draw, history)
    draw_users(draw, history)
    history.configuration = {
        "base_url": URL,
        "page_size": str(history.page_size),
        "lookback_seconds": "" if history.lookback == 300 else str(history.lookback),
        "mark_deleted": draw(st.sampled_from(["true", "false"])),
    }
    pause = st.sampled_from([0, 5, history.latest // 2, history.lookback + 10])
    crash = st.sampled_from([None, None, *range(0, 40, 3)])  # after how many operations
    history.syncs = draw(st.lists(st.tuples(pause, crash), min_size=1, max_size=3))
    # a page that takes too long twice is asked for with fewer rows, which may be fewer than is said below
    is_exact = history.hides or history.order == PAGES_OWN or history.page_size < 12
    faults = tuple(name for name in FAULTS if name != "slow" or not is_exact)
    history.happenings = draw(requests_to_come(history.latest, faults))
    return history


def draw_clocks(draw, history):
    """How late changes show, and in which times."""
    api = history.api
    api.seconds_per_request = draw(st.integers(0, 1))
    # its answers are dated up to that much before or after the time that its users are stamped with
    api.skew = timedelta(seconds=mostly(draw, 0, -3, 3))
    history.stamp = mostly(draw, "in seconds", "in minutes", "with a space")
    api.stamp = STAMPS[history.stamp]
    api.compares_texts = draw(st.booleans())
    # a change shows late by what its time is cut by, by its transaction, and by the replica: in all by the lookback
    history.lookback = (
        300 if history.stamp == "in minutes" else draw(st.sampled_from([10, 30, 300, 300]))
    )
    late = history.lookback - MARGIN - (60 if history.stamp == "in minutes" else 0)
    history.lag = mostly(draw, 0, 2, late // 2)
    history.latest = late - history.lag
    if history.lag:
        lags = random.Random(draw(st.integers(0, 9)))
        api.lag = lambda: lags.choice([0, 0, history.lag])
    history.order = draw(st.sampled_from([*ORDERS, PAGES_OWN]))


def draw_pages(draw, history):
    """Pages of three rows at least, of which fewer than half are missing: cut off, or hidden."""
    api = history.api
    sizes = [5, 6, 7, 8, 9, 13] if history.order == PAGES_OWN else [3, 4, 5, 6, 7, 12, 15]
    history.page_size = draw(st.sampled_from(sizes))
    api.page_cap = mostly(draw, None, *(cap for cap in (3, 4, 5, 10) if cap < history.page_size))
    api.limit_max = mostly(draw, None, history.page_size, 2 * history.page_size)
    longest = api.page_cap or history.page_size
    missing = (longest - 1) // 2
    # in an order of the page's own, a hidden row may take the place of any other
    history.hides = 0 if history.order == PAGES_OWN else mostly(draw, 0, 1, missing)
    history.cut_short = mostly(draw, 0, max(min(missing - history.hides, longest - 3), 0))
    history.page_bytes = 0
    if history.cut_short:
        lengths = random.Random(draw(st.integers(0, 9)))
        api.page_lengths = lambda: longest - lengths.randint(0, history.cut_short)
    elif longest > 3:
        history.cut_short = mostly(draw, 0, max(longest - 3 - 2 * history.hides, 0))
        history.page_bytes = 10 * longest if history.cut_short else 0
        api.page_lengths = (lambda: fitting_rows(history)) if history.page_bytes else None
    history.shortest = longest - history.hides - history.cut_short


def fitting_rows(history) -> int:
    """How many users fit on the next page, where it is limited by bytes: three at least."""
    api, asked = history.api, history.api.requests[-1]
    users = api.matching(api.sorted_users(), asked)[int(asked["offset"]) :]
    left = history.page_bytes
    for count, user in enumerate(users):
        left -= 5 + int(user[ID]) * 7 % 20
        if left < 0:
            return max(count, history.shortest + history.hides)
    return len(users) or 1


def draw_windows(draw, history):
    """How far offsets lead: not into more rows of one time than can be passed."""
    api = history.api
    api.offset_max = mostly(draw, None, 9, 14)
    api.depth = mostly(draw, None, 10, 15)
    history.window_rows = draw(st.sampled_from([8, 12, 20, 10_000]))
    history.cut = "as it is"
    if api.depth is api.offset_max is None:
        history.cut = mostly(draw, "as it is", "to the minute", "to the day")
    cut_time = CUTS[history.cut]
    api.cut = lambda since: api.stamp(cut_time(instant(since)))
    history.most_ties = min(api.offset_max or 99, api.depth or 99) - history.hides - 1


def draw_exclusion(draw, history):
    """A filter that leaves out its own time: no users may share one then."""
    history.api.exclusive = history.cut == "as it is" and draw(
        st.sampled_from(5 * [False] + [True])
    )
    if history.api.exclusive:
        history.most_ties = 1


def draw_total(draw, history):
    """What the total says. A small one that is the length of a first page is taken at its word."""
    api, shortest = history.api, history.shortest
    totals = [
        name for name in TOTALS if "count" not in name or min(shortest, api.depth or 10) >= 10
    ]
    history.total = mostly(draw, "of all", *totals)
    if history.total != "of all":
        api.total = TOTALS[history.total]
        return
    is_short = shortest < history.page_size
    caps = (history.page_size, history.page_size + 3, 15)
    api.total_cap = mostly(draw, None, *(cap for cap in caps if cap >= 10 or not is_short))
    api.total_excess = mostly(draw, 0, 1, 3, 30, *([] if is_short else [-3]))
    api.counts_all = mostly(draw, False, True)
    if api.total_excess > 0 or api.counts_all:  # then the end of a full window is an error
        if history.cut != "as it is" or history.hides:
            history.window_rows = 10_000
        history.most_ties = min(history.most_ties, history.window_rows - 1)


def draw_ties(draw, history):
    """Ties in an order of the page's own: as many as a page holds, or more, if the API gives more or may be blamed.

    More only on pages of five rows or more: the few that smaller ones share keep their order by chance now and then.
    """
    api = history.api
    history.may_lose = False  # if the connector says so
    if history.order != PAGES_OWN:
        api.tie_order = ORDERS[history.order]
        return
    api.tie_order = order_by_page_end(api)
    is_capped = api.page_cap or api.limit_max or history.cut_short or api.depth or api.offset_max
    if not is_capped and history.shortest >= 5:
        history.most_ties = min(history.most_ties, history.window_rows - 1)
    elif history.shortest >= 5 and draw(st.booleans()):
        history.may_lose = True
    else:
        # where a filter cuts its time, half a page is for the ties
        share = 1 if history.cut == "as it is" else 2
        history.most_ties = min(history.most_ties, max((history.shortest - 1) // share, 1))


def draw_users(draw, history):
    """Users updated some seconds ago, at few times, so that there are many ties, some with the start of the sync."""
    api, old = history.api, history.lookback
    ages = draw(
        st.sampled_from(
            [
                [0, 0, 1, 2, 60, 61],
                [old - 1, old, old + 1, old + 2],
                range(0, 60, 3),
                range(old, old + 20, 2),
                range(old, old + 60, 3),
                [old + 70],
                [old + 70, old + 70, old + 70, old + 71, 3],
                [old + 60, old + 120, old + 180],
            ]
        )
    )
    most = 24 if history.page_size < 10 else 50
    for number, age in enumerate(draw(st.lists(st.sampled_from(ages), min_size=6, max_size=most))):
        time = api.now - timedelta(seconds=age)
        while is_full(history, time):
            time -= timedelta(seconds=1)
        history.users_at[api.stamp(time)] += 1
        api.add(1, time, **{ID: str(number * 37 % 100)})
    if history.hides:
        api.hidden = set(draw(st.permutations(sorted(api.users)))[: history.hides])


def is_full(history, time: datetime) -> bool:
    """Whether as many users as may be were updated at a time."""
    return history.users_at[history.api.stamp(time)] >= history.most_ties


def happen(history, what: list):
    """Let things happen to an API, and return the fault that its next answer is to be, if any."""
    api, fault = history.api, None
    for kind, value, seconds_late in what:
        if kind == "tick":
            pass_time(api, value)
        elif kind == "fault":
            history.faults += 1
            fault = FAULTS[value]
        elif kind == "empty":
            if api.requests[-1]["offset"] == "0":
                history.end_moved, fault = True, envelope([], 0)
        elif kind == "insert":
            if str(value) not in api.users:
                api.add(1, time_to_stamp(history), seconds_late, **{ID: str(value)})
        elif users := api.matching(api.sorted_users(), api.requests[-1]):
            at = min(max(int(api.requests[-1]["offset"]) + value, 0), len(users) - 1)
            history.end_moved |= at == len(users) - 1
            if kind == "delete":
                api.delete(users[at][ID])
            else:
                time_to_stamp(history)
                api.touch(users[at][ID], late=seconds_late)
    return fault


def pass_time(api: MemoryApi, seconds: int):
    api.now += timedelta(seconds=seconds)
    api.commit()


def time_to_stamp(history):
    """Let time pass until one more user can have it."""
    api = history.api
    while is_full(history, api.now):
        pass_time(api, 1)
    history.users_at[api.stamp(api.now)] += 1
    return api.now


def lost_users(update, history, tolerated: tuple) -> list:
    """Run a history, and return the ids of the users that are missing from the table, or there in an old version.

    A sync may fail with an error that a fault explains, or that is `tolerated`.
    """
    api = history.api
    destination = connector.op = plain_loop.op = Destination()
    destination.table = {GHOST: {"name": "deleted before the first sync"}}
    history.is_blamed = False  # whether the connector has said that rows may be missing
    api.before = [lambda what=what: happen(history, what) for what in history.happenings]
    with served(history):
        for pause, destination.crash_after in history.syncs:
            pass_time(api, pause)
            run(update, history, destination, (Crash, *tolerated))
        api.before, api.lag, destination.crash_after = [], None, None
        # where ties have no order, those that have not settled are left to the next sync
        pass_time(api, history.latest + CALM + (history.lookback + 60) * history.may_lose)
        assume(api.users.keys() - api.hidden)
        run(update, history, destination, tolerated if history.may_lose else ())
    marks = update is connector.update and history.configuration["mark_deleted"] == "true"
    assert (GHOST in destination.deleted) == marks or history.is_blamed
    if history.is_blamed:
        return []
    shown = (user for id, user in api.users.items() if id not in api.hidden)
    return [user[ID] for user in shown if is_lost(user, destination)]


def is_lost(user: dict, destination: Destination) -> bool:
    if user[ID] not in destination.table or user[ID] in destination.deleted:
        return True
    return version_of(destination.table[user[ID]]) != version_of(user)


def version_of(user: dict) -> tuple:
    """What tells the versions of a user apart, as the API writes it and as the connector does."""
    time = user[UPDATED_AT]
    return user["name"], instant(time) if isinstance(time, str) else time


def run(update, history, destination: Destination, tolerated: tuple):
    api = history.api
    history.faults, failure = 0, None
    history.end_moved = history.window_ends = False
    destination.operations, destination.warnings = [], []
    span = timedelta(
        seconds=history.lookback + CALM + (60 if history.stamp == "in minutes" else 0)
    )
    settled = api.stamp(api.now - span)
    try:
        update(history.configuration, destination.state)
    except tolerated as error:
        failure = error
        note(f"failed: {error!r}")
    finally:
        end_threads()
    destination.end_sync(failed=failure is not None)
    if update is not connector.update:
        return
    versions = Counter((row[ID], version_of(row)) for row in destination.all("upsert"))
    assert [version for version, count in versions.items() if count > 1] == []
    if destination.warnings and versions:  # one without a row says that
        assert may_warn(history), destination.warnings
        history.is_blamed |= history.may_lose
    if failure:
        says_to_reset = history.may_lose and "reset" in str(failure)
        history.is_blamed |= says_to_reset
        # a page is tried three times at least; what lags now and now not, may move on every page
        is_explained = isinstance(failure, Crash) or history.faults >= 3 or api.lag
        assert is_explained or says_to_reset
        return
    if history.end_moved or history.is_blamed or (history.may_lose and api.lag):
        return
    old = [user for user in api.users.values() if user[UPDATED_AT] < settled]
    old = [user[ID] for user in old if user[ID] not in api.hidden]
    assert [id for id in old if id in destination.deleted or id not in destination.table] == []


def may_warn(history) -> bool:
    """Whether the connector may say that rows could be missing."""
    api = history.api
    promises_more = history.total == "of all" and (
        api.total_excess > 0 or api.counts_all or history.hides
    )
    # where the last user leaves that was read, or a replica lags, it looks as if the filter left it out
    looks_so = history.end_moved or history.window_ends or api.lag
    return bool(promises_more or looks_so or history.may_lose or api.exclusive)


@contextmanager
def served(history):
    """Answer all requests of this process, in less time than `MemoryApi.served` takes."""

    api = history.api

    def send(adapter, request, **options):
        status, headers, body = api.answer(request)
        say(told(api.requests[-1], status, body))
        history.window_ends |= ends_with_window(history, body)
        response = requests.Response()
        response.status_code, response.url, response.request = status, request.url, request
        response.headers.update(headers)
        response._content = body.encode()
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.adapters.HTTPAdapter, "send", send)
        yield


def ends_with_window(history, body: str) -> bool:
    """Whether a page ends where larger offsets are not asked for."""
    offset = int(history.api.requests[-1]["offset"])
    return offset + body.count(f'"{ID}": ') == history.window_rows


def told(asked: dict, status: int, body: str) -> str:
    """A request and its answer, for the story."""
    if status == 200 and body[0] == "{":
        users = json.loads(body)[ROWS]
        body = " ".join(f"{user[ID]}@{user[UPDATED_AT][11:19]}" for user in users) or "no users"
    since = asked.get("updated_since", "the start")
    return f"  since {since}, {asked['limit']} from {asked['offset']} on: {body}"


class Answered(Future):
    """A future that was done when it was made, though nobody knows before the result is fetched."""

    is_fetched = False

    def done(self) -> bool:
        return self.is_fetched

    def result(self, timeout=None):
        self.is_fetched = True
        return super().result(timeout)


def answer_when_sent(client, request) -> Future:
    """Take the place of `Client.send`: the requests in flight are then answered in the order they were sent in."""
    future = Answered()
    try:
        future.set_result(client.get(request))
    except Exception as error:
        future.set_exception(error)
    return future


TOLD = (
    "stamp",
    "order",
    "most_ties",
    "may_lose",
    "cut_short",
    "page_bytes",
    "total",
    "cut",
    "lag",
    "latest",
)
TOLD_OF_API = (
    *("skew", "page_cap", "total_cap", "total_excess", "counts_all", "offset_max", "depth"),
    *("hidden", "compares_texts", "seconds_per_request", "limit_max", "exclusive"),
)


def tell(history):
    """Print a history as a story, if it turns out to be one that fails."""
    api = history.api
    note(f"settings: {history.configuration}, windows of {history.window_rows}")
    told = {way: getattr(history, way) for way in TOLD}
    told |= {way: getattr(api, way) for way in TOLD_OF_API}
    note("API: " + ", ".join(f"{way}={value}" for way, value in told.items() if value))
    note("users: " + ", ".join(f"{user[ID]} {user[UPDATED_AT]}" for user in api.users.values()))
    for number, what in enumerate(history.happenings, 1):
        note(f"before request {number}: {what}")
    note(f"syncs: seconds to wait before, operations to take before a crash: {history.syncs}")


@pytest.fixture
def world(monkeypatch, clock):
    """The connector with its operations, its window and its waits in the tests' hands."""
    monkeypatch.setattr(connector, "op", None)
    monkeypatch.setattr(plain_loop, "op", None)
    monkeypatch.setattr(connector, "WINDOW_ROWS", None)
    monkeypatch.setattr(connector, "SURE_OVERLAP", None)
    monkeypatch.setattr(connector, "log", SimpleNamespace(info=say, warning=say))
    return clock


def say(line: str):
    """Make a message of the connector a part of the story."""
    if current_thread() is main_thread():
        note(line)


def made_up(count: int):
    """Histories for a test: so many, or as many more as HISTORIES says."""
    return settings(
        max_examples=count * max(MORE, 1),
        derandomize=not MORE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def check(history, parallel: int):
    history.configuration["parallel_requests"] = str(parallel)
    tell(history)
    connector.WINDOW_ROWS = history.window_rows
    connector.SURE_OVERLAP = 8 if history.order == PAGES_OWN else 1  # few pages can show eight
    assert lost_users(connector.update, history, (connector.SyncError,)) == []


@pytest.mark.parametrize("parallel", [1, 2, 3, 4])
@made_up(30)
@given(history=histories())
def test_no_user_is_lost(world, monkeypatch, parallel, history):
    monkeypatch.setattr(connector.Client, "send", answer_when_sent)
    check(history, parallel)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2, 3, 4])  # they share the cores evenly
@made_up(200)
@given(history=histories())
def test_no_user_is_lost_in_many_histories(world, monkeypatch, parallel, history):
    monkeypatch.setattr(connector.Client, "send", answer_when_sent)
    check(history, parallel)


@pytest.mark.slow
@made_up(100)
@given(history=histories())
def test_no_user_is_lost_while_threads_ask_for_pages(world, history):
    check(history, 4)


def test_the_plain_loop_loses_users_in_the_same_histories(world):
    @settings(
        max_examples=1000,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(history=histories())
    def no_user_is_lost(history):
        tolerated = (requests.RequestException, KeyError, ValueError)
        try:
            lost = lost_users(plain_loop.update, history, tolerated)
        except (requests.HTTPError, KeyError, TypeError):
            reject()  # even its last sync failed, and lost nothing: no total, or a deep offset
        assert lost == []

    with pytest.raises(AssertionError):
        no_user_is_lost()
