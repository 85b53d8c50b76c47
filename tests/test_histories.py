"""The promise: whatever happens to the list while it is read, and to the sync, no user is lost.

Each history is made up: a list of users, what happens to it before each request, faults, crashes. Then all is calm
for one more sync, after which every user the API has must stand in the table as the API has it.
"""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import connector
import plain_loop
from conftest import Crash, Destination, end_threads
from memory_api import URL, MemoryApi

FAULTS = {
    "busy": (503, {"Retry-After": "1"}, "busy"),
    "broken": (500, {}, "broken"),
    "reset": requests.ConnectionError(),
    "cut": requests.exceptions.ChunkedEncodingError(),
    "login": (200, {"Content-Type": "text/html"}, "<html>Please log in</html>"),
}

# Which user: how far from the place the next page starts at, where the pages meet; or the list's first, or its last
place = st.sampled_from([-99, -2, -1, 0, 0, 1, 2, 99])
events = st.lists(
    st.one_of(
        st.tuples(st.just("touch"), place),
        st.tuples(st.just("touch"), place),
        st.tuples(st.just("insert"), st.integers(0, 99)),
        st.tuples(st.just("delete"), place),
        st.tuples(st.just("tick"), st.integers(1, 2)),
    ),
    max_size=5,
)
requests_to_come = st.lists(
    st.one_of(events, events, events, events, st.sampled_from(sorted(FAULTS))), min_size=8, max_size=30
)


@st.composite
def histories(draw):
    """Draw an API with users, what happens to it during its requests, and the settings and crashes of the syncs."""
    api = MemoryApi()
    api.seconds_per_request = draw(st.integers(0, 1))
    api.tie_order = draw(st.sampled_from([None, lambda user: user["id"], lambda user: user["id"][::-1]]))
    # how long before `now` each user was updated: few values, so that there are many ties, some with the start
    for number, age in enumerate(draw(st.lists(st.sampled_from([0, 0, 1, 2, 60, 61]), min_size=6, max_size=26))):
        api.add(id=str(number * 37 % 100), updated_at=api.now - timedelta(seconds=age))
    page_size = draw(st.integers(2, 7))
    api.page_cap = draw(st.sampled_from([None, None, 2, 3, 5]))
    api.total_cap = draw(st.sampled_from([None, None, page_size, page_size + 3, 15]))
    api.exclusive = draw(st.sampled_from([False, False, False, True]))
    lookback = draw(st.sampled_from([1, 2, 60] if api.exclusive else [0, 0, 0, 1, 60]))
    configuration = {"base_url": URL, "page_size": str(page_size), "lookback_seconds": str(lookback)}
    configuration["parallel_requests"] = str(draw(st.integers(1, 4)))
    crashes = draw(st.lists(st.integers(0, 40), max_size=2))
    window_rows = draw(st.sampled_from([8, 12, 20, 10_000]))
    return api, configuration, draw(requests_to_come), crashes, window_rows


def happen(api: MemoryApi, what: list | str):
    """Let things happen to an API, or return the fault that its next answer is to be."""
    if isinstance(what, str):
        return FAULTS[what]
    for kind, value in what:
        users = api.sorted_users()
        at = min(max(int(api.requests[-1]["offset"]) + value, 0), len(users) - 1)
        if kind == "tick":
            api.now += timedelta(seconds=value)
        elif kind == "insert":
            if str(value) not in api.users:
                api.add(id=str(value), updated_at=api.now)
        elif users and kind == "touch":
            api.touch(users[at]["id"])
        elif users:
            api.delete(users[at]["id"])
    return None


def lost_users(update, history, clock) -> list:
    """Run a history, and return the ids of the users that are missing from the table, or there in an old version."""
    api, configuration, happenings, crashes, _ = history
    destination = connector.op = plain_loop.op = Destination()
    api.before = [lambda what=what: happen(api, what) for what in happenings]
    with api.served():
        for crash_after in [*crashes, None, None]:
            destination.crash_after = crash_after
            if crash_after is None and not api.before:
                api.now += timedelta(seconds=5)
            try:
                update(configuration, destination.state)
                failed = False
            except (Crash, connector.SyncError, requests.RequestException, KeyError, ValueError):
                failed = True
            destination.end_sync(failed)
            end_threads()
        api.before = []
        api.now += timedelta(seconds=5)
        update(configuration, destination.state)
        destination.end_sync()
    return [
        id
        for id, user in api.users.items()
        if id not in destination.table or destination.table[id]["name"] != user["name"]
    ]


@pytest.fixture
def world(monkeypatch, clock):
    """The connector with its operations, its window and its waits in the tests' hands."""
    monkeypatch.setattr(connector, "op", None)
    monkeypatch.setattr(plain_loop, "op", None)
    monkeypatch.setattr(connector, "WINDOW_ROWS", None)
    monkeypatch.setattr(connector, "log", SimpleNamespace(info=str, warning=str))
    return clock


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories())
def test_no_user_is_ever_lost(world, history):
    connector.WINDOW_ROWS = history[-1]
    assert lost_users(connector.update, history, world) == []


def test_the_plain_loop_loses_users_in_the_same_histories(world):
    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(history=histories())
    def no_user_is_lost(history):
        assert lost_users(plain_loop.update, history, world) == []

    with pytest.raises(AssertionError):
        no_user_is_lost()
