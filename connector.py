"""Syncs the users of a REST API into the table `user`: first all of them, then only what changed.

The API lists its rows by `updatedAt`, and pages through them with `limit` and `offset`. The list
changes while it is read, and no row is lost all the same: `RowsRead` has the rule, and the README
its proof. To sync another list, change `TABLE`, `Row` and `Page`.
"""

import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from functools import partial, wraps
from inspect import signature
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

import requests
import tenacity
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op
from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    BeforeValidator,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError
from requests.adapters import HTTPAdapter

TABLE, ID, UPDATED_AT = "user", "id", "updatedAt"  # the fields by the API's names

SETTLED_AFTER = timedelta(seconds=10)  # younger rows may be committed late, or change again
WINDOW_ROWS = 10_000  # the deepest offset plus limit: the usual bound of APIs
MAX_SETBACKS = 5  # pages that do not continue the list, without a new row in between
MAX_YOUNG_PAGES = 100  # pages of rows that changed during the sync, after the first total's rows

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds; READ_TIMEOUT is for each read from the socket
TRIES, FIRST_TRIES = 6, 3  # requests for one page; for the very first one
MAX_WAIT = 600  # seconds: the longest Retry-After, and from the first try of a page to its last
PAGES_BEFORE_GROWTH = 20  # between two steps of reading ahead, once that had to slow down
RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)

PROGRESS_SECONDS = 10  # between two progress messages
TEST_SECONDS, TEST_PAGE_SIZE = 15, 10  # for each test of the setup form; rows of its later pages


class SyncError(Exception):
    """The sync cannot go on. The message says what was expected, what came, and what to do."""


class Refused(SyncError):
    """The API does not accept a request as it is (HTTP 400 or 422)."""


class Unavailable(SyncError):
    """Transient failure; may succeed when retried."""

    def __init__(self, message: str, retry_after: float | None = None, timed_out: bool = False):
        super().__init__(message)
        self.retry_after = retry_after  # seconds, None if the API does not say
        self.timed_out = timed_out


# Connector


def schema(configuration: dict):
    """Declare the table, with the columns whose type must not depend on their first values."""
    fields = {name: field for name, field in Row.model_fields.items() if not field.exclude}
    # the last thing that an annotation of `Row` says is the type of the column
    columns = {field.alias or name: field.metadata[-1] for name, field in fields.items()}
    return [{"table": TABLE, "primary_key": [ID], "columns": columns}]


def update(configuration: dict, state: dict):
    """Upsert every row updated since the last sync, and checkpoint after every page.

    Args:
        configuration: strings by name, as `Settings` declares them.
        state: {} for a full sync, else {"last_updated_at": "<a time in the API's own text>"}.

    Raises:
        ValueError: the configuration or the state cannot be used.
        SyncError: the API gives no page, or its list cannot be read without a gap. The state is
            that of the last page delivered, and the next sync goes on from there.
    """
    settings = validate_configuration(configuration)
    cursor = read_state(state)
    if settings.exposes_key:
        op.warning("api_key is sent unencrypted: use https in base_url if the API offers it.")
    client = Client(settings)
    reader = Reader(client, cursor)
    progress = Progress(reader, cursor)
    try:
        if settings.mark_deleted and not state:
            mark_all_deleted()
        for rows in reader.pages():
            for record in to_records(rows):
                op.upsert(TABLE, record)
            cursor = next_cursor(cursor, rows, client.started)
            op.checkpoint({"last_updated_at": cursor.text})
            progress.report(rows)
        progress.summarize()
    except SyncError as error:
        # re-raised without its traceback, which may contain personal data
        raise SyncError(str(error)) from None
    finally:
        client.close()


def mark_all_deleted():
    """Mark every row of the table as deleted; each row that the sync brings is unmarked.

    SDK 3.1 can defer that to the end of a sync that succeeds. Written against what 3.0.0 has
    inside of it, and not tried on 3.1.
    """
    can_defer = "deferred" in signature(op.truncate).parameters
    op.truncate(TABLE, **({"deferred": True} if can_defer else {}))


def read_state(state: dict) -> "Position | None":
    """Return where the last sync stopped, None if there was none.

    Raises `ValueError` if the state is not one that this connector wrote.
    """
    if not state:
        return None
    text = state.get("last_updated_at")
    try:
        return Position(parse_time(text), text)
    except ValueError:
        raise ValueError(
            "The state's last_updated_at should be an ISO 8601 time, as this connector writes it, "
            f"but is {repr(text)[:60]}. Correct it, or reset the state to sync everything again "
            "(`fivetran reset`, or a re-sync on Fivetran)."
        ) from None


def next_cursor(cursor: "Position | None", rows: list, started: datetime) -> "Position":
    """Return the cursor to checkpoint after a page: its last row that has settled.

    A row updated less than 10 seconds before the start of the sync has not: others may still
    appear in front of it, and the next sync reads that edge again. While no row has settled, the
    old cursor stays; without one, it is the start less 10 seconds. The cursor never goes back.
    """
    settled = started - SETTLED_AFTER
    last = next((row.position for row in reversed(rows) if row.updated_at <= settled), None)
    if cursor is None:
        return last or Position.at(settled)
    return last if last and last.time > cursor.time else cursor


# Reading the list


class Position(NamedTuple):
    """Position in the list: a timestamp and the API's own text for it."""

    time: datetime
    text: str

    @classmethod
    def at(cls, time: datetime) -> "Position":
        """Return the position of a UTC time, cut to the second: not every API reads fractions."""
        time = time.replace(microsecond=0)
        return cls(time, time.replace(tzinfo=None).isoformat() + "Z")

    def earlier(self, seconds: int) -> "Position":
        """Return the position some seconds earlier, but not before the year 1."""
        span = timedelta(seconds=seconds)
        year_one = datetime.min.replace(tzinfo=timezone.utc)
        return self.at(max(self.time, year_one + span) - span)


class RowsRead:
    """What has been read of a list: the last timestamp, and the ids of the rows that have it.

    The list is sorted by timestamp, and ties keep their order. So a row that changes leaves its
    place for the end, a deleted row leaves, and none of those older than 10 seconds joins in the
    middle: their order stays. Everything in front of a row that has been read has therefore been
    read, or has left. A page that begins with such a row leaves no gap, however many rows have
    left, and whichever of two pages the API answered first; nor does a page at offset 0, as
    `updated_since` is never later than the last timestamp. Rows that change or appear meanwhile
    are in no danger: `next_cursor` stays 10 seconds behind the start, so the next sync reads them.
    """

    def __init__(self):
        self.last: Position | None = None
        self.ids = set()

    def __contains__(self, row: "Row") -> bool:
        if self.last is None or row.updated_at > self.last.time:
            return False
        return row.updated_at < self.last.time or row.id in self.ids

    def add(self, rows: list):
        """Remember new rows, which are in the order of the list."""
        if rows and (self.last is None or rows[-1].updated_at > self.last.time):
            self.last, self.ids = rows[-1].position, set()
        self.ids.update(row.id for row in rows if row.updated_at == self.last.time)


class PageRequest(NamedTuple):
    """A request for up to `limit` rows from `offset` on, of those updated since a position."""

    since: Position | None  # None: all rows
    offset: int
    limit: int


@dataclass
class Window:
    """Where reading stands in the rows of one `updated_since`, at growing offsets."""

    since: Position | None
    total: int = 0  # rows of the window, as the API promised last
    offset: int = 0  # of the next page
    overlap: int = 1  # rows that the next page shares with the one before
    taken: int = 0  # the offset of the last page that was accepted
    first: tuple | None = None  # the version of the row that it began with
    probing: bool = False  # the next page is requested to see whether the total is right
    confirming: bool = False  # the last page is requested again, to be sure of the end


class Reader:
    """Reads all rows updated since a cursor, page after page, without a gap.

    Each page overlaps the one before by a row, so that it begins with a row that has been read.
    If it does not, the list has moved: the page is dropped, and reading goes on in a new window,
    at the last timestamp read, or else a page further back.
    """

    def __init__(self, client: "Client", cursor: Position | None):
        self.settings = client.settings
        self.ahead = ReadAhead(client.send, self.settings.parallel_requests)
        self.rows = self.retries = self.pages_dropped = 0
        self._client = client
        self._read = RowsRead()
        self._limit = max(self.settings.page_size, 2)  # rows to ask for: pages overlap by one
        self._length = None  # rows that the last page had, as the API may return fewer
        self._max_depth = WINDOW_ROWS
        self._promised = None  # rows, by the total of the first page
        self._setbacks = self._young_pages = 0
        self._timeouts = 0  # of the next page
        lookback, start_date = self.settings.lookback_seconds, self.settings.start_date
        if cursor is None:
            since = Position.at(start_date) if start_date else None
        else:
            since = cursor.earlier(lookback) if lookback else cursor
        self.since = since
        self._window = Window(since)

    @property
    def _full_page(self) -> int:
        """How many rows a full page has, as far as is known."""
        return self._length or self._limit

    @property
    def remaining(self) -> int:
        """How many rows follow, as far as the API has told."""
        window = self._window
        return max(window.total - window.offset - window.overlap, 0) if window else 0

    def pages(self) -> Iterator[list]:
        """Yield the new rows of each page. While they are written, the next pages arrive.

        Raises `SyncError` if the API gives no page, or none that continues the list.
        """
        while window := self._window:
            try:
                page = parse_page(self._get(), window.offset)
            except Refused as refusal:
                self._after_refusal(refusal)
                continue
            if window.probing and not page.rows and page.total >= window.total:
                self._end_before_total()
                continue
            new = [row for row in page.rows if row not in self._read]
            leaves_no_gap = window.offset == 0 or (page.rows and page.rows[0] in self._read)
            disordered = self._is_disordered(page, new)
            if disordered or not leaves_no_gap:
                self._set_back(disordered)
                continue
            self._take(page, new)
            self._plan(page, new)
            self.ahead.ask(self._coming())
            if new:
                yield new

    def _take(self, page: "Page", new: list):
        """Remember a page that leaves no gap."""
        window = self._window
        window.taken, window.total, window.probing = window.offset, page.total, False
        window.first = page.rows[0].version if page.rows else None
        self._promised = page.total if self._promised is None else self._promised
        self._setbacks = 0 if new else self._setbacks
        self._read.add(new)
        self.rows += len(new)
        if new and self.rows >= self._promised and new[-1].updated_at >= self._client.started:
            self._young_pages += 1

    def _plan(self, page: "Page", new: list):
        """Decide after a page where to read on, or that the list has ended."""
        window, count = self._window, len(page.rows)
        end = window.offset + count
        is_full = 1 < count >= self._full_page  # one row is the overlap alone
        if self._young_pages >= MAX_YOUNG_PAGES:
            self._window = None  # it changes faster than it is read: the next sync goes on
        elif end < page.total and count <= 1:
            self._after_missing_rows(end)
        elif end < page.total:
            if self._length not in (None, count):
                self.ahead.slow_down()
            self._length = count
            self._move_on(end)
        elif is_full or (end > page.total and new):
            self._move_on(end)  # the list may be longer than its total says
        elif self.settings.mark_deleted and window.offset and not window.confirming:
            # With answers in flight, this page may be older than the one before it, and a row that
            # changed in between be in neither: it must not look deleted.
            window.confirming = True
        else:
            self._window = None

    def _move_on(self, end: int):
        """Read on at the end of the page, or in a new window where that would be too deep."""
        window = self._window
        window.confirming = False
        window.offset = max(end - window.overlap, window.offset + 1)
        if window.offset + self._limit > self._max_depth:
            self._window = self._later_window() or window

    def _after_missing_rows(self, end: int):
        """Read on after a page that has none of the rows promised behind it.

        The API may not follow offsets that deep: a new window tells. Or its total may be too
        large: the place of the last rows promised tells.
        """
        window = self._window
        if later := self._later_window():
            self._window = later
        else:
            window.probing = True
            window.offset = max(window.total - self._limit, end, window.offset + 1)

    def _end_before_total(self):
        """Accept that the list has ended, as there is no row where its total promised the last."""
        window, self._window = self._window, None
        returned = len(self._read.ids)
        if not self.rows and self.since is None:
            raise SyncError(f"The API promises {window.total} rows, but returns none.")
        if window.total - window.taken - returned > self._full_page:
            log.warning(
                f"The API promises {window.total} rows from offset 0 on, but returns none behind "
                f"offset {window.taken}. Its total is too large, or it leaves rows out."
            )

    def _is_disordered(self, page: "Page", new: list) -> bool:
        """Return whether no stable order explains a page.

        A single such page may come of answers that overtook each other.
        """
        window, rows = self._window, page.rows
        if not rows:
            return 0 < window.offset < page.total
        if window.offset > window.taken and rows[0].version == window.first:
            return True  # the offset is ignored, or not followed that deep
        if not new or rows[-len(new)] is new[0]:
            return False  # all rows that have been read are in front of the new ones
        # The order of recent rows may be odd. A timestamp may be cut to the minute.
        recent = self._client.started - SETTLED_AFTER - timedelta(minutes=1)
        behind = rows[rows.index(new[0]) :]
        return any(row in self._read and row.updated_at < recent for row in behind)

    def _set_back(self, disordered: bool):
        """Read on where it is safe, after a page that does not continue what has been read.

        That is a new window. If this one began at the last timestamp, too many rows share it:
        then a page back, until a page begins with a row that has been read, with twice the overlap
        from there on.
        """
        window = self._window
        self.pages_dropped += 1
        if disordered or window.offset > window.taken:  # going back further is not counted
            self._setbacks += 1
        if self._setbacks > MAX_SETBACKS:
            raise SyncError(self._describe_setbacks())
        if later := self._later_window():
            self._window = later
            return
        length = self._full_page
        back = window.taken if window.taken < window.offset else window.offset - length
        window.offset, window.probing = max(back, 0), False
        window.overlap = max(min(2 * window.overlap, length // 2), 1)

    def _describe_setbacks(self) -> str:
        window = self._window
        if window.probing:
            return (
                f"The API promises {window.total} rows, returns none behind offset {window.taken},"
                f" but others at offset {window.offset}. If it returns one row per page: it must "
                "return at least 2 rows per page. If it leaves rows out after it has cut the page:"
                " set page_size above the number of rows left out in a run."
            )
        return (
            f"The list cannot be paged: {self._setbacks} pages did not continue it, the last at "
            f"offset {window.offset}. The API must honor offset, and return rows with one "
            f"{UPDATED_AT} in a stable order, such as by {ID}. Else set page_size above the "
            f"number of rows that share a time: at least {len(self._read.ids)} share "
            f"{self._read.last.text}."
        )

    def _after_refusal(self, refusal: Refused):
        """Read on after the API refused the page size, or an offset that deep."""
        window = self._window
        if window.offset == 0:
            self._limit, self._length = smaller(self._limit, refusal), None
        elif window.probing and window.offset > window.taken + 1:
            window.offset = (window.offset + window.taken + 1) // 2  # as far as it accepts
        elif window.probing:
            self._end_before_total()  # it refuses offsets behind its last row
        elif later := self._later_window():
            self._max_depth = window.offset
            self._window = later
        else:
            last = self._read.last
            raise SyncError(
                f"More rows share {UPDATED_AT} {last.text if last else ''} than the API "
                f"lets be paged through. Set page_size above their number, or have it accept "
                f"larger offsets. {refusal}"
            )

    def _later_window(self) -> Window | None:
        """Return a window that begins at the last timestamp read, None if this one began there.

        With a lookback it begins a second earlier: the filter may leave out that timestamp.
        """
        window, last = self._window, self._read.last
        if last is None:
            return None
        since = last.earlier(1) if self.settings.lookback_seconds else last
        if window.since and since.time <= window.since.time:
            return None
        return Window(since, total=max(window.total - window.offset, 0))

    def _coming(self) -> Iterator[PageRequest]:
        """Yield the requests that follow, as far as the total tells."""
        window, limit = self._window, self._limit
        if window is None:
            return
        yield PageRequest(window.since, window.offset, limit)
        step = max(self._full_page - window.overlap, 1)
        end = window.total - window.overlap
        if window.offset + limit <= self._max_depth:
            end = min(end, self._max_depth - limit + 1)
        for offset in range(window.offset + step, end, step):
            yield PageRequest(window.since, offset, limit)

    def _get(self) -> object:
        """Return the answer for the next page, requested again while it is unavailable.

        Raises `Refused` if the API does not accept the request, `SyncError` if it gives no answer.
        """
        tries = FIRST_TRIES if self._promised is None else TRIES
        self._timeouts = 0
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=seconds_to_wait,
            stop=tenacity.stop_after_attempt(tries) | tenacity.stop_before_delay(MAX_WAIT + 1),
            before=self._prepare_try,
            before_sleep=self._after_failure,
            retry_error_callback=self._give_up,
        )
        return retrying(lambda: self.ahead.get(self._coming()))

    def _prepare_try(self, attempt: tenacity.RetryCallState):
        if attempt.attempt_number > 1:
            self.ahead.forget_failures()

    def _after_failure(self, attempt: tenacity.RetryCallState):
        """Log a failure, and ask for less: fewer rows if pages time out, or fewer pages ahead."""
        error = attempt.outcome.exception()
        self.retries += 1
        self._timeouts += error.timed_out
        if error.timed_out and self._timeouts > 1:
            self._limit, self._length = half(self._limit), None
        if error.retry_after is not None:
            self.ahead.slow_down()
        log.warning(
            f"No page at offset {self._window.offset}: {error}. Waiting "
            f"{attempt.upcoming_sleep:.1f} s before try {attempt.attempt_number + 1}, for "
            f"{self._limit} rows."
        )

    def _give_up(self, attempt: tenacity.RetryCallState):
        raise SyncError(
            f"The API gave no page at offset {self._window.offset}: "
            f"{attempt.outcome.exception()}. Tries: {attempt.attempt_number}, in "
            f"{attempt.seconds_since_start:.0f} s. Nothing is lost: the next sync goes on from "
            "the last checkpoint."
        )


def half(limit: int) -> int:
    """Return half a page size, but 2 rows at least: pages overlap by one."""
    return max(limit // 2, 2)


def smaller(limit: int, refusal: Refused) -> int:
    """Return half a page size that was refused. Raises `SyncError` if that was the smallest."""
    if limit == 2:
        raise SyncError(f"The API refuses every page size down to 2 rows. {refusal}")
    log.info(f"The API refused pages of {limit} rows: asking for {half(limit)}.")
    return half(limit)


BACKOFF = tenacity.wait_exponential_jitter(max=60)


def seconds_to_wait(attempt: tenacity.RetryCallState) -> float:
    """Return how long to wait before the next try: as long as the API asks, or a growing time."""
    asked = attempt.outcome.exception().retry_after
    is_unhelpful = asked is None or (asked == 0 and attempt.attempt_number > 1)
    return BACKOFF(attempt) if is_unhelpful else asked


# Reading ahead


class ReadAhead:
    """Requests pages before they are needed, and returns them in order.

    It begins with two requests in flight, and allows one more whenever a page had to be waited
    for although as many as allowed were in flight, up to a maximum.
    """

    def __init__(self, send: Callable[[PageRequest], Future], maximum: int):
        self.waited = 0.0  # seconds in which there was nothing to do but wait for a page
        self._send_request = send
        self._maximum = maximum
        self._allowed = min(2, maximum)
        self._in_flight = {}  # the future of each page that was requested
        self._dropped = []  # futures of pages that are not needed any more
        self._pages = self._pages_before_growth = 0  # _pages: since _allowed changed

    def get(self, coming: Iterable[PageRequest]) -> object:
        """Return the answer to the first coming request. Raises what that request raised."""
        first, *others = islice(coming, self._maximum)
        self.ask([first, *others])
        future = self._in_flight.get(first) or self._send(first)
        is_full = self._allowed <= len(self._in_flight) and self._allowed < self._maximum
        if is_full and not future.done() and self._pages >= self._pages_before_growth:
            self._allowed, self._pages = self._allowed + 1, 0
            self.ask([first, *others])
        began = monotonic()
        try:
            if not wait([future], timeout=MAX_WAIT).done:
                raise Unavailable(f"no whole answer within {MAX_WAIT} s", timed_out=True)
            return future.result()
        finally:
            self.waited += monotonic() - began
            self._pages += 1
            del self._in_flight[first]

    def ask(self, coming: Iterable[PageRequest]):
        """Send as many of the coming requests as may be in flight, and forget all others."""
        coming = list(islice(coming, self._maximum))
        self._dropped += [f for request, f in self._in_flight.items() if request not in coming]
        self._dropped = [future for future in self._dropped if not future.done()]
        self._in_flight = {r: f for r, f in self._in_flight.items() if r in coming}
        for request in coming:
            if request not in self._in_flight and self._may_send():
                self._send(request)

    def _send(self, request: PageRequest) -> Future:
        self._in_flight[request] = self._send_request(request)
        return self._in_flight[request]

    def _may_send(self) -> bool:
        futures = [*self._in_flight.values()]
        running = len(self._dropped) + sum(not future.done() for future in futures)
        has_failed = any(map(failed, futures))  # others would probably fail in the same way
        return len(futures) < self._allowed and running < self._maximum and not has_failed

    def slow_down(self):
        """Allow one request at a time, and more again only after some pages."""
        self._allowed, self._pages = 1, 0
        self._pages_before_growth = PAGES_BEFORE_GROWTH

    def forget_failures(self):
        """Forget the requests that have failed, so that they are sent again."""
        self._in_flight = {r: f for r, f in self._in_flight.items() if not failed(f)}


def failed(future: Future) -> bool:
    return future.done() and future.exception() is not None


class Workers:
    """Threads that call functions.

    Unlike those of concurrent.futures, they do not keep a failed sync from ending while one of
    them still waits for an answer.
    """

    def __init__(self, count: int):
        self._count = count
        self._jobs = SimpleQueue()
        for _ in range(count):
            Thread(target=self._work, name="worker", daemon=True).start()

    def submit(self, function: Callable[[], object]) -> Future:
        """Call a function once a thread is free. Returns the future of its result."""
        future = Future()
        self._jobs.put((future, function))
        return future

    def close(self):
        """Let the threads end, each after what it is doing."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self):
        while job := self._jobs.get():
            future, function = job
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


# HTTP client


class Client:
    """The API over HTTP, asked from up to `parallel_requests` threads."""

    def __init__(self, settings: "Settings"):
        self.settings = settings
        self.started = None  # the API's clock when the first request that succeeded was sent
        self._session = requests.Session()
        # What the environment says of proxies and certificates, read once; not ~/.netrc, which
        # would replace the key.
        environment = self._session.merge_environment_settings(
            settings.base_url, {}, None, None, None
        )
        self._session.proxies, self._session.verify = environment["proxies"], environment["verify"]
        self._session.trust_env = False
        if key := settings.api_key.get_secret_value():
            self._session.headers["Authorization"] = f"Bearer {key}"
        self._workers = Workers(settings.parallel_requests)
        connections = HTTPAdapter(pool_maxsize=settings.parallel_requests)
        self._session.mount("http://", connections)
        self._session.mount("https://", connections)

    def close(self):
        """Close the connections, and let the threads end."""
        self._workers.close()
        self._session.close()

    def send(self, request: PageRequest) -> Future:
        """Call `get` in a thread. Returns the future of its result."""
        return self._workers.submit(partial(self.get, request))

    def get(self, request: PageRequest) -> object:
        """Return the JSON that the API answers, by one HTTP request that is not retried.

        Raises `Unavailable` if a later request may succeed, `Refused` if the API does not accept
        the request, and `SyncError` for other answers that are no success.
        """
        parameters = {
            "updated_since": request.since and request.since.text,  # None leaves it out
            "order_by": UPDATED_AT,
            "order_type": "asc",
            "limit": request.limit,
            "offset": request.offset,
        }
        url, timeout = self.settings.base_url, (CONNECT_TIMEOUT, READ_TIMEOUT)
        try:
            response = self._session.get(url, params=parameters, timeout=timeout)
        except (requests.TooManyRedirects, ValueError) as error:  # a ValueError: no address
            problem = f"base_url leads to no page ({type(error).__name__}): check it"
            raise SyncError(problem) from None
        except requests.RequestException as error:
            raise describe_error(error, self.settings.host) from None
        except OSError as error:  # certificates that cannot be read
            raise SyncError(f"No request is possible: {error}") from None
        self._check_status(response, request.offset)
        answer = self._read_json(response)
        if self.started is None:  # only one request is sent before the first answer
            # no later than when the request was sent, as the page may be older than its Date
            self.started = server_time(response) - response.elapsed
        return answer

    def _check_status(self, response: requests.Response, offset: int):
        code, reason = response.status_code, self._hide_secrets(response.reason or "")
        where = f"HTTP {code} {reason} at offset {offset}"
        if 200 <= code < 300:
            return
        if code in RETRIED_STATUSES:
            seconds = retry_after(response)
            if seconds is not None and seconds > MAX_WAIT:
                problem = (
                    f"asks to wait {seconds:.0f} s, longer than the {MAX_WAIT} s a sync waits"
                )
                raise SyncError(f"The API answered {where} and {problem}. Sync again after that.")
            raise Unavailable(f"HTTP {code} {reason}".strip(), seconds)
        body = response.content[:4000].decode("utf-8", "replace")
        body = self._hide_secrets(body)[:200]  # hidden before it is cut in two
        advice = {401: " (check api_key)", 403: " (check api_key)", 404: " (check base_url)"}
        kind = Refused if code in (400, 422) else SyncError
        raise kind(f"The API answered {where}{advice.get(code, '')}: {body}")

    def _read_json(self, response: requests.Response) -> object:
        body = response.content
        try:
            # not response.json(), which takes text/* for Latin-1
            text = body.decode(json.detect_encoding(body), "replace")
            answer = json.loads(text)
            if "\\ud" in text.lower():  # a lone surrogate cannot be encoded: make it a `?`
                text = json.dumps(answer, ensure_ascii=False)
                answer = json.loads(text.encode("utf-8", "replace"))
            return answer
        except (ValueError, RecursionError):
            kind = self._hide_secrets(response.headers.get("Content-Type", "of no stated type"))
            raise Unavailable(
                f"HTTP {response.status_code} with a body that is not JSON ({kind}, {len(body)} "
                "bytes; is base_url the API, and not a page for people such as a login?)"
            ) from None

    def _hide_secrets(self, text: str) -> str:
        """Return a text of the API without the secrets that it may repeat."""
        for secret in self.settings.secrets():
            text = text.replace(secret, "***")
        return text


def describe_error(error: requests.RequestException, host: str) -> Unavailable:
    """Return why no answer came, and what to do: the error itself may quote people's data."""
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    detail = getattr(cause, "strerror", None) or type(cause).__name__
    if isinstance(error, requests.ConnectTimeout):
        advice = "check base_url, and that a firewall lets it pass"
        return Unavailable(f"no connection to {host} within {CONNECT_TIMEOUT} s ({advice})")
    if isinstance(error, requests.Timeout) or isinstance(cause, TimeoutError):
        message = f"no answer from {host} within {READ_TIMEOUT} s (try a smaller page_size)"
        return Unavailable(message, timed_out=True)
    if isinstance(error, requests.exceptions.SSLError):
        detail = getattr(cause, "verify_message", detail)
        return Unavailable(
            f"no secure connection to {host} (TLS: {detail}; check its certificate)"
        )
    if isinstance(cause, socket.gaierror):
        return Unavailable(f"the name {host} is not found (check base_url)")
    if isinstance(error, requests.ConnectionError):
        advice = "check base_url, and that the API is up"
        return Unavailable(f"no connection to {host} ({detail}; {advice})")
    return Unavailable(f"the answer of {host} was cut off ({detail})")


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds of the `Retry-After` header (RFC 9110, 10.2.3), None if unreadable."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = http_date(value)
    return None if until is None else max(0.0, (until - server_time(response)).total_seconds())


def server_time(response: requests.Response) -> datetime:
    """Return the API's time from its `Date` header, the local time if that is unreadable."""
    return http_date(response.headers.get("Date", "")) or datetime.now(timezone.utc)


def http_date(text: str) -> datetime | None:
    """Return the time of an HTTP date (RFC 9110, 5.6.7), which is always in UTC."""
    try:
        return parsedate_to_datetime(text).replace(tzinfo=timezone.utc)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# Rows and pages


def read_time(value: object, parse: Callable[[object], datetime]) -> datetime:
    """Have pydantic read a time, but no number, which it would take for seconds since 1970."""
    try:
        if not isinstance(value, str) or value[4:5] != "-":
            raise ValueError
        try:
            time = parse(value)
        except ValueError:
            time = parse(value + ":00")  # PostgreSQL writes an offset of hours alone: `+02`
        return time.astimezone(timezone.utc) if time.tzinfo else time.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        raise PydanticCustomError("time", "should be an ISO 8601 date and time") from None


Time = Annotated[datetime, WrapValidator(read_time)]
Id = Annotated[str, Field(coerce_numbers_to_str=True)]
Json = Annotated[Any, AfterValidator(partial(json.dumps, ensure_ascii=False))]
# What is not text becomes JSON: the SDK would store it in a STRING column as Python writes it.
Text = Annotated[str | Json | None, Field(union_mode="left_to_right")]


class Row(BaseModel, extra="allow", hide_input_in_errors=True):
    """A row of the table, with the API's names as aliases.

    Each annotation says how a value is read, and then the SDK's type of its column. Fields that
    are not declared pass through, and the SDK derives the types of their columns.
    """

    id: Annotated[Id, "STRING"] = Field(alias=ID)
    name: Annotated[Text, "STRING"] = None
    email: Annotated[Text, "STRING"] = None
    address: Annotated[Text, "STRING"] = None
    company: Annotated[Text, "STRING"] = None
    job: Annotated[Text, "STRING"] = None
    updated_at: Annotated[Time, "UTC_DATETIME"] = Field(alias=UPDATED_AT)
    created_at: Annotated[Time | None, "UTC_DATETIME"] = Field(None, alias="createdAt")
    updated_at_text: str = Field(validation_alias=UPDATED_AT, exclude=True)  # for the cursor

    @property
    def position(self) -> Position:
        """Where the row stands in the list."""
        return Position(self.updated_at, self.updated_at_text)

    @property
    def version(self) -> tuple:
        """Identifies the row in its present state: its id and timestamp."""
        return self.id, self.updated_at

    def __repr__(self) -> str:
        return "Row(...)"  # crash reports show local variables


class Page(BaseModel, hide_input_in_errors=True):
    """An answer of the API: a page of rows, and how many rows match in all."""

    rows: list[Row] = Field(validation_alias="data")
    total: int = Field(validation_alias=AliasPath("total"), strict=True, ge=0)
    offset: int | None = None


TIME, ROWS = TypeAdapter(Time), TypeAdapter(list[Row])


def to_records(rows: list) -> list:
    """Return rows as the SDK takes them, by the API's names."""
    return ROWS.dump_python(rows, by_alias=True, exclude_unset=True)


def parse_time(text: object) -> datetime:
    """Return an ISO 8601 date or time in UTC; without a zone it is taken as UTC.

    Raises `ValueError` if it is not one.
    """
    return TIME.validate_python(text)


def parse_page(answer: object, offset: int) -> Page:
    """Return the page at an offset from an answer.

    Raises `SyncError` if it is not as the README describes it.
    """
    where = f"The API's answer at offset {offset} cannot be read: "
    try:
        page = Page.model_validate(answer)
    except ValidationError as error:
        raise SyncError(f"{where}{describe_faults(error)[0]}.") from None
    if page.offset not in (None, offset):
        raise SyncError(f"{where}`offset` should be as requested, but is {page.offset}.")
    for before, row in zip(page.rows, page.rows[1:], strict=False):
        if row.updated_at < before.updated_at:
            raise SyncError(
                f"{where}the {UPDATED_AT} of row {row.id} is earlier than that of row "
                f"{before.id} before it, out of order. The API must honor order_by and order_type."
            )
    return page


def describe_faults(error: ValidationError) -> list:
    """Return what is wrong with an answer or the configuration, a sentence for each fault.

    Of what came, only the type is named: the value may be personal data, or secret.
    """
    return [describe_fault(fault) for fault in error.errors(include_url=False)]


JSON_NAMES = {dict: "an object", list: "an array", type(None): "null"}


def describe_fault(fault: dict) -> str:
    path = f"`{'.'.join(map(str, fault['loc'])) or 'answer'}`"
    kind, came, known = fault["type"], fault["input"], Settings.model_fields
    if kind == "setting":
        return f"{path} {fault['msg']}"
    if kind == "missing" and fault["loc"][0] in known:
        return f"{path} is missing: it is required ({known[fault['loc'][0]].title})"
    if kind == "missing":
        names = [name for name in came if re.fullmatch(r"\w{1,40}", name)][:20]  # no e-mails
        return f"{path} is missing; there is {', '.join(names) or 'nothing'}"
    if kind == "extra_forbidden":
        nearest = get_close_matches(fault["loc"][0], known, n=1)
        return f"{path} is not a setting; is {' or '.join(nearest or known)} meant?"
    expected = (
        "should be an object" if kind == "model_type" else fault["msg"].replace("Input ", "")
    )
    return f"{path} {expected}, but is {JSON_NAMES.get(type(came), type(came).__name__)}"


# Settings


def unusable(message: str) -> PydanticCustomError:
    """Return the error for a setting that cannot be used."""
    return PydanticCustomError("setting", message)


def check_text(value: object) -> str:
    if not isinstance(value, str):
        raise unusable("must be a string, in quotes")
    if value.startswith("fivetran_encrypted:"):
        raise unusable("is encrypted: run `fivetran debug`, which decrypts it")
    if re.fullmatch("<.*>", value):
        raise unusable("is a placeholder: replace it with a value of your own")
    return value


def check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    if not url.isprintable() or " " in url:
        raise unusable("must have no spaces or line breaks")
    if not is_address or parts.username is not None:
        raise unusable(
            "must be an http or https address with a host, such as https://api.example.com/list, "
            "and hold no user name or password: the key of the API belongs in api_key"
        )
    if parts.fragment:
        raise unusable("must have no fragment (the part from # on)")
    ours = {"updated_since", "order_by", "order_type", "limit", "offset"}
    if set_there := ours & dict(parse_qsl(parts.query, keep_blank_values=True)).keys():
        raise unusable(f"must not set {', '.join(sorted(set_there))}, which this connector sets")
    return url


def check_key(key: SecretStr) -> SecretStr:
    if not all("!" <= character <= "~" for character in key.get_secret_value()):
        raise unusable("has a space, a line break or another character that is not allowed")
    return key


def whole_number(lowest: int, highest: int) -> type:
    """Return the type of a setting that is a whole number within limits."""
    allowed = f"a whole number from {lowest:,} to {highest:,}"

    def read(value: str) -> int:
        is_number = value.isascii() and value.isdigit() and len(value) < 10
        if is_number and lowest <= int(value) <= highest:
            return int(value)
        raise unusable(f"must be {allowed}, but is {value[:40]!r}")

    return Annotated[int, BeforeValidator(read), allowed]


def read_toggle(value: str) -> bool:
    if value not in ("true", "false"):
        raise unusable(f"must be true or false, but is {value[:40]!r}")
    return value == "true"


PAST_TIME = "an ISO 8601 date or time in the past"


def read_start_date(value: str, other: ValidationInfo) -> datetime:
    try:
        time = parse_time(value)
    except ValueError:
        time = None
    if time is None or time > datetime.now(timezone.utc):
        raise unusable(f"must be {PAST_TIME}, but is {value[:40]!r}")
    if other.data.get("mark_deleted"):
        raise unusable(
            "cannot be set with mark_deleted: rows deleted before it would not be known"
        )
    return time


class Settings(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """The settings of configuration.json, and what the setup form and the README say of them.

    Each annotation says how a value is read, and then what is allowed.
    """

    base_url: Annotated[str, AfterValidator(check_url), "an http or https address"] = Field(
        title="Address of the API",
        description="The address that lists the rows, without the parameters that are added.",
        examples=["https://api.example.com/list"],
    )
    api_key: Annotated[SecretStr, AfterValidator(check_key), "ASCII without spaces"] = Field(
        SecretStr(""),
        title="API key",
        description="Sent as `Authorization: Bearer`. Leave it empty if the API needs none.",
    )
    page_size: whole_number(1, 10_000) = Field(
        100,
        title="Rows per page",
        description="As many as the API returns without getting slow. A size that it refuses is "
        "halved until it is accepted.",
    )
    parallel_requests: whole_number(1, 16) = Field(
        8,
        title="Requests at a time, at most",
        description="How many are sent at a time tunes itself, up to this number.",
    )
    lookback_seconds: whole_number(0, 31_536_000) = Field(
        0,
        title="Seconds to look back",
        description="How long before the last cursor a sync begins: for APIs that show changes "
        "more than 10 seconds late. 1 if `updated_since` leaves out rows of that very second.",
    )
    mark_deleted: Annotated[bool, BeforeValidator(read_toggle), "true or false"] = Field(
        False,
        title="Mark deleted rows",
        description="A full sync marks the rows that it does not bring as deleted.",
    )
    start_date: Annotated[datetime | None, BeforeValidator(read_start_date), PAST_TIME] = Field(
        None,
        title="Start date",
        description="The first sync reads only rows updated since then. Not with mark_deleted.",
    )

    check_each = field_validator("*", mode="before")(check_text)

    @property
    def host(self) -> str:
        """The host of the API, with its port."""
        return urlsplit(self.base_url).netloc

    @property
    def exposes_key(self) -> bool:
        """Whether the key is sent unencrypted to another machine."""
        address = urlsplit(self.base_url)
        is_local = address.hostname in ("localhost", "127.0.0.1", "::1")
        return bool(self.api_key) and address.scheme == "http" and not is_local

    def secrets(self) -> list:
        """Return what an error must not quote, longest first: the key and values of the query."""
        query = parse_qsl(urlsplit(self.base_url).query)
        values = [
            self.api_key.get_secret_value(),
            *(value for _, value in query if len(value) > 7),
        ]
        forms = {
            form for v in values if len(v) > 3 for form in (v, quote_plus(v), quote(v, safe=""))
        }
        forms |= {form.replace("/", "\\/") for form in forms}  # as some APIs write JSON
        return sorted(forms, key=len, reverse=True)


def validate_configuration(configuration: dict) -> Settings:
    """Return the settings of a configuration, in which an empty string means: not set.

    Raises `ValueError` that lists everything wrong, and what is allowed.
    """
    values = {name: value for name, value in configuration.items() if value not in ("", None)}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        faults = describe_faults(error)
    raise ValueError("The configuration cannot be used:\n- " + "\n- ".join(faults))


# Progress


class Progress:
    """Logs what a sync does: at its start, about every ten seconds, and at its end."""

    def __init__(self, reader: Reader, cursor: Position | None):
        self._reader = reader
        self._pages = 0
        self._began = self._last_report = monotonic()
        self._cursor = cursor
        what = f"rows updated since {reader.since.text}" if reader.since else "all rows"
        log.info(f"Reading {what} from {reader.settings.host} into `{TABLE}`.")

    def report(self, rows: list):
        """Count a page that was written, and log how far the sync is every ten seconds."""
        self._pages += 1
        now, done, left = monotonic(), self._reader.rows, self._reader.remaining
        if left and now - self._last_report >= PROGRESS_SECONDS:
            self._last_report = now
            share, time_left = done * 100 // (done + left), (now - self._began) * left / done
            log.info(
                f"{done:,} of {done + left:,} rows ({share} %), updated up to "
                f"{rows[-1].updated_at_text}. Time left: {duration(time_left)}."
            )

    def summarize(self):
        """Log what was done."""
        reader, took = self._reader, duration(monotonic() - self._began)
        log.info(
            f"Done in {took}, of which {duration(reader.ahead.waited)} waiting for the API. Rows: "
            f"{reader.rows:,}, pages: {self._pages:,}, retries: {reader.retries:,}, pages read "
            f"again as they had moved: {reader.pages_dropped:,}."
        )
        if self._cursor and not reader.rows:
            log.warning(
                f"No row was updated since {self._cursor.text}, not even the one the last sync "
                "stopped at. If base_url was changed to another API, the state must be reset: "
                "`fivetran reset`, or a re-sync on Fivetran."
            )


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


# Setup form


def configuration_form():
    """Return the setup form, for Fivetran's dashboard and `fivetran configuration`."""
    form = ConfigurationForm()
    for name, field in Settings.model_fields.items():
        description = f"{field.description} Allowed: {field.metadata[-1]}."
        if field.annotation is bool:
            form.add_field(form_field.ToggleField(name, field.title, description=description))
            continue
        is_secret = field.annotation is SecretStr
        example = field.examples[0] if field.examples else field.default
        form.add_field(
            form_field.TextField(
                name,
                field.title,
                form_field.TextField.password if is_secret else form_field.TextField.plain_text,
                description=description,
                required=field.is_required(),
                placeholder="" if example is None else str(example),
            )
        )
    for label, check in CHECKS.items():
        form.add_test(label=label, func=setup_test(check))
    return form


def setup_test(check: Callable[[Client], None]) -> Callable[[dict], Test]:
    """Return a test for the setup form from a check, which raises what is wrong.

    The test takes `TEST_SECONDS` at most.
    """

    def run(configuration: dict):
        client = Client(validate_configuration(configuration))
        try:
            check(client)
        finally:
            client.close()

    @wraps(check)
    def test(configuration: dict):
        worker = Workers(1)
        result = worker.submit(partial(run, configuration))
        worker.close()
        if not wait([result], timeout=TEST_SECONDS).done:
            advice = "Check base_url, and that the API is up."
            return Test.failure(f"The API did not answer within {TEST_SECONDS} s. {advice}")
        error = result.exception()
        return Test.failure(str(error)) if error else Test.success()

    return test


def check_settings(client: Client):
    """Pass: the settings that the client was made of are valid."""


def check_access(client: Client):
    """Check that the API answers JSON to the address and the key."""
    first_answer(client)


def check_page(client: Client):
    """Check that an answer is a page, and that two rows fit in it: pages overlap by a row."""
    page = first_page(client)
    if len(page.rows) < min(page.total, 2):
        raise SyncError(
            f"The API promises {page.total} rows, but returns only {len(page.rows)}. It must "
            "return at least 2 rows per page."
        )


def check_paging(client: Client):
    """Check that offset is honored, and that the total counts all rows."""
    page = first_page(client)
    if not page.rows:
        return
    offset = len(page.rows) - 1
    second = parse_page(client.get(PageRequest(None, offset, small(page))), offset)
    versions = [row.version for row in second.rows or page.rows[-1:]]
    if page.total > len(page.rows) and versions[0] == page.rows[0].version:
        raise SyncError("The API returns the same page at every offset: it must honor offset.")
    if page.total <= len(page.rows) and versions[0] == page.rows[-1].version and versions[1:]:
        raise SyncError(
            f"The API says that {page.total} rows match, but has more: `total` must count all "
            "rows that match, and not only those of a page."
        )


def check_updated_since(client: Client):
    """Check that updated_since leaves out older rows, and includes that time."""
    page = first_page(client)
    if not page.rows:
        return
    last = page.rows[-1].position
    rows = parse_page(client.get(PageRequest(last, 0, small(page))), 0).rows
    since = [row.updated_at for row in rows]
    if since and since[0] <= last.time - timedelta(seconds=1):
        raise SyncError(
            "The API returns rows updated before updated_since: it must leave them out, or every "
            "sync would read all rows."
        )
    if not client.settings.lookback_seconds and not (since and since[0] <= last.time):
        raise SyncError(
            "The API leaves out rows updated at the very time of updated_since, some of which "
            "would be lost: set lookback_seconds to 1."
        )


def small(page: Page) -> int:
    """Return a page size for further requests, which the API accepts as it gave this page."""
    return max(min(len(page.rows), TEST_PAGE_SIZE), 2)


def first_answer(client: Client) -> object:
    """Return what the API answers to a request for its first page, of a size that it accepts."""
    limit = max(client.settings.page_size, 2)
    while True:
        try:
            return client.get(PageRequest(None, 0, limit))
        except Refused as refusal:
            limit = smaller(limit, refusal)


def first_page(client: Client) -> Page:
    return parse_page(first_answer(client), 0)


CHECKS = {  # by their labels in the form, in the order in which things go wrong
    "Check the settings": check_settings,
    "Reach the API with its address and key": check_access,
    "Read a page": check_page,
    "Follow the pages": check_paging,
    "Read what was updated since a time": check_updated_since,
}


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)


# Local runs: `python connector.py` goes on from files/state.json, as `fivetran debug` does


def load(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Notepad writes a signature
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None


if __name__ == "__main__":
    project = Path(__file__).resolve().parent
    state_file = project / "files" / "state.json"
    connector.debug(
        project_path=str(project),
        configuration=load(project / "configuration.json"),
        state=load(state_file) if state_file.exists() else {},
    )
