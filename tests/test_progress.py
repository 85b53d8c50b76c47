"""What a sync says while it runs."""

import json
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
    api.before = [None, lambda: api.touch("1"), None, lambda: api.touch("150")]
    sync()
    first, last = lines()
    assert [word in first for word in ("all", "api.example.com", "user")] == [True] * 3
    assert "Rows: 252" in last
    assert "moved: 2" in last
    sync(lookback_seconds="60")
    assert timestamp(EPOCH + timedelta(seconds=190)) in lines()[0]


def test_an_absurd_total_does_not_stop_the_log(api, sync, slow_destination):
    api.add(100)
    api.total_excess = 2**62
    slow_destination(20)
    assert len(sync(page_size="50").table) == 100


def test_about_every_ten_seconds_the_log_says_how_far_the_sync_is(
    api, sync, slow_destination, lines
):
    api.add(1000)
    slow_destination(4)
    sync()
    _, *progress, last = lines()
    assert ["29 %" in progress[0], "59 %" in progress[1], "89 %" in progress[2]] == [True] * 3
    assert "298" in progress[0]
    assert timestamp(EPOCH + timedelta(seconds=298)) in progress[0]
    assert len(progress) == 3
    assert "44 s" in last


def test_the_log_goes_on_where_the_total_does_not_say_how_far_the_sync_is(
    api, sync, slow_destination, lines
):
    api.add(1000)
    api.total_cap = 300
    slow_destination(11)
    sync()
    assert any("595" in line for line in lines())


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


def test_an_incremental_sync_that_reads_nothing_warns_that_the_state_may_be_another_apis(
    api, sync, lines
):
    api.add(3)
    sync({"last_updated_at": "2030-01-01T00:00:00Z"})
    (warning,) = lines("WARNING")
    assert "2030-01-01T00:00:00Z" in warning
    assert "fivetran reset" in warning


def test_no_such_warning_where_the_last_row_comes_again_or_the_list_is_empty(api, sync, lines):
    sync()
    api.add(3)
    sync()
    sync()
    assert lines("WARNING") == []
