"""Faults that no mock can make: at the socket, and a sync that is killed."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import sleep

import pytest

import connector
import http_server
import sdk
from memory_api import ID, ROWS, UPDATED_AT, MemoryApi

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
    with http_server.refused_url() as url, pytest.raises(connector.SyncError, match=refused):
        sync(base_url=url)


def test_connections_are_kept_alive_and_no_more_than_the_requests_at_a_time(server, sync):
    connections = []
    verify = server.verify_request
    server.verify_request = lambda *args: connections.append(args) or verify(*args)
    sync(base_url=server.url, page_size="2", parallel_requests="3")
    assert server.asked > 200
    assert len(connections) <= 3


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


def test_a_sync_that_fails_ends_though_another_request_is_stalled(server, tmp_path):
    server.faults = {2: "stall", 3: "stall", 4: "stall", 5: "stall"}
    server.api.answers = {1: lambda page: page | {ROWS: [*page[ROWS][:9], {ID: None}]}}
    assert start_sync(tmp_path, server.url).wait(timeout=30) == 1


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
