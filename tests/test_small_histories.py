"""All histories of small lists: faults of a rule about neighbors show there, if none is left out.

A list of few rows, in each pattern of ties, is read in small pages, with one request in flight and with four. Before one
of the requests, each of them, one row changes, is deleted or shows late, or two neighbors change, whichever they are; or
a page that should begin the list comes empty. The next page may be that of the moment before; the sync may die behind
its first page. Then all is calm, and after one more sync the table must be the list.

`QUICK` and `SLOW` say for which APIs. What is left out of these, to be done in time, the environment variable HISTORIES brings
back: with HISTORIES=10 ten times as many run, to all there are, others in each run.

No HTTP is involved: the client is a list. A history that fails is told request by request.
"""

import os
import random
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import connector
from connector import Page, Row, SyncError, Timestamp
from memory_api import EPOCH, ID, TABLE, UPDATED_AT, URL, timestamp

TICK = timedelta(seconds=12)  # between two rows
TIMES = [Timestamp.parse(timestamp(EPOCH + tick * TICK)) for tick in range(99)]
TICKS = {time: tick for tick, time in enumerate(TIMES)}
MINUTE, DAY = 5, 99  # ticks
LOOKBACK = 5  # ticks
SHUFFLES = [random.Random(end).sample(range(20), 20) for end in range(200)]
MORE = int(os.environ.get("HISTORIES", "0"))


class Api(NamedTuple):
    """What is special about an API."""

    cap: int = 99  # rows that a page has at most, whatever it is asked for
    has_total: bool = True
    ties: str = "by key"  # or "turned" on every other page, or "shuffled" by limit + offset
    cut: int = 1  # ticks that its filter cuts its time to
    excludes: bool = False  # whether the filter leaves out the rows of just its time
    depth: int = 99  # rows that it shows of a list
    page_bytes: int = 0  # that a page has at most: of 1 to 3 for each row, but three rows at least
    hides: bool = False  # whether it leaves out a row, whichever it is


class Case(NamedTuple):
    """Lists of one length, and how they are read."""

    count: int
    page_size: int
    api: Api = Api()
    most_ties: int = 99
    one_group: int = 0  # rows of the only group of ties, if not each pattern of them
    changes: str = "changes, is deleted, shows late, two change, comes empty"
    may_be_stale: bool = True
    may_die: bool = True
    may_warn: bool = False  # whether the connector may say that rows could be missing
    may_lose: bool = False  # whether rows may be missing, if it said so


# a row of just the time at which a sync ended, or a page, cannot be known if the filter leaves it out
EXCLUDES = {"changes": "changes, is deleted", "may_warn": True}


class History(NamedTuple):
    ticks: list  # when each row was updated, after EPOCH
    dies: bool  # whether the first sync ends behind its first page
    hidden: int | None = None  # which row is left out of the pages
    change: str = ""  # what happens to rows
    rows: tuple = ()
    at: int = 0  # before which request, counted from 1
    is_stale: bool = False  # whether the next request is answered from before that


class Answered(Future):
    """A future that was done when it was made, though nobody knows before the result is fetched."""

    is_fetched = False

    def done(self) -> bool:
        return self.is_fetched

    def result(self, timeout=None) -> Page:
        self.is_fetched = True
        return super().result(timeout)


class List:
    """A list of rows, which the connector takes for its HTTP client: it answers at once."""

    table = TABLE

    def __init__(self, case: Case, history: History):
        self.rows = {
            id: Row(id, TIMES[tick], {ID: id, UPDATED_AT: TIMES[tick], "version": 0})
            for id, tick in enumerate(history.ticks)
        }
        self.case, self.api, self.history = case, case.api, history
        # all rows have settled, or there are some that can show late in front of others
        self.now = case.count + (2 if history.change == "shows late" else 14)
        self.requests = []  # of this sync
        self.story = []
        self._before = self._sorted = self.sorted()

    def sorted(self) -> list:
        return sorted(self.rows.values(), key=lambda row: (row.time, row.key))

    def happen(self):
        for id in self.history.rows:
            row = self.rows.pop(id)
            if self.history.change in ("changes", "two change"):
                time = TIMES[self.now]
            elif self.history.change == "shows late":
                time = max(row.time, TIMES[self.now - LOOKBACK + 1])
            else:
                continue
            self.rows[id] = Row(id, time, {ID: id, UPDATED_AT: time, "version": 1})
        self._before, self._sorted = self._sorted, self.sorted()

    def send(self, request) -> Future:
        self.requests.append((request.since, request.offset, request.limit))
        number, at = len(self.requests), self.history.at
        assert number < 99, "the sync does not end"
        if number == at:
            self.happen()
        rows = self._before if self.history.is_stale and number == at + 1 else self._sorted
        matching = self.ordered(self.matching(rows, request.since), request)
        page = matching[: self.api.depth][request.offset :][: min(request.limit, self.api.cap)]
        page = [row for row in self.fitting(page) if row.key != self.history.hidden]
        total = len(matching)
        if self.history.change == "comes empty" and number == at and not request.offset:
            page, total = [], 0
        self.story.append((request, page))
        future = Answered()
        total = total if self.api.has_total else None
        future.set_result(Page(page, total, request.offset, TIMES[self.now]))
        return future

    def matching(self, rows: list, since: Timestamp) -> list:
        if since not in TICKS:
            return rows
        since = TIMES[TICKS[since] // self.api.cut * self.api.cut]
        return [
            row
            for row in rows
            if row.time > since or (row.time == since and not self.api.excludes)
        ]

    def ordered(self, rows: list, request) -> list:
        if self.api.ties == "turned" and len(self.requests) % 2:
            return sorted(rows, key=lambda row: (row.time, -row.key))
        if self.api.ties == "shuffled":
            places = SHUFFLES[request.offset + request.limit]
            return sorted(rows, key=lambda row: (row.time, places[row.key]))
        return rows

    def fitting(self, rows: list) -> list:
        if not self.api.page_bytes:
            return rows
        sizes = [1 + row.key % 3 for row in rows]
        return [
            row
            for n, row in enumerate(rows)
            if n < 3 or sum(sizes[: n + 1]) <= self.api.page_bytes
        ]

    def calm(self):
        """Let time pass, in which nothing happens any more."""
        self.now += 20
        self.requests, self.history = [], self.history._replace(at=0, is_stale=False)
        self.story.append("later")

    def close(self):
        pass


class Dies(Exception):
    """What ends a sync from outside."""


class Warehouse:
    """Takes the operations of syncs, in place of the SDK's, as it does: rows are written by the next checkpoint."""

    def __init__(self, story: list):
        self.table, self.state, self.warnings = {}, {}, []
        self.dies, self.checkpoints, self.delivered, self.waiting = False, 0, set(), {}
        self.story = story

    def upsert(self, table: str, row: dict):
        self.end_if_killed()
        version = row[ID], row["version"]
        assert version not in self.delivered, f"row {row[ID]} arrives twice"
        self.delivered.add(version)
        self.waiting[row[ID]] = row["version"]

    def checkpoint(self, state: dict):
        self.end_if_killed()
        self.table.update(self.waiting)
        self.state, self.waiting = dict(state), {}
        self.checkpoints += 1
        self.story.append(state)

    def warning(self, text: str):
        if self.delivered:  # without a row, it says that
            self.warnings.append(text)
        self.story.append(f"warning: {text}")

    def end_if_killed(self):
        if self.dies and self.checkpoints:
            raise Dies

    def run(self, dies: bool):
        """Run a sync. One that the connector gives up counts as a warning if it says to reset."""
        self.dies, self.checkpoints, self.delivered, self.waiting = dies, 0, set(), {}
        try:
            connector.update({}, self.state)
        except Dies:
            self.story.append("the sync dies")
        except SyncError as error:
            self.story.append(f"failed: {error}")
            if "reset" not in str(error):
                raise
            self.warnings.append(str(error))


def patterns(case: Case) -> list:
    """When the rows of a list were updated, in each pattern of ties."""
    if case.one_group:
        places = range(case.count - case.one_group + 1)
        steps = [
            [int(not at < n < at + case.one_group) for n in range(1, case.count)] for at in places
        ]
    else:
        steps = product([0, 1], repeat=case.count - 1)
    ticks = [[1 + sum(some[:place]) for place in range(case.count)] for some in steps]
    return [times for times in ticks if max(map(times.count, times)) <= case.most_ties]


def changes_of(case: Case) -> list:
    """What may happen to a list, and to which rows."""
    kinds = [
        kind
        for kind in ("changes", "is deleted", "shows late")
        if kind in case.changes.split(", ")
    ]
    changes = [(kind, (id,)) for kind, id in product(kinds, range(case.count))]
    if "two change" in case.changes:
        changes += [("two change", (id, id + 1)) for id in range(case.count - 1)]
    return changes + [("comes empty", ())] * ("comes empty" in case.changes)


def changed(calm: History, requests: int, case: Case) -> Iterator[History]:
    """A history with each change before each request of its first sync."""
    for at, (change, rows) in product(range(1, requests + 1), changes_of(case)):
        history = calm._replace(at=at, change=change, rows=rows)
        yield history
        if case.may_be_stale and at < requests and rows:
            yield history._replace(is_stale=True)


def fault_of(case: Case, history: History, parallel: int, monkeypatch) -> tuple[str, List]:
    """Run a history. Returns what is wrong with its outcome, "" if nothing is, and its list."""
    rows = List(case, history)
    warehouse = Warehouse(rows.story)
    monkeypatch.setattr(connector, "Client", lambda table, settings: rows)
    monkeypatch.setattr(connector, "op", warehouse)
    requests = []
    try:
        warehouse.run(history.dies)
        requests = rows.requests
        rows.calm()
        warehouse.run(False)
    except (AssertionError, SyncError) as error:
        return f"{type(error).__name__}: {error}", rows
    finally:
        rows.requests = requests or rows.requests
    lost = [
        id
        for id, row in rows.rows.items()
        if id != history.hidden and warehouse.table.get(id) != row.values["version"]
    ]
    if lost and not (case.may_lose and warehouse.warnings):
        return f"lost: {lost}", rows
    if warehouse.warnings and not case.may_warn:
        return f"warned: {warehouse.warnings}", rows
    is_plain = case.page_size > 3 and case.api[2:] == Api()[2:]  # smaller pages may grow
    if parallel == 1 and not history.at and is_plain:
        places = [(since, offset) for since, offset, _ in requests]
        if places != sorted(places):
            return "a list at rest is not read from its front to its end", rows
    return "", rows


def told(fault: str, history: History, rows: List) -> str:
    """A history as a story."""
    lines = [fault, f"{history}"]
    for what in rows.story:
        if isinstance(what, tuple):
            request, page = what
            since = f"since {TICKS[request.since]} " if request.since in TICKS else ""
            shown = " ".join(f"{row.key}@{TICKS[row.time]}" for row in page)
            lines.append(
                f"  {since}offset {request.offset} limit {request.limit}: {shown or 'nothing'}"
            )
        else:
            lines.append(f"  {what}")
    return "\n".join(lines)


SHUFFLED = Api(ties="shuffled")
CAPPED = Api(ties="shuffled", cap=4)
QUICK = {
    "pages of 3": Case(5, 3),
    "a cap of 3": Case(5, 5, Api(cap=3, has_total=False)),
    "a hidden row": Case(5, 3, Api(hides=True), may_warn=True),
    "shuffled ties": Case(5, 3, SHUFFLED),
    "shuffled ties on capped pages": Case(5, 4, CAPPED, may_warn=True, may_lose=True),
    "a filter cut to the day": Case(5, 3, Api(cut=DAY)),
    "a filter that excludes its time": Case(5, 3, Api(excludes=True), 1, **EXCLUDES),
    "a depth of 5": Case(5, 3, Api(depth=5, has_total=False)),
    "pages of 6 bytes": Case(5, 5, Api(page_bytes=6)),
}
SLOW = {
    "pages of 3": Case(6, 3),
    "pages of 3 without a total": Case(6, 3, Api(has_total=False)),
    "pages of 5": Case(7, 5),
    "a cap of 3": Case(6, 5, Api(cap=3, has_total=False)),
    "a hidden row": Case(6, 3, Api(hides=True, has_total=False)),
    "ties turned on every other page": Case(9, 6, Api(ties="turned", has_total=False), 2),
    "many ties turned on every other page": Case(9, 6, Api(ties="turned")),
    "shuffled ties": Case(9, 6, SHUFFLED),
    "a group of 9 shuffled ties": Case(11, 6, SHUFFLED, one_group=9),
    "shuffled ties at rest": Case(9, 3, SHUFFLED, changes="comes empty"),
    "few shuffled ties on capped pages": Case(9, 4, CAPPED, 3),
    "many shuffled ties on capped pages at rest": Case(
        9, 4, CAPPED, changes="comes empty", may_warn=True, may_lose=True
    ),
    "many shuffled ties on capped pages": Case(
        11, 8, Api(ties="shuffled", cap=6), one_group=9, may_warn=True, may_lose=True
    ),
    "4 shuffled ties, a filter cut to the day": Case(
        16, 6, SHUFFLED._replace(cut=DAY), one_group=4
    ),
    "4 shuffled ties, a filter cut to the minute": Case(
        16, 6, SHUFFLED._replace(cut=MINUTE), one_group=4
    ),
    "4 shuffled ties, a filter cut to the day, a cap": Case(
        16, 10, Api(ties="shuffled", cap=10, cut=DAY), one_group=4
    ),
    "3 shuffled ties, a filter cut to the minute, a cap": Case(
        16, 8, Api(ties="shuffled", cap=8, cut=MINUTE, has_total=False), one_group=3, may_warn=True
    ),
    "a filter cut to the minute": Case(8, 4, Api(cut=MINUTE)),
    "a filter that excludes its time": Case(8, 3, Api(excludes=True), 1, **EXCLUDES),
    "a depth of 6": Case(9, 3, Api(depth=6), 5),
    "pages of 8 bytes": Case(8, 6, Api(page_bytes=8)),
    "pages of 8 bytes without a total": Case(8, 6, Api(page_bytes=8, has_total=False)),
}


@pytest.fixture
def world(monkeypatch):
    silent = SimpleNamespace(info=lambda line: None, warning=lambda line: None)
    monkeypatch.setattr(connector, "log", silent)
    return monkeypatch


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("name", QUICK)
def test_no_row_of_a_list_of_five_is_lost(world, name, parallel):
    assert run_case(world, QUICK[name], parallel, most=500) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("name", SLOW)
def test_no_row_of_a_small_list_is_lost_in_any_history(world, name, parallel):
    assert run_case(world, SLOW[name], parallel, most=800) >= 200


@pytest.mark.parametrize("parallel", [1, 4])
def test_ties_that_a_filter_leaves_out_are_not_lost_without_a_word(world, parallel):
    case = Case(5, 3, Api(excludes=True), changes="", may_die=False, may_warn=True, may_lose=True)
    run_case(world, case, parallel, most=500)


def run_case(monkeypatch, case: Case, parallel: int, most: int) -> int:
    """Run the histories of a case, not many more than so many. Returns their number."""
    configuration = {
        "base_url": URL,
        "page_size": str(case.page_size),
        "parallel_requests": str(parallel),
        "lookback_seconds": str(int(LOOKBACK * TICK.total_seconds())),
    }
    settings = connector.validate_configuration(configuration)
    monkeypatch.setattr(connector, "validate_configuration", lambda configuration: settings)
    if case.api.ties == "by key":  # no page is long enough to show eight
        monkeypatch.setattr(connector, "SURE_OVERLAP", 1)
    faults = {}

    def run(history: History) -> int:
        fault, rows = fault_of(case, history, parallel, monkeypatch)
        if fault:
            kind = fault.partition(":")[0]
            faults.setdefault(kind, []).append((len(rows.story), told(fault, history, rows)))
        return len(rows.requests)

    hidden_rows = range(case.count) if case.api.hides else [None]
    deaths = [False, True] if case.may_die else [False]
    calm = [History(*what) for what in product(patterns(case), deaths, hidden_rows)]
    histories = [more for history in calm for more in changed(history, run(history), case)]
    if len(histories) > most * max(MORE, 1):
        histories = random.Random(None if MORE else 0).sample(histories, most * max(MORE, 1))
    for history in histories:
        run(history)
    number = len(calm) + len(histories)
    if faults:
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in faults.items())
        shortest = "\n".join(min(found)[1] for found in faults.values())
        pytest.fail(f"Of {number} histories: {counts}. The shortest:\n{shortest}", pytrace=False)
    return number
