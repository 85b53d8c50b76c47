"""What the tests share: an API in memory, and one way to run a sync against it."""

import json
import threading

import pytest
from fivetran_connector_sdk import Logging

import memory_api
from memory_api import TABLE, URL, MemoryApi, table
from sdk import connector


class Crash(Exception):
    """What ends a sync from outside, as a kill does."""


class Destination:
    """Takes the operations of syncs, in place of the SDK's, as it does: rows are written by the next checkpoint."""

    def __init__(self):
        self.tables = {TABLE.name: {}}  # rows by key, by table
        self.deleted = set()  # keys of the rows that are marked as deleted
        self.state = {}
        self.operations = []  # ("truncate", table), ("upsert", row) ... in their order
        self.crash_after = None  # how many operations to take before a crash
        self.warnings = []  # what is shown on Fivetran's dashboard
        self._waiting = {}  # rows by table and key
        self._truncated = set()

    @property
    def table(self) -> dict:
        """The rows of the first table."""
        return self.tables[TABLE.name]

    @table.setter
    def table(self, rows: dict):
        self.tables[TABLE.name] = rows

    def truncate(self, table: str):
        self._take("truncate", table)
        self._truncated.add(table)

    def delete(self, table: str, keys: dict):
        self._take("delete", keys)
        self.deleted.add(self._key(table, keys))

    def warning(self, text: str):
        self.warnings.append(text)

    def upsert(self, table: str, data: dict):
        self._take("upsert", data)
        self._waiting[table, self._key(table, data)] = data

    def checkpoint(self, state: dict):
        self._take("checkpoint", dict(state))
        self.end_sync()
        self.state = dict(state)

    def end_sync(self, failed: bool = False):
        """Write the rows that wait for a checkpoint, or drop them if the sync failed."""
        if not failed:
            for table in self._truncated:
                self.deleted |= set(self.tables.get(table, ()))
            for (table, key), row in self._waiting.items():
                self.tables.setdefault(table, {})[key] = row
                self.deleted.discard(key)
        self._waiting, self._truncated = {}, set()

    def all(self, kind: str) -> list:
        return [value for what, value in self.operations if what == kind]

    def _key(self, name: str, values: dict):
        """What a row is stored under: the value of its key, a tuple of several."""
        (table,) = [table for table in connector.TABLES if table.name == name]
        key = tuple(values[field] for field in table.primary_key)
        return key if len(key) > 1 else key[0]

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


@pytest.fixture(autouse=True)
def api_section(monkeypatch):
    """Bring the section for the API that the tests serve: whoever adapts connector.py keeps a green suite."""
    monkeypatch.setattr(connector, "TABLES", [TABLE])
    for name in ("http_request", "rows_of", "total_of"):
        monkeypatch.setattr(connector, name, getattr(memory_api, name))


@pytest.fixture
def api():
    """An API in memory, at the address the configuration names."""
    with MemoryApi().served() as api:
        yield api


@pytest.fixture
def teams(api, monkeypatch):
    """A second list of the API, which fills the table `team`."""
    monkeypatch.setattr(connector, "TABLES", [TABLE, table(name="team", path="teams")])
    api.lists["teams"] = MemoryApi()
    return api.lists["teams"]


@pytest.fixture
def destination():
    return Destination()


@pytest.fixture
def lines(capsys):
    """The messages logged since the last call, at a level; "" for all of them."""

    def read(level="INFO") -> list:
        messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [m["message"] for m in messages if level in ("", m["level"])]

    return read


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
