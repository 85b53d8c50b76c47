"""Sync the users of a REST API into the table `user`: first all of them, then only what changed.

The API lists its rows by `updatedAt`: `updated_since` asks for those of that time or later, and
`limit` and `offset` page through them. No row is lost although the list changes while it is read:
`Reader` says why.
To sync other lists, or another API, change the section "The API", and no other.
"""

import json
import re
import traceback
from base64 import b64decode
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from itertools import pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from queue import SimpleQueue
from random import random
from threading import Thread
from time import monotonic, sleep
from types import NoneType
from typing import Annotated, Any, NamedTuple, Required
from urllib.parse import urlsplit

import pydantic
import requests
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op
from pydantic import BaseModel, Field, HttpUrl, SecretStr, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict

# The API


class Table(NamedTuple):
    """A table of the warehouse, and the list of the API that fills it."""

    name: str
    primary_key: list[str]  # fields, by the API's names; no two rows have the same values
    updated_at: str  # the field with the time of a row's last change
    columns: dict  # the SDK's types, by field; other fields get theirs from their values
    path: str = ""  # of the list, under base_url
    deleted: str = ""  # a field that is true in rows that the API has deleted: declare its type


TABLES = [
    Table(
        name="user",
        primary_key=["id"],
        updated_at="updatedAt",
        columns={
            "id": "STRING",
            "name": "STRING",
            "email": "STRING",
            "address": "STRING",
            "company": "STRING",
            "job": "STRING",
            "updatedAt": "UTC_DATETIME",
            "createdAt": "UTC_DATETIME",
        },
    )
]


def http_request(table: Table, url: str, key: str, page: "PageRequest") -> requests.Request:
    """Return the request for up to `page.limit` rows from `page.offset` on, oldest change first.

    They are those updated at `page.since` or later: a `datetime` in UTC, whose `text` is the time
    as the API wrote it, or "" for all rows. `url` is that of the table's list, `key` is `api_key`.
    Several threads call this at a time. It may raise `SyncError` to end the sync, `Unavailable` to
    be called again later.
    """
    parameters = {
        "updated_since": page.since.text or None,  # None leaves it out
        "order_by": table.updated_at,
        "order_type": "asc",
        "limit": page.limit,
        "offset": page.offset,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.Request("GET", url, headers=headers, params=parameters)


def rows_of(body: Any) -> list[dict]:
    """Return all rows in the JSON of an answer, in its order. A row that is left out is lost.

    Threads call it, and it may raise errors, as `http_request`. None is an empty list.
    """
    return body["data"]


def total_of(body: Any, headers: Mapping) -> int:
    """Return how many rows match in all. It is a hint: any error means that it is not known."""
    return body["total"]


# Limits

CLOCK_SKEW = timedelta(seconds=10)  # between the clocks of the `Date` header and of timestamps
WINDOW_ROWS = 10_000  # the largest offset plus limit: many APIs refuse more, or show nothing
LEAST_OVERLAP = 2  # rows that two pages share: the last one that was read, and one in front of it
SURE_OVERLAP = 8  # ties shown in their order of reading that suffice although others have left
MAX_SETBACKS = 8  # batches in a row without a page that joins
MAX_CHANGED_PAGES = 100  # pages of rows that changed during the sync, after which it ends

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds; the latter for each read of the socket
MAX_TRIES = 7  # requests for one page: with their waits, they outlast a limit per minute
FIRST_TRIES = 3  # the same, before the API has answered at all
MAX_BACKOFF, MAX_RETRY_AFTER = 60, 600  # seconds
CALM_PAGES = 8  # pages without a failure, for each request in flight, that win back what one took
PROGRESS_SECONDS = 10  # between two progress messages
RESET = "reset the state (`fivetran reset`, or a re-sync on Fivetran)"


class SyncError(Exception):
    """The sync cannot go on. The message says what came and what to do."""


class Refused(SyncError):
    """The API does not accept a request: its page size, its offset, or something else."""


class Unavailable(SyncError):
    """A retry may succeed.

    `retry_after`: the seconds that the API asks to wait, 0 if it does not say how long, None if it
    does not ask. `too_large`: whether fewer rows might have come whole, and in time.
    """

    def __init__(self, message: str, retry_after: float | None = None, too_large: bool = False):
        super().__init__(message)
        self.retry_after, self.too_large = retry_after, too_large


# The connector


def schema(configuration: dict):
    """Declare the tables, with the columns whose type must not depend on their first values."""
    return [
        {"table": table.name, "primary_key": table.primary_key, "columns": table.columns}
        for table in TABLES
    ]


def update(configuration: dict, state: dict):
    """Sync every table. One that fails does not keep the others from being synced.

    `configuration` has strings by name, as `Settings` declares them; `state` is {} for a full
    sync, else as `write_state` returns it. Raises `ValueError` if one of them cannot be used,
    `SyncError` if the API gives no page, or a list cannot be read without a gap. The state is then
    that of the last page delivered, and the next sync goes on from there.
    """
    settings = validate_configuration(configuration)
    cursors = read_state(state)
    failures = []
    for table in TABLES:
        try:
            sync(table, settings, cursors)
        except SyncError as error:
            failures.append(f"`{table.name}`: {error}" if len(TABLES) > 1 else str(error))
    if failures:
        raise SyncError("\n".join(failures))


def sync(table: Table, settings: "Settings", cursors: dict[str, "Timestamp"]):
    """Upsert every row updated since a table's cursor, and checkpoint after every page."""
    marks_deleted = settings.mark_deleted and cursors[table.name] == LIST_START
    count, began, last_report = 0, monotonic(), monotonic()
    with closing(Client(table, settings)) as client:
        reader = Reader(client, settings, cursors[table.name], reads_all=marks_deleted)
        what = f"rows updated since {reader.since.text}" if reader.since.text else "all rows"
        log.info(f"Reading {what} from {settings.base_url.host} into `{table.name}`.")
        for rows in reader.pages():
            if marks_deleted and not count:
                op.truncate(table.name)  # marks all rows as deleted; an upsert unmarks its row
            for row in rows:
                write(table, row)
            cursors[table.name] = next_cursor(cursors[table.name], rows, reader.settled)
            op.checkpoint(write_state(cursors))
            count += len(rows)
            if monotonic() - last_report >= PROGRESS_SECONDS:
                last_report = monotonic()
                rows_left = reader.last_page.rows_left
                left = f", about {rows_left:,} left" if rows_left else ""
                log.info(f"{count:,} rows, up to {rows[-1].time.text}{left}.")
    log.info(
        f"Done in {monotonic() - began:.0f} s, {reader.waited:.0f} s waiting for the API. "
        f"Rows: {count:,}, retries: {reader.pace.retries:,}, pages that had moved: "
        f"{reader.pace.pages_dropped:,}."
    )
    if not count:  # not even the one that the last sync stopped at
        op.warning(
            f"No row came into `{table.name}`. If some should, check base_url and api_key, and "
            f"whether the filter includes its own time; if the state is another list's, {RESET}."
        )


def write(table: Table, row: "Row"):
    """Upsert a row, or mark it as deleted if the API says that it is."""
    if table.deleted and row.values.get(table.deleted):
        op.delete(table.name, {field: row.values[field] for field in table.primary_key})
    else:
        op.upsert(table.name, row.values)


def read_state(state: dict) -> dict[str, "Timestamp"]:
    """Return by table where its last sync stopped. Raises `ValueError` if it cannot be read."""
    saved = state.get("last_updated_at") if state else {}
    names = [table.name for table in TABLES]
    if isinstance(saved, str) and len(names) > 1:
        op.warning(f"The state is that of one table, `{names[0]}`: the others are read in full.")
    texts = saved if isinstance(saved, dict) else {names[0]: saved}
    try:
        if texts and not texts.keys() & set(names):
            raise ValueError(f"should name one of the tables {', '.join(names)}")
        found = {name: Timestamp.parse(texts[name]) for name in names if name in texts}
    except ValueError as error:
        raise ValueError(f"The state's last_updated_at {error}. Correct it, or {RESET}.") from None
    return {name: found.get(name, LIST_START) for name in names}


def write_state(cursors: dict[str, "Timestamp"]) -> dict:
    """Return {"last_updated_at": "<the API's text>"}; of several tables, an object by table."""
    texts = {name: cursor.text for name, cursor in cursors.items() if cursor.text}
    saved = texts if len(cursors) > 1 else "".join(texts.values())
    return {"last_updated_at": saved} if saved else {}


def next_cursor(cursor: "Timestamp", rows: list["Row"], settled: datetime) -> "Timestamp":
    """Return the cursor to checkpoint after a page: the last time in it not later than `settled`.

    Among later rows, some may still appear, from transactions that take long: the next sync reads
    all of those again. The cursor never goes back, and stays as it is until a row has settled.
    """
    times = (row.time for row in reversed(rows) if row.time <= settled)
    return max(cursor, next(times, cursor))


# Reading a list


class Timestamp(datetime):
    """A time in UTC that remembers how the API wrote it, which is how it is sent back."""

    text = ""

    @classmethod
    def parse(cls, text: object) -> "Timestamp":
        """Parse an ISO 8601 date or time, in UTC if it has no zone. Raises `ValueError`."""
        try:
            if not text[4] == text[7] == "-":
                raise ValueError  # a number, say
            time = cls.fromisoformat(text.upper())
            time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            what = f", not {text[:40]!r}" if isinstance(text, str) else ""
            raise ValueError(f"should be an ISO 8601 date and time{what}") from None
        time.text = text
        return time


LIST_START = Timestamp(1, 1, 1, tzinfo=UTC)  # before every row; no text: neither filter nor state


class Row(NamedTuple):
    """A row: the two values that decide how it is read, and all of them by field."""

    key: Hashable
    time: Timestamp  # of its last change
    values: dict


TIME_OF = attrgetter("time")


class Page(NamedTuple):
    """The rows from an offset on, and the total if the API says one."""

    rows: list[Row]
    total: int | None
    offset: int
    time: datetime  # when it was asked for, by the API's clock

    @property
    def end(self) -> int:
        """The offset of the first row after the page."""
        return self.offset + len(self.rows)

    @property
    def rows_left(self) -> int:
        """How many rows the total promises after the page, 0 if there is none."""
        return max((self.total or 0) - self.end, 0)


class RowsRead:
    """What has been read of a list: the last timestamp, and the ties that have it, in order."""

    def __init__(self):
        self.last = LIST_START
        self.ties: dict[Hashable, int] = {}  # by key: their place in the order of reading

    def __contains__(self, row: Row) -> bool:
        """Return whether a row is older than the last timestamp, or was read with it."""
        return row.time < self.last or (row.time == self.last and row.key in self.ties)

    def keys_of_ties(self, rows: list[Row]) -> list[Hashable]:
        """Return the keys of the rows of a page that have the last timestamp."""
        first = bisect_left(rows, self.last, key=TIME_OF)
        return [row.key for row in rows[first : bisect_right(rows, self.last, key=TIME_OF)]]

    def add(self, rows: list[Row]) -> list[Row]:
        """Remember the rows of a page, and return those that had not been read."""
        new = [row for row in rows if row not in self]
        if new and new[-1].time > self.last:
            self.last, self.ties = new[-1].time, {}
        for row in new:
            if row.time == self.last:
                self.ties.setdefault(row.key, len(self.ties))
        return new


class Place(NamedTuple):
    """Where a batch begins: at an offset of the rows updated since a time."""

    since: Timestamp
    offset: int = 0
    cut: timedelta = timedelta(0)  # how much earlier they begin: the API cuts it to the day, say
    fallback: "Place | None" = None  # of an anchor: where to read on if its verdict is MISSES


class Verdict(Enum):
    """What became of the last request of a batch."""

    JOINS = "its page leaves no gap behind what was read before"
    BEHIND = "it is empty, refused, or the last page again: the list ends, or the API hides more"
    MOVED = "rows have left in front of its page, or its ties have no stable order"
    MISSES = "its page lacks the row that was read last: this has changed, or the filter omits it"
    FAILED = "no page came"


class Batch(NamedTuple):
    """What came of the requests from a place on."""

    place: Place
    pages: list[Page]  # those that join
    new_rows: list[list[Row]]  # of each, those that had not been read
    verdict: Verdict  # JOINS if all did, else why the next one did not
    failure: SyncError | None = None  # to recover from before the next batch

    @property
    def is_whole(self) -> bool:
        """Whether all pages joined, but for those behind the end of the list."""
        return self.verdict in (Verdict.JOINS, Verdict.BEHIND)


class Reader:
    """Reads all rows updated since a cursor, batch after batch, without a gap.

    The list is sorted by timestamp, and a row that changes moves to its end. So rows may leave the
    middle, but none joins it, except late ones, which the next sync reads (see `next_cursor`).

    What has been read is, at any time: all rows older than the last timestamp, and those of just
    that timestamp whose keys are known. So a page of the rows updated since it, from offset 0 on,
    leaves no gap, whatever has happened to the list. Each batch of requests begins with such a
    page, its anchor. The others are guesses, sent with it: where the next pages are if nothing
    moves. A guess joins if its first row is older than the last timestamp by then: all in front of
    that row has been read, or has left. Else it is dropped with those behind it, and a new batch
    begins. So a list that moves, or an API that fails, costs requests and never rows.

    A first row of the last timestamp is not enough: a tie (a row of the same timestamp) that was
    not read may stand in front of it. So pages overlap by two rows or more (by one if pages have
    only two or three), and by more once one did not join.

    Where ties fill a page, the last timestamp does not become later, and reading goes on by offset
    among them. That asks for a stable order, as by key: the next page must begin with ties that
    were read, in the order in which they were read, and show no other of them. Where it does not,
    reading goes back, and then asks for larger pages, until all ties come in one answer: their
    order is then of no importance. Where the API gives no larger pages, that is an error.
    Reading goes on by offset, too, where an anchor would be of little use: where the API cuts the
    time that it is asked for, to the day, say, so that each would begin with the rows of that day,
    or leaves out the rows of just that time (`Place.fallback`).

    The list has ended where a batch brings nothing new, and its last page nothing but the overlap;
    or where reading has gone back twice, and no page has shown a row that was not read.
    But behind rows that changed during the sync there are only rows that the next one reads again:
    reading stops at a short page of them, or after `MAX_CHANGED_PAGES`.
    """

    def __init__(
        self, client: "Client", settings: "Settings", cursor: Timestamp, reads_all: bool = False
    ):
        """Read from a cursor on. `reads_all`: not to stop at rows that change during the sync."""
        self.client, self.settings, self.table = client, settings, client.table
        self.since = (settings.start_date or cursor) if cursor == LIST_START else cursor
        self.started: datetime | None = None  # when the first page was asked for: the API's clock
        self.settled: datetime | None = None  # no row up to that time will appear late
        self.pace = Pace(settings)
        self.waited = 0.0  # seconds
        self.last_page: Page | None = None  # that joined
        self._reads_all = reads_all
        self._read = RowsRead()
        # whether any anchor has begun with the row read last; whether, since the last new row, one
        # has not
        self._anchor_matched = self._anchor_missed = False
        # of ties: how many pages had them in another order, whether one page has shown all, and
        # how far the pages reach that joined since offset 0
        self._disorders, self._has_all, self._reach = 0, False, 0
        # where pages do not join: how many batches since the last new row, whether one has joined
        # since, and the signs of more: rows that were not read, or an offset that was refused
        self._setbacks, self._has_rejoined = 0, False
        self._unread: list[Row] = []
        self._refused = False
        self._empty_pages = 0  # in a row
        self._changed_pages = 0  # that ended with a row changed during the sync
        # the last time read when a batch ended, and how far behind the API's clock it was
        self._newest: tuple[datetime, timedelta] = LIST_START, timedelta.max
        self._warnings = set()

    def pages(self) -> Iterator[list[Row]]:
        """Yield the new rows of each page, while the next batch arrives. Raises `SyncError`."""
        place = Place(self.since)
        in_flight = self._send(place)
        while place:
            batch = self._receive(place, in_flight)
            place = self._place_after(batch)
            if place and not batch.failure:
                in_flight = self._send(place)  # on their way while the rows are written
            yield from filter(None, batch.new_rows)
            if place and batch.failure:
                self.waited += self.pace.recover(batch.failure)
                in_flight = self._send(place)

    def _send(self, place: Place) -> list[Future]:
        """Send the request at a place, and those for the pages that probably follow."""
        offsets, limit = self.pace.offsets_from(place.offset), self.pace.limit
        return [self.client.send(PageRequest(place.since, offset, limit)) for offset in offsets]

    def _receive(self, place: Place, in_flight: list[Future]) -> Batch:
        """Take the pages that requests bring, up to the first that fails or does not join."""
        began, had_to_wait = monotonic(), not all(future.done() for future in in_flight)
        pages, new_rows, verdict, failure = [], [], Verdict.FAILED, None
        for future in in_flight:
            try:
                page = future.result()
            except SyncError as error:
                if isinstance(error, Refused) and (pages or place.offset > 0):
                    verdict = Verdict.BEHIND
                    self._refused = self.last_page.total != self.last_page.end
                    break
                verdict = Verdict.FAILED
                if not pages or isinstance(error, Unavailable):
                    failure = error  # other failures of a guess do not matter: it is dropped
                break
            if not self.started:
                self.started = page.time
                self.settled = page.time - timedelta(seconds=self.settings.lookback_seconds)
            verdict = self._judge(place, page)
            self._disorders += self._read.last <= self.settled and not self._keeps_order(page)
            self._empty_pages = 0 if page.rows else self._empty_pages + 1
            if verdict != Verdict.JOINS:
                self._unread += [row for row in page.rows if row not in self._read]
                break
            if page.offset == 0 and page.rows:
                place = self._take_anchor(place, page.rows[0].time)
            pages.append(page)
            new_rows.append(self._take_new(page))
        for future in in_flight:
            future.cancel()  # those that were not sent yet
        self.waited += monotonic() - began
        batch = Batch(place, pages, new_rows, verdict, failure)
        self.pace.adapt(batch, had_to_wait)
        return batch

    def _take_anchor(self, place: Place, begins: Timestamp) -> Place:
        """Return a place with what is known of it by the time of its first row."""
        includes_it, is_anchor = begins <= place.since, place.since == self._read.last
        self._anchor_matched |= includes_it and is_anchor
        if self._anchor_missed and is_anchor and not includes_it and not self._anchor_matched:
            self._warn(
                f"Rows of {place.since.text} may be missing: the API leaves them out when asked "
                "for those since. If it omits just that time, ask for a second less, in "
                "`http_request`."
            )
        return place._replace(cut=max(place.since - begins, timedelta(0)))

    def _judge(self, place: Place, page: Page) -> Verdict:
        """Return whether a page leaves no gap, or why not."""
        if page.offset == 0:
            # empty, although rows of that time were read: BEHIND, so that it is asked for again
            is_odd = not page.rows and self._read.ties and not self._anchor_missed
            if is_odd and self._empty_pages < 2:
                return Verdict.MISSES if place.fallback else Verdict.BEHIND
            has_last = page.rows and page.rows[0].time <= place.since
            return Verdict.JOINS if has_last or not place.fallback else Verdict.MISSES
        repeats = page.rows == self.last_page.rows and page.offset > self.last_page.offset
        if repeats or not page.rows:  # some answer with their last page
            return Verdict.BEHIND
        if page.rows[0].time < self._read.last:
            return Verdict.JOINS
        joins = self._ties_fill_page(place) and self._continues_ties(page)
        return Verdict.JOINS if joins else Verdict.MOVED

    def _anchor_helps(self, place: Place) -> bool:
        """Return whether an anchor at the last time begins later than a place."""
        return self._read.last - place.since > place.cut

    def _ties_fill_page(self, place: Place) -> bool:
        """Return whether ties fill so much of a page that the next one may begin among them.

        That is half a page: fewer fit into the overlap, with an older row in front. It is not so
        where an anchor would help: one at their time shows them from the first on.
        """
        half_page = min(self.pace.most_overlap, max(len(self.last_page.rows) // 2, 1))
        anchor_helps = self._anchor_helps(place) and not self._anchor_missed
        return len(self._read.ties) >= half_page and not anchor_helps

    def _continues_ties(self, page: Page) -> bool:
        """Return whether a page that begins among ties follows those that were read.

        It must show those first, in the order in which they were read. Their number alone says
        little: a tie that leaves hides one that slipped in front.
        """
        ties, can_ask_for_more = self._read.ties, self.pace.can_ask_for_more
        keys = self._read.keys_of_ties(page.rows)
        known = [ties[key] for key in keys if key in ties]
        if not keys or keys[0] not in ties:
            return False
        if self._read.last > self.settled and not can_ask_for_more:
            return True  # the next sync reads them again
        if not self._keeps_order(page) or self._disorders > (0 if can_ask_for_more else 2):
            return False
        are_latest = known[-1] == len(ties) - 1 and known[-1] - known[0] == len(known) - 1
        if are_latest and len(known) == len(page.rows):
            return True  # there is nothing else
        # with the latest tie and none lacking in between, little is needed; else some have left
        least = LEAST_OVERLAP if can_ask_for_more else self.pace.most_overlap
        least = min(least, LEAST_OVERLAP) if are_latest else SURE_OVERLAP
        return least <= len(known) <= self._reach - page.offset

    def _keeps_order(self, page: Page) -> bool:
        """Return whether a page shows its ties in the order of reading, and then only others."""
        places = [self._read.ties.get(key) for key in self._read.keys_of_ties(page.rows)]
        known = [place for place in places if place is not None]
        return places[: len(known)] == sorted(known)

    def _take_new(self, page: Page) -> list[Row]:
        """Count the rows of a page as read, and return those that had not been."""
        if len({row.key for row in page.rows}) < len(page.rows):
            key = ", ".join(self.table.primary_key)
            self._warn(f"Rows have the same {key}: name more fields in `primary_key`.")
        # nothing is behind a short page if the total says so, or others are longer or shorter
        is_short, longest = len(page.rows) < self.pace.limit, self.pace.longest
        is_last = is_short and (page.total == page.end or len(page.rows) != longest)
        asked = min(self.pace.limit, self.settings.page_size)  # of which some may be hidden
        reach = max(page.end, page.offset + asked)
        self._reach = max(self._reach, reach) if page.offset > 0 else reach
        self.last_page = page
        self.pace.learn_from(page)
        new = self._read.add(page.rows)
        begins_in_front = page.offset == 0 or page.rows[0].time < self._read.last
        shows_all = is_last and begins_in_front
        self._has_all = shows_all or (self._has_all and not new)
        self._has_rejoined = not new
        if new:
            self._anchor_missed, self._setbacks, self._refused = False, 0, False
        self._unread = [] if shows_all else [r for r in self._unread if r not in self._read]
        return new

    def _place_after(self, batch: Batch) -> Place | None:
        """Return where the next batch begins: None at the end of the list. Raises `SyncError`."""
        place = batch.place
        if batch.failure and not batch.pages:
            return place
        if batch.verdict == Verdict.MISSES:
            self._anchor_missed = True
            return place.fallback
        if not batch.pages:
            return self._go_back(place)
        page, has_new = self.last_page, any(batch.new_rows)
        if self._may_stop(batch):
            return None
        ties = 0 if self._ties_fill_page(place) else len(self._read.ties)
        overlap = self.pace.overlap(ties, has_new)
        next_place = place._replace(offset=max(page.end - overlap, page.offset), fallback=None)
        # where the API cuts the time, an anchor repeats rows: put it off while pages join
        is_deep = page.end + self.pace.limit > WINDOW_ROWS
        goes_on = place.cut and batch.is_whole and has_new and not is_deep
        is_end = batch.is_whole and not has_new and len(page.rows) <= overlap
        if self._anchor_helps(place) and not goes_on and (is_end or not self._anchor_missed):
            return Place(self._read.last, fallback=None if self._anchor_missed else next_place)
        if is_end:
            self._check_end(page)
            return None
        return next_place

    def _go_back(self, place: Place) -> Place | None:
        """Return where to read on after a batch without any page, None if the list has ended.

        Raises `SyncError`.
        """
        self._setbacks += 1
        is_sure = not self._unread and (
            self._has_all or not (self._refused or self._disorders > 2)
        )
        may_end = self._setbacks > 2 and self._has_rejoined and not self.pace.can_ask_for_more
        if may_end and is_sure:
            self._check_end(self.last_page)
            return None
        if self._setbacks > MAX_SETBACKS:
            ties = f"those of {self._read.last.text}, which are {len(self._read.ties)} or more"
            raise SyncError(
                "The list cannot be paged. Sort it by its key, too, so that the rows of one "
                f"{self.table.updated_at} keep their order, or set page_size above their number "
                f"({ties}), and {RESET}. The API must honor offset, with 3 rows a page or more: "
                f"the page at offset {place.offset} did not lead on, like those before."
            )
        back = self.pace.most_overlap * 2 ** (self._setbacks - 1)  # 1/2, 1, 2, 4, ... pages
        place_before = place._replace(offset=max(place.offset - back, 0), fallback=None)
        if self._anchor_helps(place) and (not self._anchor_missed or self._setbacks > 2):
            return Place(self._read.last, fallback=None if self._anchor_missed else place_before)
        if (self._setbacks > 2 or self._disorders) and self.pace.can_ask_for_more:
            self.pace.ask_for_more()
            return Place(self._read.last, fallback=place_before)
        return place_before

    def _may_stop(self, batch: Batch) -> bool:
        """Return whether only rows follow that changed during the sync, for the next one to read.

        These are later than its start, or, as times may be local ones, later than those before and
        as far behind the clock.
        """
        (time_before, lag_before), last, page = self._newest, self._read.last, self.last_page
        lag = page.time - last
        self._newest = last, lag  # for the next call: there is one for each batch
        is_short = len(page.rows) < self.pace.page_length
        has_changed = self.started <= last <= page.time + CLOCK_SKEW
        keeps_up = last > time_before and lag > lag_before - timedelta(seconds=2)  # as of `Date`
        if has_changed or (keeps_up and is_short and not page.rows_left):
            self._changed_pages += len(batch.pages)
        if self._changed_pages > MAX_CHANGED_PAGES:
            self._warn(
                "The sync ended early, as rows change all the time. The next one reads on; if "
                "this repeats, set a larger page_size."
            )
            return True
        return has_changed and is_short and not self._reads_all

    def _check_end(self, page: Page):
        """Warn, or raise a `SyncError`, if the last page shows that the list was cut off."""
        problem = f"The list ends at offset {page.end}, and its total says {page.total}"
        is_full = page.end == WINDOW_ROWS or len(page.rows) >= self.settings.page_size
        if is_full and page.rows_left > self.settings.page_size:
            cause = "the API cuts it off, ignores offset, or counts too many"
            raise SyncError(f"{problem}: {cause}. Mend it, and {RESET}.")
        if page.rows_left or page.end == WINDOW_ROWS:
            self._warn(f"{problem}: the API counts too many, hides rows, or cuts it off.")

    def _warn(self, text: str):
        """Say something once, in the log and on Fivetran's dashboard."""
        if text not in self._warnings:
            self._warnings.add(text)
            op.warning(text)


# Request pacing


class Pace:
    """How much to ask for at a time: rows of a page, pages of a batch, and where they are.

    A batch has twice as many pages as the one before if that was waited for, half as many if the
    list has moved. A failure may come of too many requests, whatever it says: half as many become
    the ceiling. Pages that are too large, or too slow, are halved. Pages that come win both back.
    """

    def __init__(self, settings: "Settings"):
        self.limit = self._logged_limit = settings.page_size  # rows of a page
        self.longest = 0  # rows of the longest page that has come
        self.retries = self.pages_dropped = 0
        self._wanted = settings.page_size  # rows of a page, unless it is too large at present
        self._most = WINDOW_ROWS  # rows of a page that the API may be asked for
        self._least = max(settings.page_size // 4, 2)  # rows of a page that slow answers lead to
        self._accepted = 0  # the most rows that were asked for when a page came
        self._overlap = LEAST_OVERLAP  # rows that two pages of a batch share
        self._expected = 0  # rows that probably follow the last page
        self._width = 1  # pages of a batch
        self._has_moved = False  # whether the list moved during the last batch
        self._ceiling = self._most_width = settings.parallel_requests
        self._calm_pages = 0  # since the last failure, or since more was asked for again
        self._has_risen = False  # whether more was asked for again since the last failure
        self._patience = CALM_PAGES  # doubles with each failure after that
        self._failures: list[Unavailable] = []  # since the last page that came

    @property
    def page_length(self) -> int:
        """Rows of a full page: the API may return fewer than asked for, always the same number."""
        return min(self.longest, self.limit) or self.limit

    @property
    def most_overlap(self) -> int:
        """Half a page, so that the other half is new."""
        return max(self.page_length // 2, 1)

    def overlap(self, ties: int, has_new: bool) -> int:
        """Return how many rows the next page shares: ties and one more, and more if rows leave."""
        least = self._overlap if has_new else LEAST_OVERLAP
        return min(max(least, ties + 1), self.most_overlap)

    def offsets_from(self, offset: int) -> list[int]:
        """Return the offsets of a batch: its first page's, and those of the next if none moves."""
        step = max(self.page_length - self._overlap, 1)
        width = min(self._width, max(WINDOW_ROWS // self.page_length, 1))
        return [offset, *range(offset + step, offset + self._expected, step)[: width - 1]]

    def learn_from(self, page: Page):
        """Learn from a page how long others are, and how many rows follow."""
        is_full = len(page.rows) >= self.limit or 1 < len(page.rows) == self.longest
        self.longest = max(self.longest, len(page.rows))
        is_unknown = is_full and not page.rows_left and page.total != page.end
        self._expected = WINDOW_ROWS if is_unknown else page.rows_left

    def adapt(self, batch: Batch, had_to_wait: bool):
        """Adapt the number of pages, and of their rows, to what became of a batch."""
        if batch.pages:
            self._accepted = max(self._accepted, self.limit)
            self._failures.clear()
            if self.limit != self._logged_limit:
                log.info(f"Pages of {self.limit} rows are asked for from here on.")
            self._logged_limit = self.limit
        if batch.verdict == Verdict.FAILED:
            if self._has_risen:
                self._patience *= 2
            self._calm_pages, self._has_risen = 0, False
            if self._width > 1:
                self._ceiling = self._width = self._width // 2
            return
        if batch.verdict == Verdict.MOVED:
            self.pages_dropped += 1
            self._has_moved = True
            self._width = max(self._width // 2, 1)
            self._overlap = min(2 * self._overlap, self.most_overlap)
        elif self._has_moved:
            self._has_moved = False  # more pages only after two batches that did not
        elif had_to_wait and len(batch.pages) >= self._width:
            self._width = min(2 * self._width, self._ceiling)
        self._calm_pages += len(batch.pages)
        if self._calm_pages >= self._patience * self._ceiling:
            self._calm_pages, self._has_risen = 0, True
            if self.limit < self._wanted:
                self.limit = min(2 * self.limit, self._wanted)
            else:
                self._ceiling = min(self._ceiling + 1, self._most_width)

    @property
    def can_ask_for_more(self) -> bool:
        """Whether the API gives as many rows as it is asked for, and may be asked for more."""
        return self.limit < self._most and self.longest >= self.limit

    def ask_for_more(self):
        """Ask for larger pages from now on."""
        self.limit = self._wanted = min(2 * self.limit, self._most)

    def recover(self, failure: SyncError) -> float:
        """Ask for less, or wait, so that a request may succeed after one that failed.

        Returns the seconds that it waited. Raises the failure if a retry would not help.
        """
        may_pass = isinstance(failure, Unavailable)
        self._failures += [failure] if may_pass else []
        tries, is_too_large = len(self._failures), may_pass and failure.too_large
        if self.limit > self._accepted > 0 and (is_too_large or not may_pass or tries > 1):
            # no page as large as that has come, which may be the cause, whatever it says
            self.limit = self._wanted = self._most = self._accepted
            return 0.0
        if isinstance(failure, Refused) and self.limit > 2 and not self._accepted:
            self.limit = self._wanted = self._most = max(self.limit // 2, 2)
            return 0.0
        if not may_pass:
            raise failure
        # what takes long or asks to wait is there, too
        is_there = self._accepted or is_too_large or failure.retry_after is not None
        if tries >= (MAX_TRIES if is_there else FIRST_TRIES):
            raise SyncError(f"No page in {tries} tries: {failure}")
        # every second time, as once may be chance
        if is_too_large and sum(other.too_large for other in self._failures) % 2 == 0:
            self.limit = max(self.limit // 2, min(self._least, self.limit))
        seconds = max(min(2**tries, MAX_BACKOFF) + random(), failure.retry_after or 0)
        log.warning(f"No page: {failure}. Asking for {self.limit} rows in {seconds:.0f} s.")
        sleep(seconds)
        self.retries += 1
        return seconds


# HTTP client


class PageRequest(NamedTuple):
    """A request for up to `limit` rows from `offset` on, of those updated since a time."""

    since: Timestamp
    offset: int
    limit: int


class Session(requests.Session):
    """A session that takes the key to no other host, in whichever header it is."""

    def rebuild_auth(self, prepared_request, response):
        """Raise `SyncError` if a redirect leads to another host."""
        if self.should_strip_auth(response.request.url, prepared_request.url):
            host = urlsplit(prepared_request.url).netloc
            raise SyncError(f"base_url redirects to another host: if {host} is the API, set that.")


class Client:
    """A list of the API: pages by HTTP, up to `parallel_requests` at a time."""

    def __init__(self, table: Table, settings: "Settings"):
        self.table = table
        self._url, self._key = settings.url_of(table), settings.api_key.get_secret_value()
        query = settings.base_url.query_params()
        self._secrets = frozenset([self._key, *(value for _, value in query)])
        self._row_reader = RowReader(table)
        self._requests = SimpleQueue()  # with the future of each
        self._session = session = Session()
        session.headers.update({"Accept": "application/json", "User-Agent": "fivetran-connector"})
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # the key is enough
        # what the environment says of proxies and certificates, looked up once
        found = session.merge_environment_settings(self._url, {}, None, None, None)
        session.proxies, session.verify = found["proxies"], found["verify"]
        session.trust_env = False
        for _ in range(settings.parallel_requests):
            Thread(target=self._work, daemon=True).start()

    def close(self):
        """Close the connections, and let the threads end."""
        self._session.close()
        self._requests.put(None)

    def send(self, request: PageRequest) -> Future:
        """Call `get` in a thread that does not keep the process from ending."""
        future = Future()
        self._requests.put((future, request))
        return future

    def _work(self):
        """Answer requests until there is None."""
        for future, request in iter(self._requests.get, None):
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self.get(request))
                except BaseException as error:
                    future.set_exception(error)
        self._requests.put(None)  # for the next thread

    def get(self, request: PageRequest) -> Page:
        """Return the page that one HTTP request gets, without a retry.

        Raises `Unavailable` if a later request may succeed, `Refused` if the API does not accept
        the request, and `SyncError` for other answers that are no page.
        """
        prepare = self._session.prepare_request
        http = run(prepare, run(http_request, self.table, self._url, self._key, request))
        headers = http.headers.items() - self._session.headers.items()
        words = {word for _, value in headers for word in str(value).split()}
        self._secrets |= {word for word in words if len(word) > 7}  # not "Bearer"
        sent = datetime.now(UTC)
        try:
            response = self._session.send(http, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
            rows, total = self._parse(response, request.offset)
        except Unavailable:
            self._session.close()  # a new connection may lead to a server that works
            raise
        except (OSError, ValueError) as error:  # of requests, and of urllib3
            self._session.close()
            raise self._explain_no_answer(error) from None
        date = http_date(response, "Date")
        return Page(rows, total, request.offset, date - response.elapsed if date else sent)

    def _parse(self, response: requests.Response, offset: int) -> tuple[list[Row], int | None]:
        """Return the rows of a response, and the total if there is one. Raises as `get` does."""
        code = response.status_code
        if code == 204 or (code in (404, 416) and offset > 0):  # 416 as of PostgREST
            return [], None
        if code not in (200, 203, 206):  # 206 as of PostgREST
            raise self._explain_status(response, offset)
        body = self._parse_json(response)
        if body == {}:  # some leave an empty list out
            return [], None
        is_object, where = isinstance(body, dict), f"The API's answer at offset {offset}"
        error = is_object and (body.get("error") or body.get("errors"))
        try:
            found = run(rows_of, body) or []
        except SyncError as problem:
            if not error:
                names = ", ".join(filter(str.isidentifier, body)) if is_object else ""
                what = f"{JSON_TYPES[type(body)]} {self._quote(names)}".strip()
                if isinstance(problem, Unavailable):
                    raise
                raise SyncError(f"{where} is {what}: {problem}") from None
            found = []
        if error and not found:
            raise Unavailable(f"no rows, but an error: {self._quote(str(error))}")
        try:
            rows = self._row_reader.read(found)
        except ValueError as problem:
            raise SyncError(f"{where} is not as expected: {problem}.") from None
        total = None
        with suppress(Exception):  # whatever total_of may raise
            total = int(total_of(body, response.headers))
        return rows, total

    def _parse_json(self, response: requests.Response) -> Any:
        """Return the JSON of a response. Raises `Unavailable` if it is none."""
        with suppress(ValueError):
            return from_json(response.content)
        for content in (response.content, response.text):  # the latter as its header says
            with suppress(ValueError, RecursionError):
                text = json.dumps(json.loads(content, strict=False), ensure_ascii=False)
                return from_json(text.encode("utf-8", "replace"))  # half a surrogate pair: "?"
        if response.content.lstrip()[:1] in (b"{", b"["):
            raise Unavailable("damaged JSON (a smaller page_size may help)", too_large=True)
        kind = self._quote(response.headers.get("Content-Type", "no type"))
        raise Unavailable(f"a body that is not JSON ({kind}; is base_url the API?)")

    def _explain_status(self, response: requests.Response, offset: int) -> SyncError:
        """Return what to raise for an answer that is not a page."""
        code, seconds = response.status_code, retry_after(response)
        body = response.content.decode("utf-8", "replace").strip()
        words = f". It says: {self._quote(body)}" if body and body[0] != "<" else ""
        status = f"HTTP {code} {self._quote(response.reason or '')[:60]} at offset {offset}"
        if code in (400, 422):  # waiting would not help
            return Refused(f"The API refuses the request: {status}{words}")
        if code not in (408, 413, 425, 429) and code < 500 and seconds is None:
            address = f"base_url: {self._url.partition('?')[0]}" if code == 404 else "api_key"
            advice = f", check {address}" if code in (401, 403, 404) else ""
            fewer = ", or lower parallel_requests" if offset and code in (401, 403, 409) else ""
            return SyncError(f"{status}{advice}{fewer}{words}")
        if seconds is not None and seconds > MAX_RETRY_AFTER:
            return SyncError(f"{status}: it asks to wait {seconds:.0f} s, sync again then{words}")
        hint = " (a smaller page_size may help)" if code >= 500 or code == 413 else ""
        wait = 0 if code == 429 and seconds is None else seconds  # a 429 always asks to wait
        too_large = code in (413, 504, 524)  # 524 as of Cloudflare
        return Unavailable(f"{status}{hint}{words}", wait, too_large)

    def _explain_no_answer(self, error: Exception) -> SyncError:
        """Return why no answer came, and what to check. The error itself may quote secrets."""
        cause, host = error, urlsplit(self._url).netloc
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__
        detail = getattr(cause, "strerror", None) or type(cause).__name__
        if isinstance(error, requests.exceptions.ProxyError | requests.exceptions.InvalidProxyURL):
            proxy = requests.utils.select_proxy(self._url, self._session.proxies)
            address = (proxy or "").rpartition("@")[2]  # without a password
            return Unavailable(f"no way to {host} through the environment's proxy {address}")
        if isinstance(error, requests.TooManyRedirects | ValueError):
            return SyncError(f"base_url leads to no page ({type(error).__name__}): check it")
        if not isinstance(error, requests.RequestException):  # certificates that cannot be read
            return SyncError(f"No request is possible: {error}")
        is_slow = isinstance(error, requests.ReadTimeout) or isinstance(cause, TimeoutError)
        if is_slow and not isinstance(error, requests.ConnectTimeout):
            hint = "a smaller page_size may help, or fewer parallel_requests"
            problem = f"no answer from {host} within {READ_TIMEOUT} s ({hint})"
            return Unavailable(problem, too_large=True)
        hint = "base_url, whether it is http or https, and the server"
        return Unavailable(f"no answer from {host} ({detail}; check {hint})")

    def _quote(self, text: str) -> str:
        """Return the first words of the API's, with *** for secrets, however they are spelled."""
        for secret in self._secrets:
            parts = re.findall("[A-Za-z0-9]+", secret)  # JSON, HTML and URLs encode the rest
            if sum(map(len, parts)) > 3:  # less is no secret, but a page number, say
                spelled = parts[0] + "".join(f"(?>.{{1,40}}?{part})" for part in parts[1:])
                text = re.sub(spelled, "***", text, flags=re.DOTALL)
        return " ".join(text.split())[:200]


def run(function: Callable, *arguments: Any) -> Any:
    """Call a function of somebody else's. Raises `SyncError`, also for what it may raise."""
    try:
        return function(*arguments)
    except SyncError:
        raise
    except Exception as error:  # whose text may show the key, or people's data
        name, kind = getattr(function, "__name__", function), type(error).__name__
        what = f" {error}" if isinstance(error, KeyError) else ""
        line = traceback.extract_tb(error.__traceback__)[:2][-1].lineno  # the one in the function
        raise SyncError(f"`{name}` raises {kind}{what} (line {line})") from None


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds of the `Retry-After` header, None if there is none that can be read."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    until, now = http_date(response, "Retry-After"), http_date(response, "Date")
    return until and (until - (now or datetime.now(UTC))).total_seconds()


def http_date(response: requests.Response, header: str) -> datetime | None:
    """Return the time of a header (RFC 9110, 5.6.7), None if it cannot be read."""
    try:
        return parsedate_to_datetime(response.headers[header]).replace(tzinfo=UTC)
    except (LookupError, ValueError, TypeError, OverflowError):
        return None


# Rows


def null_if_unreadable(value: object, read: pydantic.ValidatorFunctionWrapHandler, info):
    """Return a value as its type reads it, else None, with a warning once per column and sync."""
    try:
        return read(value)
    except ValueError:
        if value and info.field_name not in info.context:
            info.context.add(info.field_name)
            log.warning(f"Some values of {info.field_name} cannot be read: they become null.")
        return None


def as_written(value: Any) -> datetime:
    """Parse an ISO 8601 date or time, and drop its zone. Raises `ValueError`."""
    return datetime.fromisoformat(Timestamp.parse(value).text.upper()).replace(tzinfo=None)


OR_NULL = pydantic.WrapValidator(null_if_unreadable)
Time = Annotated[datetime, pydantic.PlainValidator(Timestamp.parse)]
KeyText = Annotated[str, Field(coerce_numbers_to_str=True, min_length=1)]
AsJson = Annotated[Any, pydantic.AfterValidator(partial(json.dumps, ensure_ascii=False))]
Text = Annotated[str | AsJson | None, Field(union_mode="left_to_right")]  # not text: as JSON
Float = Annotated[float, Field(allow_inf_nan=False)]

# How a value is read, by the SDK's type of its column, so that the SDK takes it
READERS = {
    "STRING": Text,
    "XML": Text,
    "JSON": Any,
    "BOOLEAN": bool,
    "SHORT": Annotated[int, Field(ge=-(2**15), lt=2**15)],
    "INT": Annotated[int, Field(ge=-(2**31), lt=2**31)],
    "LONG": Annotated[int, Field(ge=-(2**63), lt=2**63)],
    "FLOAT": Float,
    "DOUBLE": Float,
    "UTC_DATETIME": Time,
    "NAIVE_DATETIME": Annotated[datetime, pydantic.PlainValidator(as_written)],
    "NAIVE_DATE": Annotated[date, pydantic.PlainValidator(lambda value: as_written(value).date())],
    "BINARY": Annotated[str, pydantic.AfterValidator(partial(b64decode, validate=True))],
}


class RowReader:
    """Reads the rows of a table: the key and the time strictly, other values tolerantly."""

    def __init__(self, table: Table):
        """Raises `ValueError` if the table cannot be read so."""
        strict = [*table.primary_key, table.updated_at]
        fields = {}
        for name, column in table.columns.items():
            reader = Time if name == table.updated_at else reader_of(column)
            if not reader:
                known = ", ".join([*READERS, "{'type': 'DECIMAL', 'precision': 12, 'scale': 2}"])
                where = f"Table `{table.name}`, column `{name}`"
                raise ValueError(f"{where}: unknown type {column!r}. There is {known}.")
            if name in strict:
                fields[name] = Required[KeyText if reader is Text else reader]
            else:
                fields[name] = reader if reader in (Text, Any) else Annotated[reader, OR_NULL]
        if not table.primary_key or any(name not in fields for name in strict):
            problem = "`primary_key` must name fields, and `columns` those and `updated_at`"
            raise ValueError(f"Table `{table.name}`: {problem}.")
        record = TypedDict("Record", fields, total=False)
        record.__pydantic_config__ = pydantic.ConfigDict(extra="allow", hide_input_in_errors=True)
        self._records = pydantic.TypeAdapter(list[record])
        self._key_of, self._time_of = itemgetter(*table.primary_key), itemgetter(table.updated_at)
        self._updated_at = table.updated_at
        self._columns_warned_of = set()

    def read(self, rows: list[dict]) -> list[Row]:
        """Return the rows of an answer. Raises `ValueError` if one is wrong, or out of order."""
        try:
            records = self._records.validate_python(rows, context=self._columns_warned_of)
        except ValidationError as error:
            raise ValueError(describe_error(error)) from None
        found = [Row(self._key_of(record), self._time_of(record), record) for record in records]
        if any(later.time < row.time for row, later in pairwise(found)):
            raise ValueError(f"it is out of order, and must be sorted by `{self._updated_at}`")
        return found


def reader_of(column: str | dict) -> Any:
    """Return how the values of a column are read, None if its type is unknown."""
    if not isinstance(column, dict):
        return READERS.get(column)
    if column.keys() != {"type", "precision", "scale"}:
        return None
    # a DECIMAL, which the SDK rounds to its scale, and fails if it then has too many digits
    scale = column["scale"]
    bound = Decimal(10) ** (column["precision"] - scale) - Decimal(5).scaleb(-scale - 1)
    in_bounds = Field(gt=-bound, lt=bound)
    return Annotated[Decimal, in_bounds, pydantic.AfterValidator(lambda number: f"{number:f}")]


JSON_TYPES = {NoneType: "null", bool: "a boolean", int: "a number", float: "a number"}
JSON_TYPES |= {str: "a string", list: "an array", dict: "an object"}


def describe_error(error: ValidationError) -> str:
    """Return what is wrong with rows or a configuration, without people's data."""
    faults = []
    for fault in error.errors()[:3]:
        parts, came = fault["loc"], fault["input"]
        where = [f"row {part}" if isinstance(part, int) else f"`{part}`" for part in parts]
        what = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if fault["type"] == "missing":
            names = ", ".join(filter(str.isidentifier, came))[:200]
            what = f"is missing; there is {names or 'nothing'}"
        elif fault["type"] in ("list_type", "dict_type") or (parts and not isinstance(came, str)):
            what += f", but is {JSON_TYPES[type(came)]}"
        if came is None and parts[-1] in [table.updated_at for table in TABLES]:
            what += " (it must be filled when a row is created, too)"
        faults.append(" ".join([", ".join(where), what]).strip())
    return "; ".join(faults)


# Settings


class Settings(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """The settings of configuration.json. The setup form, errors and the README quote them."""

    base_url: HttpUrl
    """The http or https address that lists the rows, without the parameters added to it."""
    api_key: SecretStr = SecretStr("")
    """Sent in the header of each request. Leave it empty if the API needs none."""
    page_size: int = Field(100, ge=2, le=10_000)
    """Rows per request, 2 to 10,000: as many as the API returns quickly."""
    parallel_requests: int = Field(8, ge=1, le=8)
    """The most requests in flight at a time, 1 to 8."""
    lookback_seconds: int = Field(300, ge=10, le=31_536_000)
    """How many seconds late a change may show, 10 to 31,536,000: so much is read again."""
    mark_deleted: bool = False
    """true or false: whether a full sync that brings rows marks all others as deleted."""
    start_date: Time | None = None
    """A time, sent as written: the first sync reads rows updated since. Not with mark_deleted."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Settings":
        if not re.fullmatch("(?!fivetran_encrypted:)[!-~]*", self.api_key.get_secret_value()):
            problem = "one ASCII word, without `Bearer`; if it is encrypted, run `fivetran debug`"
            raise ValueError(f"`api_key` should be {problem}")
        if self.base_url.username or self.base_url.password:
            raise ValueError("`base_url` should have no user name or password: use `api_key`")
        if self.start_date and (self.mark_deleted or self.start_date > datetime.now(UTC)):
            raise ValueError("`start_date` should be in the past, and not be with `mark_deleted`")
        return self

    def url_of(self, table: Table) -> str:
        """Return the address of a table's list: its path goes behind that of base_url."""
        if not table.path:
            return str(self.base_url)
        base, mark, query = str(self.base_url).partition("?")
        return f"{base.rstrip('/')}/{table.path.lstrip('/')}{mark}{query}"


def validate_configuration(configuration: dict) -> Settings:
    """Return the settings, in which an empty string means: not set. Raises `ValueError`."""
    values = {name: str(value or "").strip() for name, value in configuration.items()}
    try:
        return Settings.model_validate({name: value for name, value in values.items() if value})
    except ValidationError as error:
        wrong = {name for fault in error.errors() for name in fault["loc"]}
        fields = Settings.model_fields
        help_texts = [f"`{name}`: {fields[name].description}" for name in fields if name in wrong]
        if wrong - fields.keys():
            help_texts.append(f"Known are {', '.join(fields)}.")
        problem = " ".join([describe_error(error) + ".", *help_texts])
        raise ValueError(f"The configuration cannot be used: {problem}") from None


# Setup form


def configuration_form():
    """Return the setup form, for Fivetran's dashboard and `fivetran configuration`."""
    form, text_field = ConfigurationForm(), form_field.TextField
    for name, field in Settings.model_fields.items():
        label = name.replace("_", " ").capitalize()
        arguments = {"name": name, "label": label, "description": field.description}
        if field.annotation is bool:
            form.add_field(form_field.ToggleField(**arguments))
            continue
        kind = text_field.password if field.annotation is SecretStr else text_field.plain_text
        form.add_field(text_field(field_type=kind, required=field.is_required(), **arguments))
    form.add_test(label="Read pages, and what was updated since a time", func=test_connection)
    return form


def test_connection(configuration: dict):
    """Test whether a sync with this configuration can succeed. Returns what is wrong."""
    where = ""
    try:
        settings = validate_configuration(configuration)
        for table in TABLES:
            where = f"`{table.name}`: " if len(TABLES) > 1 else ""
            with closing(Client(table, settings)) as client:
                check_api(client, settings)
    except (SyncError, ValueError) as error:
        return Test.failure(f"{where}{error}")
    return Test.success()


def check_api(client: Client, settings: Settings):
    """Check what the README asks of an API, and log it. Raises `SyncError` if it is not so."""
    pace, since = Pace(settings), settings.start_date or LIST_START
    pace.limit = min(pace.limit, 100)

    def get(since: Timestamp, offset: int) -> Page:
        while True:
            try:
                return client.get(PageRequest(since, offset, pace.limit))
            except SyncError as failure:
                pace.recover(failure)

    first = get(since, 0)
    if len(first.rows) < 2 and first.rows_left and not since.text:  # else it may count more
        raise SyncError(f"The API promises {first.total} rows, and returns {len(first.rows)}.")
    if not first.rows:
        log.warning(f"`{client.table.name}`: the list is empty, so nothing was checked.")
        return
    keys, last = [row.key for row in first.rows], first.rows[-1].time
    if len(set(keys)) < len(keys):
        raise SyncError("Rows have the same key: name more fields in `primary_key`.")
    second = get(since, first.end - 1).rows
    if len(keys) > 1 and [row.key for row in second] == keys:
        raise SyncError("The API returns the same page at every offset: it must honor offset.")
    if second and second[0].key not in keys and second[0].time < last:
        raise SyncError("The API sorts only the rows of a page: it must sort all rows.")
    time = first.rows[len(keys) * 3 // 4].time
    recent, asked = get(time, 0).rows, f"when asked for those since {time.text}"
    if not recent or recent[0].time > time:
        raise SyncError(
            f"The API leaves out the row of just that time {asked}. Ask for a second less, in "
            "`http_request`. If it reads times in another zone than it writes them, it cannot be "
            "synced."
        )
    if time - recent[0].time > timedelta(days=1):  # some cut it to the day
        raise SyncError(f"The API returns rows of {recent[0].time.text}, before that, {asked}.")
    is_cut = 2 * len(recent) >= len(keys)  # else these are all rows that are left
    later = {row.key for row in first.rows + second if time < row.time}
    if is_cut:
        later = {row.key for row in first.rows + second if time < row.time < recent[-1].time}
    left_out = later - {row.key for row in recent}
    if 2 * len(left_out) > len(later):  # a few may have changed meanwhile
        raise SyncError(
            f"The API leaves out {len(left_out)} of {len(later)} later rows {asked}: the filter "
            "must look at the time that is in the rows."
        )
    done = "rows are sorted, pages follow offset, and the filter finds what was updated since"
    log.info(f"`{client.table.name}`: {done} a time.")


for table in TABLES:
    RowReader(table)  # a table that cannot be read is an error now, not in the first sync
if repeated := [name for name, count in Counter(t.name for t in TABLES).items() if count > 1]:
    raise ValueError(f"Several tables are named {', '.join(repeated)}.")
connector = Connector(update=update, schema=schema, configuration_form=configuration_form)


# Local runs: `python connector.py` goes on from files/state.json, as `fivetran debug` does


if __name__ == "__main__":
    project = Path(__file__).resolve().parent
    configuration_file, state_file = project / "configuration.json", project / "files/state.json"
    connector.debug(
        project_path=str(project),
        configuration=json.loads(configuration_file.read_text(encoding="utf-8-sig")),
        state=json.loads(state_file.read_text(encoding="utf-8")) if state_file.exists() else {},
    )
