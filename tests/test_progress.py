"""What a sync says while it runs."""

import json
import re
from datetime import timedelta

import pytest

import connector
from memory_api import EPOCH, timestamp


@pytest.fixture
def lines(capsys):
    """The messages logged since the last call, at a level."""

    def read(level="INFO") -> list:
        messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [message["message"] for message in messages if message["level"] == level]

    return read


@pytest.fixture
def slow_destination(destination, clock, monkeypatch):
    """Let each page take some seconds to write."""

    def slow(seconds: int):
        checkpoint = destination.checkpoint
        monkeypatch.setattr(
            destination, "checkpoint", lambda state: clock.sleep(seconds) or checkpoint(state)
        )

    return slow


def test_the_log_says_what_will_be_read_and_what_was_done(api, sync, lines):
    api.add(250)
    api.before = [None, lambda: api.touch("1", "2", "3")]
    state = sync().state
    first, last = lines()
    assert [word in first for word in ("all", "api.example.com", "user")] == [True] * 3
    assert "Rows: 253" in last
    assert "moved: 1" in last
    sync()
    assert state["last_updated_at"] in lines()[0]


@pytest.mark.parametrize("total", [None, 300, 1000, 2**62])
def test_about_every_ten_seconds_the_log_says_how_far_the_sync_is(
    api, sync, clock, slow_destination, lines, total
):
    api.add(1000)
    api.total = lambda *_: total
    slow_destination(4)
    sync()
    _, *progress, last = lines()
    assert len(progress) == 3
    for line in progress:
        rows = int(re.match(r"[\d,]+", line)[0].replace(",", ""))
        assert timestamp(EPOCH + timedelta(seconds=rows)) in line
        assert ("1,000" in line) == (total == 1000)
    assert f"{clock.now:.0f} s" in last


def test_waits_and_retries_are_counted(api, sync, lines):
    api.add(3)
    api.answers = {1: (503, {"Retry-After": "20"}, "")}
    sync()
    last = lines()[-1]
    assert "20 s waiting" in last
    assert "retries: 1" in last


def test_a_long_sync_says_no_line_per_page(api, sync, lines, monkeypatch):
    monkeypatch.setattr(connector, "WINDOW_ROWS", 500)
    api.add(2000)
    sync(page_size="10")
    assert len(lines()) == 2


@pytest.mark.parametrize("state", [{}, {"last_updated_at": "2030-01-01T00:00:00Z"}])
def test_a_sync_that_brings_no_row_warns_that_api_key_base_url_or_the_state_may_be_wrong(
    api, sync, lines, state
):
    api.add(3 if state else 0)
    sync(state)
    (warning,) = lines("WARNING")
    assert [
        word for word in ("api_key", "base_url", "fivetran reset") if word not in warning
    ] == []


def test_a_quiet_sync_does_not_warn_as_the_last_row_comes_again(api, sync, lines):
    api.add(3)
    sync()
    sync()
    assert lines("WARNING") == []
