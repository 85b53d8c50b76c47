"""All histories of small lists: faults of a rule about neighbors show there, if none is left out.

A list of five or six rows in each pattern of ties is read in pages of three. Before one of the requests, each of them,
one row changes, is deleted or shows late, or two neighbors change, whichever they are; the next page may be that of the
moment before; the sync may die behind its first page. Then all is calm, and after one more sync the table must be the
list. So it is, with a total and without,

- for an API that returns the three rows that are asked for, or three of five;
- with no page of the moment before, for one that leaves out a row, whichever it is (of six: where two change);
- for pages of six of a list of nine rows, where not more than two share a time, and ties stand the other way round on
  every other page: one row or two neighbors change.

A list at rest is read without going back. No HTTP is involved: the client is a list.
"""

from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import connector
from connector import LIST_START, Page, PageSource, Reader, Timestamp, next_cursor
from memory_api import EPOCH, ID, UPDATED_AT, timestamp

TIMES = [Timestamp.parse(timestamp(EPOCH + timedelta(minutes=minute))) for minute in range(60)]
LOOKBACK = 5  # minutes


class History(NamedTuple):
    minutes: list  # when each row was updated, after EPOCH
    dies: bool  # whether the first sync ends behind its first page
    hidden: int | None = None  # which row is left out of the pages
    change: str = ""  # what happens to rows
    rows: tuple = ()
    at: int = 0  # before which request, counted from 1
    is_stale: bool = False  # whether the next request is answered from before that


class Answered(NamedTuple):
    """A future that is done."""

    page: Page

    def result(self) -> Page:
        return self.page

    def done(self) -> bool:
        return True


class List:
    """A list of rows, which the connector takes for its HTTP client: it answers at once."""

    def __init__(self, history: History, has_total: bool, page_cap: int, turns_ties: bool):
        minutes = enumerate(history.minutes)
        self.rows = {id: {ID: id, UPDATED_AT: TIMES[m], "version": 0} for id, m in minutes}
        self.history, self.has_total, self.page_cap = history, has_total, page_cap
        self.turns_ties = turns_ties
        # all rows have settled, or there are some that can show late in front of others
        self.now = 8 if history.change == "shows late" else 20
        self.asked = 0
        self._before = self._sorted = self.sorted()

    def sorted(self) -> list:
        sign = -1 if self.turns_ties and self.asked % 2 else 1
        return sorted(self.rows.values(), key=lambda row: (row[UPDATED_AT], sign * row[ID]))

    def happen(self):
        for id in self.history.rows:
            row = self.rows.pop(id)
            if self.history.change == "changes":
                self.rows[id] = row | {UPDATED_AT: TIMES[self.now], "version": 1}
            elif self.history.change == "shows late":
                late = max(row[UPDATED_AT], TIMES[self.now - LOOKBACK + 1])
                self.rows[id] = row | {UPDATED_AT: late, "version": 1}
        self._before, self._sorted = self._sorted, self.sorted()

    def send(self, request) -> Answered:
        self.asked += 1
        assert self.asked < 60, "the sync does not end"
        if self.turns_ties:
            self._sorted = self.sorted()
        if self.asked == self.history.at:
            self.happen()
        is_stale = self.history.is_stale and self.asked == self.history.at + 1
        rows = self._before if is_stale else self._sorted
        matching = [row for row in rows if row[UPDATED_AT] >= request.since]
        page = matching[request.offset : request.offset + min(request.limit, self.page_cap)]
        shown = [row for row in page if row[ID] != self.history.hidden]
        total = len(matching) if self.has_total else None
        return Answered(Page(shown, total, request.offset, TIMES[self.now]))

    def calm(self):
        """Let time pass, in which nothing happens any more."""
        self.now += 20
        self.asked, self.history = 0, self.history._replace(at=0, is_stale=False)

    def close(self):
        pass


def sync(rows: List, table: dict, cursor: Timestamp, dies: bool, page_size: int) -> tuple:
    """Run one sync into a table. Returns its cursor, and how many pages were not where it looked for them."""
    settings = SimpleNamespace(
        page_size=page_size, parallel_requests=1, lookback_seconds=60 * LOOKBACK, start_date=None
    )
    reader = Reader(PageSource(settings), settings, cursor)
    for page in reader.pages():
        table.update((row[ID], row["version"]) for row in page)
        cursor = next_cursor(cursor, page, reader.settled)
        if dies:
            break
    return cursor, reader.setbacks


def patterns(count: int, most_ties: int) -> list:
    """The minutes of the rows of a list, in each pattern of ties."""
    ties = product([0, 1], repeat=count - 1)
    minutes = [[1 + sum(steps[:place]) for place in range(count)] for steps in ties]
    return [times for times in minutes if max(map(times.count, times)) <= most_ties]


def changes_of(count: int) -> list:
    """What may happen to a list, and to which rows."""
    kinds = ("changes", "is deleted", "shows late")
    one_row = [(kind, (id,)) for kind, id in product(kinds, range(count))]
    return one_row + [("changes", (id, id + 1)) for id in range(count - 1)]


def changed(calm: History, requests: int, changes: list, may_be_stale: bool) -> Iterator[History]:
    """A history with each change before each request of its first sync."""
    for at, (change, rows) in product(range(1, requests + 1), changes):
        history = calm._replace(at=at, change=change, rows=rows)
        yield history
        if may_be_stale and at < requests:
            yield history._replace(is_stale=True)


@pytest.mark.parametrize(
    ("count", "page_size", "has_total", "api"),
    [
        (5, 3, True, ""),
        (6, 3, True, ""),
        (6, 3, False, ""),
        (5, 5, True, ""),
        (6, 5, False, ""),
        (5, 3, True, "hides"),
        (5, 3, False, "hides"),
        (6, 3, False, "hides"),
        (9, 6, False, "turns ties"),
    ],
)
def test_no_row_of_a_small_list_is_lost_in_any_history(
    monkeypatch, count, page_size, has_total, api
):
    silent = SimpleNamespace(info=lambda line: None, warning=lambda line: None)
    monkeypatch.setattr(connector, "log", silent)
    monkeypatch.setattr(connector, "Client", lambda settings: rows)
    turns_ties, hidden_rows = api == "turns ties", range(count) if api == "hides" else [None]
    page_cap, most_ties = (6, 2) if turns_ties else (3, count)
    changes = changes_of(count)
    if turns_ties:
        changes = [(change, rows) for change, rows in changes if change == "changes"]
    elif api and count == 6:
        changes = [(change, rows) for change, rows in changes if len(rows) == 2]
    lost, number = [], 0
    for minutes, dies, hidden in product(patterns(count, most_ties), [False, True], hidden_rows):
        histories = [History(minutes, dies, hidden)]
        for history in histories:
            rows, table = List(history, has_total, page_cap, turns_ties), {}
            cursor, setbacks = sync(rows, table, LIST_START, dies, page_size)
            if not history.at:
                histories.extend(changed(history, rows.asked, changes, not api))
                assert setbacks == 0 or api == "hides", history
            rows.calm()
            sync(rows, table, cursor, False, page_size)
            number += 1
            wanted = {id: row["version"] for id, row in rows.rows.items() if id != hidden}
            if not wanted.items() <= table.items():
                lost.append(history)
    assert lost == []
    assert number > 2000  # so that a change of this file cannot empty it unseen
