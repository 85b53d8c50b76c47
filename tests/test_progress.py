"""What a sync says while it runs."""

import json
from datetime import timedelta

import connector
from memory_api import EPOCH, timestamp


def lines(capsys, level="INFO") -> list:
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [message["message"] for message in messages if message["level"] == level]


def test_the_log_says_what_will_be_read_and_what_was_done(api, sync, capsys):
    api.add(250)
    sync()
    first, last = lines(capsys)
    assert first == "Reading all rows from api.example.com into `user`."
    assert last == (
        "Done in 0:00:00, of which 0:00:00 waiting for the API. Rows: 250, pages: 3, retries: 0, pages read again as "
        "they had moved: 0."
    )
    sync(lookback_seconds="60")
    assert lines(capsys)[0] == (
        f"Reading rows updated since {timestamp(EPOCH + timedelta(seconds=190))} "
        "from api.example.com into `user`."
    )


def test_an_absurd_total_does_not_stop_the_log(api, sync, destination, clock, monkeypatch):
    api.add(100)
    api.total_excess = 2**62
    checkpoint = destination.checkpoint
    monkeypatch.setattr(
        destination, "checkpoint", lambda state: clock.sleep(20) or checkpoint(state)
    )
    assert len(sync(page_size="50").table) == 100


def test_every_ten_seconds_the_log_says_how_far_the_sync_is(
    api, sync, destination, clock, capsys, monkeypatch
):
    """Each page takes 4 seconds to write here."""
    api.add(1000)
    checkpoint = destination.checkpoint
    monkeypatch.setattr(
        destination, "checkpoint", lambda state: clock.sleep(4) or checkpoint(state)
    )
    sync()
    _, first, second, third, last = lines(capsys)
    assert (
        first
        == "298 of 1,000 rows (29 %), updated up to 2024-01-01T00:04:58Z. Time left: 0:00:28."
    )
    assert (
        second
        == "595 of 1,000 rows (59 %), updated up to 2024-01-01T00:09:55Z. Time left: 0:00:16."
    )
    assert third.startswith("892 of 1,000 rows (89 %)")
    assert last.startswith(
        "Done in 0:00:44, of which 0:00:00 waiting for the API. Rows: 1,000, pages: 11,"
    )


def test_the_log_goes_on_where_the_total_does_not_say_how_far_the_sync_is(
    api, sync, destination, clock, capsys, monkeypatch
):
    api.add(1000)
    api.total_cap = 300
    checkpoint = destination.checkpoint
    monkeypatch.setattr(
        destination, "checkpoint", lambda state: clock.sleep(11) or checkpoint(state)
    )
    sync()
    assert "595 rows, updated up to 2024-01-01T00:09:55Z." in lines(capsys)


def test_waits_and_retries_are_counted(api, sync, capsys):
    api.add(3)
    api.answers = {1: (503, {"Retry-After": "20"}, "")}
    sync()
    last = lines(capsys)[-1]
    assert last.startswith("Done in 0:00:20, of which 0:00:20 waiting for the API.")
    assert "retries: 1," in last


def test_pages_that_moved_are_told_of_in_one_line(api, sync, capsys):
    api.add(500)
    api.before = [None, lambda: api.touch("1"), None, lambda: api.touch("150")]
    sync()
    assert lines(capsys)[-1].endswith("pages read again as they had moved: 2.")


def test_a_long_sync_says_no_line_per_page(api, sync, capsys, monkeypatch):
    monkeypatch.setattr(connector, "WINDOW_ROWS", 500)
    api.add(2000)
    sync(page_size="10")
    assert len(lines(capsys)) == 2
