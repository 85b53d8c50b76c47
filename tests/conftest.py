"""What the tests share: an API in memory, and one way to run a sync against it."""

import threading

import pytest
from fivetran_connector_sdk import Logging

from memory_api import ID, URL, MemoryApi
from sdk import connector


class Crash(Exception):
    """What ends a sync from outside, as a kill does."""


class Destination:
    """Takes the operations of syncs, in place of the SDK's, as it does: rows are written by the next checkpoint."""

    def __init__(self):
        self.table = {}  # by id
        self.deleted = set()  # ids of the rows that are marked as deleted
        self.state = {}
        self.operations = []  # ("truncate", None), ("upsert", row) and ("checkpoint", state), in their order
        self.crash_after = None  # how many operations to take before a crash
        self._waiting = {}
        self._truncated = False

    def truncate(self, table: str):
        assert table == connector.TABLE
        self._take("truncate", None)
        self._truncated = True

    def upsert(self, table: str, data: dict):
        assert table == connector.TABLE
        self._take("upsert", data)
        self._waiting[data[ID]] = data

    def checkpoint(self, state: dict):
        self._take("checkpoint", dict(state))
        self.end_sync()
        self.state = dict(state)

    def end_sync(self, failed: bool = False):
        """Write the rows that wait for a checkpoint, or drop them if the sync failed."""
        if not failed:
            self.deleted |= set(self.table) if self._truncated else set()
            self.table.update(self._waiting)
            self.deleted -= set(self._waiting)
        self._waiting, self._truncated = {}, False

    def all(self, kind: str) -> list:
        return [value for what, value in self.operations if what == kind]

    def _take(self, kind: str, value):
        assert threading.current_thread() is threading.main_thread()
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crash
        self.operations.append((kind, value))


def end_threads():
    """Wait for the requests that a sync which failed has left behind: they must not meet the next test."""
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("Thread-") and "_work" in thread.name:
            thread.join()


class Clock:
    """A clock that waits at once: what waits in the connector moves it on."""

    def __init__(self):
        self.now = 0.0
        self.waits = []  # seconds

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def api():
    """An API in memory, at the address the configuration names."""
    with MemoryApi().served() as api:
        yield api


@pytest.fixture
def destination():
    return Destination()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(connector, "monotonic", clock.monotonic)
    monkeypatch.setattr(connector, "sleep", clock.sleep)
    return clock


@pytest.fixture
def sync(destination, clock, monkeypatch):
    """Run one sync from the destination's state, or from another, with settings besides `base_url`.

    Unless set otherwise it asks for one page at a time, so that the order of the requests is known.
    """
    monkeypatch.setattr(connector, "op", destination)
    monkeypatch.setattr(Logging, "LOG_LEVEL", Logging.Level.INFO)

    def run(state=None, **settings):
        configuration = {"base_url": URL, "parallel_requests": "1", **settings}
        try:
            connector.update(configuration, destination.state if state is None else state)
        except BaseException:
            destination.end_sync(failed=True)
            raise
        finally:
            end_threads()
        destination.end_sync()
        return destination

    return run


@pytest.fixture
def verdict(clock, monkeypatch):
    """Run the tests of the setup form as the SDK does. Returns None, or what one says is wrong."""
    monkeypatch.setattr(Logging, "LOG_LEVEL", Logging.Level.INFO)

    def run(**settings):
        for test in connector.configuration_form().to_response().tests:
            result = connector.connector.run_test(test.name, {"base_url": URL, **settings})
            if result.failure is not None:
                return result.failure
        return None

    return run
