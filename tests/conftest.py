"""What the tests share: an API in memory, and one way to run a sync against it."""

import sys
from pathlib import Path

import pytest
import responses
from fivetran_connector_sdk import Logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import connector
from memory_api import URL, MemoryApi


class Destination:
    """Takes the operations of syncs, in place of the SDK's: the table, the state, and both in the order they came."""

    def __init__(self):
        self.table = {}
        self.state = {}
        self.operations = []  # ("upsert", row) and ("checkpoint", state)

    def upsert(self, table: str, data: dict):
        assert table == "user"
        self.table[data["id"]] = data
        self.operations.append(("upsert", data))

    def checkpoint(self, state: dict):
        self.state = dict(state)
        self.operations.append(("checkpoint", self.state))

    @property
    def upserts(self) -> list:
        return [value for kind, value in self.operations if kind == "upsert"]

    @property
    def checkpoints(self) -> list:
        return [value for kind, value in self.operations if kind == "checkpoint"]


@pytest.fixture
def api():
    """An API in memory, at the address the configuration names."""
    api = MemoryApi()
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        api.serve(mock)
        yield api


@pytest.fixture
def destination():
    return Destination()


@pytest.fixture
def sync(destination, monkeypatch):
    """Run one sync from the destination's state, or from another, with settings besides `base_url`."""
    monkeypatch.setattr(connector, "op", destination)
    monkeypatch.setattr(Logging, "LOG_LEVEL", Logging.Level.INFO)

    def run(state=None, **settings):
        configuration = {"base_url": URL, **settings}
        connector.update(configuration, destination.state if state is None else state)
        return destination

    return run
