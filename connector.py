"""Sync the users of a REST API into the table `user`: first all of them, then only what changed.

The API lists its rows by `updatedAt`: `updated_since` asks for those of that time or later, and
`limit` and `offset` page through them. No row is lost although the list changes while it is read:
`RowsRead` has the rule, and the README its proof.
To sync another list, change `TABLE`, `ID`, `UPDATED_AT`, `COLUMNS` and `Page`.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from functools import partial
from inspect import signature
from itertools import chain, islice, pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pydantic
import requests
import tenacity
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_core import from_json
from requests.adapters import HTTPAdapter
from typing_extensions import Required, TypedDict

TABLE, ID, UPDATED_AT = "user", "id", "updatedAt"  # the fields by the API's names

SETTLED_AFTER = timedelta(seconds=10)  # in front of younger rows, others may still appear
COARSEST_TIMESTAMP = timedelta(minutes=1)  # to which APIs cut `updatedAt`
WINDOW_ROWS = 10_000  # the largest offset plus limit: many APIs refuse more
MAX_SETBACKS = 5  # without a new row in between (see `Reader`)
MAX_YOUNG_PAGES = 100  # pages of rows updated during the sync, after which it ends
MAX_TIES = 10_000  # rows of one timestamp; a list that ends after so many is taken to be cut

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds; READ_TIMEOUT is for each read from the socket
TRIES, FIRST_TRIES = 6, 3  # requests for one page; for the very first one
MAX_WAIT = 600  # seconds: for a Retry-After, for one answer, and for all tries of a page
BACKOFF = tenacity.wait_exponential_jitter()  # where the API does not say how long
PAGES_BEFORE_GROWTH = 20  # after a slowdown, before one more request at a time is allowed
RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
REFUSED_STATUSES = (400, 416, 422)  # for a page size or an offset; 416 as of PostgREST

PROGRESS_SECONDS = 10  # between two progress messages
TEST_SECONDS = 15  # for each test of the setup form
TEST_PAGE_SIZE = 10  # rows that it asks for, once it has read a first page


class SyncError(Exception):
    """The sync cannot go on. The message says what was expected, what came, and what to do."""


class Refused(SyncError):
    """The API does not accept a request as it is (one of `REFUSED_STATUSES`)."""


class Malformed(SyncError):
    """The answer is JSON, but not a page as the README describes it."""


class Unavailable(SyncError):
    """Transient failure: a retry may succeed, after `retry_after` seconds if the API says so."""

    def __init__(
        self,
        message: str,
        retry_after: float | None = None,
        is_throttled: bool = False,
        is_timeout: bool = False,
    ):
        super().__init__(message)
        self.retry_after = retry_after
        self.is_throttled = is_throttled  # the API asks for fewer requests
        self.is_timeout = is_timeout


# Connector


def schema(configuration: dict):
    """Declare the table, with the columns whose type must not depend on their first values."""
    columns = {name: column for name, (_, column) in COLUMNS.items()}
    return [{"table": TABLE, "primary_key": [ID], "columns": columns}]


def update(configuration: dict, state: dict):
    """Upsert every row updated since the last sync, and checkpoint after every page.

    Args:
        configuration: strings by name, as `Settings` declares them.
        state: {} for a full sync, else {"last_updated_at": "<an ISO 8601 time>"}.

    Raises:
        ValueError: the configuration or the state cannot be used.
        SyncError: the API gives no page, or its list cannot be read without a gap. The state is
            that of the last page delivered, and the next sync goes on from there.
    """
    settings = validate_configuration(configuration)
    cursor = read_state(state)
    if settings.exposes_key:
        # shown in the dashboard, unlike what is logged
        op.warning("api_key is sent unencrypted: use https in base_url if the API offers it.")
    try:
        with closing(Client(settings)) as client:
            pages = with_progress(Reader(client, cursor))
            first = list(islice(pages, 1))  # if this raises, no row has been marked
            if settings.mark_deleted and not state:
                mark_all_deleted()
            for rows in chain(first, pages):
                for row in rows:
                    op.upsert(TABLE, row.record)
                cursor = next_cursor(cursor, rows, client.started)
                op.checkpoint({"last_updated_at": cursor.text})
    except SyncError as error:
        # re-raised without its traceback, which may contain personal data
        raise SyncError(str(error)) from None


def read_state(state: dict) -> "Position":
    """Return the position at which the last sync stopped, or where the list begins.

    Raises `ValueError` if the state is not one that this connector wrote.
    """
    if not state:
        return LIST_START
    text = state.get("last_updated_at")
    try:
        return Position(parse_time(text), text)
    except ValueError:
        raise ValueError(
            "The state's last_updated_at should be an ISO 8601 time, as this connector writes it, "
            f"but is {repr(text)[:60]}. Correct it, or reset the state to sync everything again "
            "(`fivetran reset`, or a re-sync on Fivetran)."
        ) from None


def mark_all_deleted():
    """Mark every row of the table as deleted; each row that the sync upserts is unmarked."""
    # SDK 3.1 is expected to defer the marks to the end of a sync that succeeded (not tried)
    can_defer = "deferred" in signature(op.truncate).parameters
    op.truncate(TABLE, **({"deferred": True} if can_defer else {}))


def next_cursor(cursor: "Position", rows: list, started: datetime) -> "Position":
    """Return the cursor to checkpoint after a page: its last row that has settled.

    A row has settled if it was updated at least 10 seconds before the sync started, by the API's
    clock. In front of younger rows others may still appear, so the next sync reads those again. If
    no row has settled, the old cursor stays; in a first sync, whose list then has no older rows,
    the cursor is the start less 10 seconds. It never goes back.
    """
    settled = started - SETTLED_AFTER
    last = next((row.position for row in reversed(rows) if row.updated_at <= settled), None)
    if cursor == LIST_START:
        return last or Position.at(settled)
    return last if last and last.time > cursor.time else cursor


# Reading the list


class Position(NamedTuple):
    """Position in the list: a timestamp, and the text for it, which is the API's own for rows."""

    time: datetime
    text: str

    @classmethod
    def at(cls, time: datetime) -> "Position":
        """Return the position of a UTC time, cut to the second: not every API reads fractions."""
        time = time.replace(microsecond=0)
        return cls(time, time.replace(tzinfo=None).isoformat() + "Z")

    def earlier(self, seconds: int) -> "Position":
        """Return the position some seconds earlier, but not before the year 1."""
        if seconds == 0:
            return self
        since_list_start = self.time - LIST_START.time
        return self.at(self.time - min(timedelta(seconds=seconds), since_list_start))


LIST_START = Position(datetime.min.replace(tzinfo=timezone.utc), "")  # before every row


class RowsRead:
    """What has been read of a list: the last timestamp, and the ids of the rows that have it.

    The rule: a page leaves no gap if its first row has been read. The list is sorted by timestamp,
    and ties keep their order, so rows may leave the middle, for the end or for good, but never
    join it. Everything in front of a row that has been read has therefore been read, too, or has
    left. So nothing unread stands in front of such a page, however many rows have left, and even
    if the page shows an older state of the list than the page before. A page at offset 0 leaves no
    gap either: `updated_since` is never later than the last timestamp.

    Only rows updated later than 10 seconds before the sync started (or in the minute of that time,
    if the API cuts timestamps to minutes) may join in the middle, or change their order. The
    cursor never passes their timestamps, so the next sync reads them again.
    """

    def __init__(self):
        self.last = LIST_START
        self.ids = set()

    def __contains__(self, row: "Row") -> bool:
        """Return whether a row is one of those read with the last timestamp, or older.

        By the rule, all older rows have been read.
        """
        if row.updated_at == self.last.time:
            return row.id in self.ids
        return row.updated_at < self.last.time

    def add(self, rows: list):
        """Remember new rows, which are in the order of the list."""
        if rows and rows[-1].updated_at > self.last.time:
            self.last, self.ids = rows[-1].position, set()
        self.ids.update(row.id for row in rows if row.updated_at == self.last.time)


class Window:
    """Where reading stands in the rows updated since a position, read at growing offsets.

    `expected` is how many rows that may be; the total of its first page tells.
    """

    def __init__(self, since: Position, expected: int):
        self.since = since
        # the last page that continued the list; at first an empty one
        self.previous = Page.model_construct(rows=[], total=expected, offset=0)
        self.offset = 0  # of the next page
        self.overlap = 1  # rows that the next page shares with the previous one

    @property
    def remaining(self) -> int:
        """How many rows follow the previous page, as far as its total tells."""
        return max(self.previous.total - self.previous.end, 0)

    @property
    def is_probe(self) -> bool:
        """Whether the next page is a probe: it begins after all rows read, to check the total."""
        return self.offset > 0 and self.offset >= self.previous.end


class Reader:
    """Reads all rows updated since a cursor, page after page, without a gap (see `RowsRead`).

    Each page overlaps the previous one by a row, so that it begins with a row that has been read.
    If it does not, the list has moved. That is a setback: the page is dropped, and reading goes on
    in a later window, which begins at the last timestamp read. If the present window began there
    already, reading goes back in this one, page by page, until a page begins with a row that has
    been read, at the latest at offset 0.

    A page may bring nothing although its total promises more rows, and there is no later window
    to read them in. Then a probe requests the last promised page; if that is refused, the next one
    asks nearer. If it is empty, or refused right behind the last row read, the total is too large,
    and the list has ended. If it brings rows, unread ones stand in front of them: a setback.

    Pages are requested with `source.limit`; `source.page_length` is what the API returns at most.
    """

    def __init__(self, client: "Client", cursor: Position):
        self.cursor, self.settings, self.source = cursor, client.settings, PageSource(client)
        if cursor == LIST_START:
            self.since = self.settings.start_date or LIST_START
        else:
            self.since = cursor.earlier(self.settings.lookback_seconds)
        self.window: Window | None = Window(self.since, expected=0)  # None: at the end
        self.rows_read = self.pages_dropped = 0
        self._client = client
        self._read = RowsRead()
        # The largest offset plus limit. Beyond it, reading moves to a later window; where there is
        # none, as one timestamp fills this one, it goes on in this one all the same.
        self._max_depth = WINDOW_ROWS
        self._promised = 0  # rows, by the total of the first page
        self._setbacks = self._young_pages = 0

    def pages(self) -> Iterator[list]:
        """Yield the new rows of each page. While they are written, the next pages arrive.

        Raises `SyncError` if the API gives no page, or none that continues the list.
        """
        while self.window:
            try:
                page = self.source.next_page(self._upcoming())
            except Refused as refusal:
                self._after_refusal(refusal)
                continue
            previous = self.window.previous
            if self.window.is_probe and not page.rows and page.total >= previous.total:
                self._end_before_total()  # with a smaller total, the list has moved: a setback
                continue
            if not self._continues(page):
                self._set_back(page)
                continue
            new = [row for row in page.rows if row not in self._read]
            self._read.add(new)
            self._count(page, new)
            self._plan(page, new)
            if self.window:
                self.source.send(self._upcoming())
            if new:
                yield new

    def _upcoming(self) -> list:
        """Return the requests that follow, as far as the total tells, the next page's first."""
        window = self.window
        step = max(self.source.page_length - window.overlap, 1)
        end = window.previous.total - window.overlap  # pages from there on bring nothing new
        deepest = max(self._max_depth - self.source.limit, 0)
        if window.offset <= deepest:  # else one timestamp fills the window: it goes on
            end = min(end, deepest + 1)
        if window.is_probe:
            end = 0  # nothing is known to follow
        others = range(window.offset + step, end, step)[: self.settings.parallel_requests]
        return [PageRequest(window.since, at) for at in (window.offset, *others)]

    def _continues(self, page: "Page") -> bool:
        """Return whether a page leaves no gap, and its order is one that the list can have."""
        rows, previous = page.rows, self.window.previous
        if page.offset > 0 and not (rows and rows[0] in self._read):
            return False
        is_repeated = previous.rows and rows and previous.rows[0].id == rows[0].id
        is_farther = page.offset > previous.offset
        if is_farther and is_repeated and all(row in self._read for row in rows):
            # The API ignores the offset, or does not follow it that deep, unless both requests ask
            # for all that is left: of rows a, b, c, an API that counts a, but must not show it,
            # returns b, c at the offsets 0 and 1.
            previous_asks_for_all = previous.offset + self.source.limit >= previous.total
            if not previous_asks_for_all or page.end > page.total:
                return False
        # Check what the rule assumes: rows that have been read stand in front of unread ones, but
        # for those that may be late. Else ties have no stable order, or an old page shows rows
        # that have left since.
        lateness = SETTLED_AFTER + timedelta(seconds=self.settings.lookback_seconds)
        recent_from = self._client.started - lateness - COARSEST_TIMESTAMP
        was_read = [row in self._read for row in rows if row.updated_at < recent_from]
        return was_read == sorted(was_read, reverse=True)

    def _set_back(self, page: "Page"):
        """Read on after a page that does not continue what has been read, as `Reader` says.

        The pages of a window in which reading goes back overlap by twice as many rows from then
        on, so that it happens less often.
        """
        window, previous, length = self.window, self.window.previous, self.source.page_length
        self.pages_dropped += 1
        # A page at no larger offset than the previous one comes from a step back, and belongs to
        # the same setback, except at offset 0, where a page fails only for the order of its rows.
        is_further_back = 0 < page.offset <= previous.offset
        if not is_further_back:
            self._setbacks += 1
        if self._setbacks > MAX_SETBACKS:
            raise SyncError(
                f"The list cannot be paged: {self._setbacks} pages did not continue it, the last "
                f"at offset {page.offset} of {previous.total} rows. The API must honor offset, "
                f"return at least 2 rows per page, and rows with one {UPDATED_AT} in a stable "
                f"order, such as by {ID}. If it cannot, set page_size at least 2 above the "
                f"number of rows that share a time (at least {len(self._read.ids)}) and of "
                "consecutive rows that it leaves out."
            )
        self.source.send([])  # cancel what is in flight: it may be older than the move
        if later := self._later_window():
            self.window = later
        else:  # more rows share the last timestamp than fit on a page
            window.offset = max(min(previous.offset, page.offset - length), 0)
            window.overlap = min(2 * window.overlap, length // 2)

    def _later_window(self) -> Window | None:
        """Return a window that begins at the last timestamp read, None if this one began there.

        With a lookback it begins a second earlier: that is set where `updated_since` leaves out
        rows of that very timestamp.
        """
        since = self._read.last.earlier(min(self.settings.lookback_seconds, 1))
        if since.time <= self.window.since.time:
            return None
        return Window(since, self.window.remaining)

    def _plan(self, page: "Page", new: list):
        """Decide where to read on after a page that continues the list, or that it has ended."""
        window, source = self.window, self.source
        may_be_from_ahead = page.offset > window.previous.offset
        more_is_promised = page.end < page.total
        has_outgrown_total = new and page.end > page.total  # a total that is too small
        more_is_likely = has_outgrown_total or len(page.rows) >= source.page_length
        window.previous = page
        window.overlap = min(window.overlap, source.page_length // 2)  # pages may be shorter now
        if self._young_pages >= MAX_YOUNG_PAGES:
            self.window = None  # it changes faster than it is read: the next sync goes on
        elif more_is_promised and len(page.rows) <= 1:  # one is the overlap alone
            # The API does not follow offsets that deep: a later window brings the rest. If there
            # is none, the total may be wrong: a probe tells.
            window.offset = max(page.total - source.limit, page.end, 1)
            self.window = self._later_window() or window
        elif more_is_promised or more_is_likely:
            window.offset = max(page.end - window.overlap, page.offset + 1)
            if window.offset + source.limit > self._max_depth:
                self.window = self._later_window() or window
        elif self.settings.mark_deleted and may_be_from_ahead:
            # Requested ahead, this last page may show an older state of the list than the page
            # before. A row that left the page before in between, for the end, is on neither, and
            # must not look deleted: read the last page again, once.
            window.offset = page.offset
        else:
            self.window = None

    def _count(self, page: "Page", new: list):
        """Count rows, and what must not go on forever: setbacks, and pages of young rows."""
        self.rows_read += len(new)
        self._promised = self._promised or page.total
        if new:
            self._setbacks = 0
            # only after the promised rows, as some APIs write local times, hours in the future
            if self.rows_read >= self._promised and new[-1].updated_at >= self._client.started:
                self._young_pages += 1

    def _after_refusal(self, refusal: Refused):
        """Read on after the API refused an offset: nearer, or in a later window."""
        window, end = self.window, max(self.window.previous.end, 1)
        if window.offset > end:
            window.offset = (window.offset + end) // 2  # nearer, until the API accepts it
        elif window.is_probe:
            self._end_before_total()  # the API refuses offsets after its last row
        elif later := self._later_window():
            self._max_depth = window.offset  # the API answers up to about here
            self.window = later
        else:
            self._fail_for_ties(refusal)

    def _end_before_total(self):
        """Accept that the list has ended, as there is no row where its total promised the last."""
        window, self.window = self.window, None
        total, end = window.previous.total, window.previous.end
        if not self.rows_read and self.since == LIST_START:
            raise SyncError(f"The API promises {total} rows, but returns none.")
        if total - end > self.source.page_length:  # else some were deleted, or are left out
            problem = f"The API promises {total} rows, but returns none from offset {end} on."
            if end >= MAX_TIES:  # all of one timestamp, or there would be a later window
                self._fail_for_ties(f"{problem} Or its total is too large.")
            log.warning(f"{problem} Its total is too large, or it leaves rows out.")

    def _fail_for_ties(self, problem: object):
        raise SyncError(
            f"More rows share {UPDATED_AT} {self._read.last.text} than the API lets be paged "
            "through. Set page_size above their number, or have larger offsets accepted. "
            f"{problem}"
        )


# Requesting pages


class PageRequest(NamedTuple):
    """A request for the rows from `offset` on, of those updated since a position."""

    since: Position
    offset: int


class PageSource:
    """Gets pages in order: requested ahead, again while unavailable, in a size the API accepts.

    It allows two requests in flight at first, and one more whenever a page has to be waited for
    although as many as allowed are in flight, up to `parallel_requests`. A slowdown (the API asks
    to wait, pages time out, or have changed their length) reduces that to one request, and for
    each further one, `PAGES_BEFORE_GROWTH` pages have to come.
    """

    def __init__(self, client: "Client", tries: int = TRIES):
        self.limit = max(client.settings.page_size, 2)  # rows to ask for: pages overlap by one
        self.page_length = self.limit  # rows on a full page, as far as is known
        self.retries = 0
        self.waited = 0.0  # seconds in which there was nothing to do but wait for a page
        self._client = client
        self._tries = tries  # for each page
        self._timeouts = 0  # of the current page
        self._in_flight = {}  # the future of each request
        self._maximum = client.settings.parallel_requests
        self._allowed = min(2, self._maximum)  # requests in flight
        # at first as many as the maximum takes: no slowdown yet
        self._pages_since_slowdown = PAGES_BEFORE_GROWTH * self._maximum

    def next_page(self, upcoming: list) -> "Page":
        """Return the page of the first upcoming request, while those of others arrive.

        Raises `Refused` if the API does not accept an offset, `SyncError` if it gives no page.
        """
        try:
            page = self._retry(upcoming)
        except Refused as refusal:
            if upcoming[0].offset > 0:
                raise
            if self.limit == 2:
                problem = f"The API refuses every page size down to 2 rows. {refusal}"
                raise SyncError(problem) from None
            log.info(f"The API refused pages of {self.limit} rows: asking for half as many.")
            self._halve_limit()
            return self.next_page(upcoming[:1])  # the other offsets assume larger pages
        self._pages_since_slowdown += 1
        is_full = page.end < page.total and len(page.rows) > 1
        if is_full and len(page.rows) != self.page_length:
            self.page_length = len(page.rows)
            if page.offset > 0:
                self._slow_down()  # the pages asked ahead begin in the wrong places
        return page

    def send(self, upcoming: list):
        """Send as many of the upcoming requests as may be in flight, and cancel all others."""
        for request in self._in_flight.keys() - set(upcoming):
            self._in_flight.pop(request).cancel()
        for request in upcoming[: self._allowed]:
            if request not in self._in_flight:
                self._in_flight[request] = self._client.send(request, self.limit)
            if has_failed(self._in_flight[request]):
                break  # the next ones would probably fail, too

    def _retry(self, upcoming: list) -> "Page":
        """Return the page of the first upcoming request, sent again while it is unavailable."""
        self._timeouts = 0
        has_answered = self._client.started is not None
        tries = self._tries if has_answered else min(self._tries, FIRST_TRIES)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=seconds_to_wait,
            # + 1: a Retry-After of MAX_WAIT still fits, if it came within a second
            stop=tenacity.stop_after_attempt(tries) | tenacity.stop_before_delay(MAX_WAIT + 1),
            before_sleep=self._after_failure,
            reraise=True,
        )
        began = monotonic()
        try:
            return retrying(self._take, upcoming)
        except Unavailable as error:
            spent = retrying.statistics
            raise SyncError(
                f"The API gave no page at offset {upcoming[0].offset}: {error}. Tries: "
                f"{spent['attempt_number']}, in {spent['delay_since_first_attempt']:.0f} s. "
                "Nothing is lost: the next sync goes on from the last checkpoint."
            ) from None
        finally:
            self.waited += monotonic() - began

    def _take(self, upcoming: list) -> "Page":
        """Return the page of the first upcoming request. Raises what that request raised."""
        request = upcoming[0]
        if request not in self._in_flight:
            # it was removed below, as it failed (or it is new): send others that failed again, too
            self._in_flight = {r: f for r, f in self._in_flight.items() if not has_failed(f)}
        self.send(upcoming)
        future = self._in_flight[request]
        most = min(self._maximum, 1 + self._pages_since_slowdown // PAGES_BEFORE_GROWTH)
        if self._allowed < most and self._allowed <= len(self._in_flight) and not future.done():
            self._allowed += 1
            self.send(upcoming)
        try:
            return future.result(MAX_WAIT)
        except FutureTimeoutError:
            raise Unavailable(f"no whole answer within {MAX_WAIT} s") from None
        finally:
            del self._in_flight[request]

    def _after_failure(self, attempt: tenacity.RetryCallState):
        """Log a failure, and ask for less: fewer rows if pages time out, or fewer pages ahead."""
        error = attempt.outcome.exception()
        self.retries += 1
        self._timeouts += error.is_timeout
        is_too_slow = error.is_timeout and self._timeouts > 1
        if is_too_slow:
            self._halve_limit()
        if is_too_slow or error.is_throttled:
            self._slow_down()
        log.warning(
            f"No page: {error}. Waiting {attempt.upcoming_sleep:.1f} s before try "
            f"{attempt.attempt_number + 1}, for {self.limit} rows."
        )

    def _halve_limit(self):
        self.limit = max(self.limit // 2, 2)
        self.page_length = min(self.page_length, self.limit)

    def _slow_down(self):
        self._allowed = 1
        self._pages_since_slowdown = 0


def has_failed(future: Future) -> bool:
    """Return whether a call has ended with an exception."""
    return future.done() and future.exception() is not None


def seconds_to_wait(attempt: tenacity.RetryCallState) -> float:
    """Return how long to wait before the next try: as the API asks, or longer if that failed.

    If it asks for fewer requests, that is twice as long: `TRIES` outlast a limit per minute.
    """
    error = attempt.outcome.exception()
    if error.retry_after is not None and attempt.attempt_number == 1:
        return error.retry_after
    return max(error.retry_after or 0, BACKOFF(attempt) * (2 if error.is_throttled else 1))


class Workers:
    """Threads that call functions, and end with the process, whatever they are waiting for.

    Those of concurrent.futures would keep a failed sync from ending until the last answer.
    """

    def __init__(self, count: int):
        self._jobs = SimpleQueue()
        for _ in range(count):
            Thread(target=self._work, name="worker", daemon=True).start()

    def submit(self, function: Callable, *arguments) -> Future:
        """Call a function once a thread is free. Returns the future of its result."""
        future = Future()
        self._jobs.put((future, function, arguments))
        return future

    def close(self):
        """Let the threads end, each after what it is doing."""
        self._jobs.put(None)

    def _work(self):
        for future, function, arguments in iter(self._jobs.get, None):
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except BaseException as error:
                    future.set_exception(error)
        self._jobs.put(None)  # for the next thread


# HTTP client


class Client:
    """The API over HTTP, asked from up to `parallel_requests` threads."""

    def __init__(self, settings: "Settings"):
        self.settings = settings
        self.started = None  # the API's clock when the first request that succeeded was sent
        self._workers = Workers(settings.parallel_requests)
        self._session = session = requests.Session()
        # What the environment says of proxies and certificates, read once; not ~/.netrc, which
        # would replace the key.
        environment = session.merge_environment_settings(settings.base_url, {}, None, None, None)
        session.proxies, session.verify = environment["proxies"], environment["verify"]
        session.trust_env = False
        if key := settings.api_key.get_secret_value():
            session.headers["Authorization"] = f"Bearer {key}"
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=settings.parallel_requests))

    def close(self):
        """Close the connections, and let the threads end."""
        self._workers.close()
        self._session.close()

    def send(self, request: PageRequest, limit: int) -> Future:
        """Call `get` in a thread. Returns the future of its result."""
        return self._workers.submit(self.get, request, limit)

    def get(self, request: PageRequest, limit: int) -> "Page":
        """Return the page of up to `limit` rows that one HTTP request gets, without a retry.

        Raises `Unavailable` if a later request may succeed, `Refused` if the API does not accept
        the request, and `SyncError` for other answers that are no page.
        """
        parameters = {
            "updated_since": request.since.text or None,  # None leaves it out
            "order_by": UPDATED_AT,
            "order_type": "asc",
            "limit": limit,
            "offset": request.offset,
        }
        url, timeout = self.settings.base_url, (CONNECT_TIMEOUT, READ_TIMEOUT)
        sent = datetime.now(timezone.utc)
        try:
            response = self._session.get(url, params=parameters, timeout=timeout)
        except (requests.RequestException, OSError, ValueError) as error:
            raise describe_error(error, self.settings.host) from None
        if not 200 <= response.status_code < 300:
            raise self._describe_status(response, request.offset)
        page = parse_page(self._read_json(response), request.offset)
        if self.started is None:  # then no other is in flight: nothing is asked ahead of a total
            # less the time it took: the page may show the list as of when the request was sent
            date = http_date(response.headers.get("Date", ""))
            self.started = date - response.elapsed if date else sent
        return page

    def _describe_status(self, response: requests.Response, offset: int) -> SyncError:
        code, reason = response.status_code, self.settings.hide_secrets(response.reason or "")[:60]
        where = f"The API answered HTTP {code} {reason} at offset {offset}"
        if code in RETRIED_STATUSES:
            seconds = retry_after(response)
            if seconds is None or seconds <= MAX_WAIT:
                is_throttled = code == 429 or seconds is not None
                return Unavailable(f"HTTP {code} {reason}".strip(), seconds, is_throttled)
            return SyncError(
                f"{where} and asks to wait {seconds:.0f} s, longer than the {MAX_WAIT} s a sync "
                "waits. Sync again after that."
            )
        body = response.content.decode("utf-8", "replace")
        body = self.settings.hide_secrets(body)[:200]  # hidden before it is cut in two
        advice = {401: " (check api_key)", 403: " (check api_key)", 404: " (check base_url)"}
        kind = Refused if code in REFUSED_STATUSES else SyncError
        return kind(f"{where}{advice.get(code, '')}: {body}")

    def _read_json(self, response: requests.Response) -> object:
        body = response.content
        try:
            try:
                return from_json(body)
            except ValueError:  # perhaps a lone surrogate, or bytes that are not UTF-8: as "?"
                answer = json.loads(body.decode(json.detect_encoding(body), "replace"))
                text = json.dumps(answer, ensure_ascii=False)
                return json.loads(text.encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            kind = self.settings.hide_secrets(response.headers.get("Content-Type", "no type"))
            raise Unavailable(
                f"HTTP {response.status_code} with a body that is not JSON ({kind}, {len(body)} "
                "bytes; is base_url the API, and not a page for people such as a login?)"
            ) from None


def describe_error(error: Exception, host: str) -> SyncError:
    """Return why no answer came, and what to do. The error itself may quote people's data."""
    if isinstance(error, requests.TooManyRedirects | ValueError):  # ValueError: not a valid URL
        return SyncError(f"base_url leads to no page ({type(error).__name__}): check it")
    if not isinstance(error, requests.RequestException):  # certificates that cannot be read
        return SyncError(f"No request is possible: {error}")
    cause = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    detail = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None)
    detail = detail or type(cause).__name__
    if isinstance(error, requests.ConnectTimeout):
        detail = f"none within {CONNECT_TIMEOUT} s"
    elif isinstance(error, requests.Timeout) or isinstance(cause, TimeoutError):
        problem = f"no answer from {host} within {READ_TIMEOUT} s (try a smaller page_size)"
        return Unavailable(problem, is_timeout=True)
    if isinstance(error, requests.exceptions.SSLError):
        problem = f"no secure connection to {host} ({detail}; is it https? check its certificate)"
    elif isinstance(error, requests.exceptions.ProxyError):
        problem = f"no connection to {host} through its proxy ({detail}; check HTTPS_PROXY)"
    elif isinstance(error, requests.ConnectionError):
        problem = f"no connection to {host} ({detail}; check base_url, and that the API is up)"
    else:
        problem = f"the answer of {host} was cut off ({detail})"
    return Unavailable(problem)


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds of the `Retry-After` header (RFC 9110, 10.2.3), None if unreadable."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", value):
        return float(value)
    until = http_date(value)
    now = http_date(response.headers.get("Date", "")) or datetime.now(timezone.utc)
    return until and max(0.0, (until - now).total_seconds())


def http_date(text: str) -> datetime | None:
    """Return the time of an HTTP date (RFC 9110, 5.6.7), which is always in UTC."""
    try:
        return parsedate_to_datetime(text).replace(tzinfo=timezone.utc)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# Rows and pages


def parse_time(text: object) -> datetime:
    """Parse an ISO 8601 date or time, which is in UTC if it has no zone. Returns it in UTC.

    Raises `ValueError` if it is not one.
    """
    try:
        if not isinstance(text, str) or text[4:5] != "-":
            raise ValueError  # pydantic would take a number for seconds since 1970
        if len(text) > 10 and text[-3] in "+-":
            text += ":00"  # PostgreSQL writes `+02` for `+02:00`
        time = read_datetime(text.removesuffix("Z"))
        if time.tzinfo is None:
            return datetime.combine(time, time.time(), timezone.utc)  # faster than replace()
        return time.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        came = "another string" if isinstance(text, str) else json_type(text)
        raise ValueError(f"should be an ISO 8601 date and time, but is {came}") from None


read_datetime = pydantic.TypeAdapter(datetime).validator.validate_python
Time = Annotated[datetime, pydantic.PlainValidator(parse_time)]
Id = Annotated[str, Field(coerce_numbers_to_str=True)]
Json = Annotated[Any, pydantic.AfterValidator(partial(json.dumps, ensure_ascii=False))]
# What is neither text nor null becomes JSON: the SDK would store it as Python writes it. Null
# stays null, as pydantic tries None first.
Text = Annotated[str | Json | None, Field(union_mode="left_to_right")]

# Fields by the API's names: how a value is read, and the SDK's type of its column. Other fields
# pass through, and the SDK derives the types of their columns.
COLUMNS = {
    ID: (Required[Id], "STRING"),
    "name": (Text, "STRING"),
    "email": (Text, "STRING"),
    "address": (Text, "STRING"),
    "company": (Text, "STRING"),
    "job": (Text, "STRING"),
    UPDATED_AT: (Required[Time], "UTC_DATETIME"),
    "createdAt": (Time | None, "UTC_DATETIME"),
}
Record = TypedDict("Record", {name: kind for name, (kind, _) in COLUMNS.items()}, total=False)
Record.__pydantic_config__ = pydantic.ConfigDict(extra="allow")


class Row(NamedTuple):
    """A row of the list: what its order depends on, and the record for the table."""

    id: str
    updated_at: datetime
    updated_at_text: str  # as the API wrote it
    record: dict

    @property
    def position(self) -> Position:
        """Where the row stands in the list."""
        return Position(self.updated_at, self.updated_at_text)

    def __repr__(self) -> str:
        return "Row(...)"  # crash reports show local variables


def read_rows(answer: object, validate: Callable[[object], list]) -> list:
    """Return the rows of an answer's list; `validate`, which pydantic provides, reads records."""
    return [
        Row(record[ID], record[UPDATED_AT], raw[UPDATED_AT], record)
        for record, raw in zip(validate(answer), answer, strict=True)
    ]


class Page(BaseModel, hide_input_in_errors=True):
    """An answer of the API: a page of rows, and how many rows match in all."""

    rows: Annotated[list[Record], pydantic.WrapValidator(read_rows)] = Field(alias="data")
    # a path: ("meta", "total") is that of {"meta": {"total": 1}}
    total: int = Field(validation_alias=pydantic.AliasPath("total"), strict=True, ge=0)
    offset: int | None = None  # optional in the answer; `parse_page` fills it in

    @property
    def end(self) -> int:
        """The offset of the first row after the page."""
        return self.offset + len(self.rows)


def parse_page(answer: object, offset: int) -> Page:
    """Return the page of an answer. Raises `Malformed` if it is not as the README says."""
    try:
        page = Page.model_validate(answer)
        if page.offset not in (None, offset):
            raise ValueError(f"`offset` should be as requested, but is {page.offset}")
        for before, row in pairwise(page.rows):
            if row.updated_at < before.updated_at:
                raise ValueError(
                    f"the {UPDATED_AT} of row {row.id} is earlier than that of row {before.id} "
                    "before it, out of order: the API must honor order_by and order_type"
                )
    except ValueError as error:
        fault = describe_faults(error)[0] if isinstance(error, ValidationError) else error
        raise Malformed(f"The API's answer at offset {offset} cannot be read: {fault}.") from None
    page.offset = offset
    return page


def describe_faults(error: ValidationError) -> list:
    """Return what is wrong with an answer or a configuration.

    Of the API's values only the types are named: they may be personal data.
    """
    faults = []
    for fault in error.errors():
        path, kind, came = ".".join(map(str, fault["loc"])), fault["type"], fault["input"]
        if kind == "value_error":  # of our own validators
            problem = fault["ctx"]["error"]
        elif kind == "missing":
            names = [name for name in came if re.fullmatch(r"\w{1,40}", name)][:20]  # no e-mails
            problem = f"is missing; there is {', '.join(names)}" if names else "is missing"
        elif kind == "extra_forbidden":
            known = list(Settings.model_fields)
            nearest = get_close_matches(path, known, n=1) or known
            problem = f"is not a setting; is {' or '.join(nearest)} meant?"
        elif kind in ("model_type", "dict_type"):
            problem = f"should be an object, but is {json_type(came)}"
        else:
            problem = f"{fault['msg'].removeprefix('Input ')}, but is {json_type(came)}"
        faults.append(f"`{path or 'answer'}` {problem}")
    return faults


def json_type(value: object) -> str:
    """Return the name of the type that a value of JSON has."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


# Settings


def setting(read: Callable[[str], Any], allowed: str) -> type:
    """Return the annotated type of a setting; errors and the form say what is `allowed`.

    `read` parses the setting's text, and raises `ValueError` or `KeyError` if that is invalid.
    """

    def validate(text: str):
        try:
            return read(text)
        except (ValueError, KeyError):
            raise ValueError(f"must be {allowed}, but is {text[:40]!r}") from None

    return Annotated[Any, pydantic.PlainValidator(validate), allowed]


def whole_number(lowest: int, highest: int) -> type:
    """Return the type of a setting that is a whole number within limits."""

    def read(text: str) -> int:
        if re.fullmatch("[0-9]{1,9}", text) and lowest <= int(text) <= highest:
            return int(text)
        raise ValueError

    return setting(read, f"a whole number from {lowest:,} to {highest:,}")


def past_time(text: str) -> Position:
    """Return the position of a time. Raises `ValueError` if it is invalid, or in the future."""
    time = parse_time(text)
    if time > datetime.now(timezone.utc):
        raise ValueError
    return Position.at(time)


def check_url(url: str) -> str:
    """Return the URL. The `ValueError` if it is invalid does not quote it: it may have a key."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_address = False
    is_plain = url.isprintable() and not set(" #") & set(url)
    if not is_address or not is_plain or parts.username is not None:
        raise ValueError(
            "must be an http or https address with a host, such as https://api.example.com/list, "
            "without spaces, line breaks or a fragment (from # on), and without user name and "
            "password: the key of the API belongs in api_key"
        )
    ours = {"updated_since", "order_by", "order_type", "limit", "offset"}
    if theirs := ours & parse_qs(parts.query, keep_blank_values=True).keys():
        raise ValueError(f"must not set {', '.join(sorted(theirs))}: the connector does")
    return url


def check_key(key: SecretStr) -> SecretStr:
    """Return the key. Raises `ValueError` if a header cannot carry it."""
    if not all("!" <= character <= "~" for character in key.get_secret_value()):
        raise ValueError("must be ASCII without spaces and line breaks")
    return key


Url = Annotated[str, pydantic.AfterValidator(check_url), "an http or https address"]
Key = Annotated[SecretStr, pydantic.AfterValidator(check_key), "ASCII without spaces"]


class Settings(BaseModel):
    """The settings of configuration.json. The setup form and the README show their docstrings."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        field_title_generator=lambda name, _: name.replace("_", " ").capitalize(),
    )

    base_url: Url = Field(title="Base URL", examples=["https://api.example.com/list"])
    """The address that lists the rows, without the parameters added to it."""
    api_key: Key = Field(SecretStr(""), title="API key")
    """Sent in the header of each request. Leave it empty if the API needs none."""
    page_size: whole_number(1, 10_000) = 100
    """Rows per request: as many as the API returns quickly. A size that it refuses is halved."""
    parallel_requests: whole_number(1, 16) = 8
    """The most requests in flight at a time. The actual number tunes itself, up to this one."""
    lookback_seconds: whole_number(0, 31_536_000) = 0
    """How many seconds before the last cursor a sync begins: for APIs that show changes more than
    10 seconds late. Set 1 if `updated_since` leaves out rows of exactly that time."""
    mark_deleted: setting({"true": True, "false": False}.__getitem__, "true or false") = False
    """A full sync marks the rows that it does not bring as deleted."""
    start_date: setting(past_time, "an ISO 8601 date or time in the past") = None
    """The first sync reads only rows updated since then. Not with mark_deleted."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("must be a string, in quotes")
        if value.startswith("fivetran_encrypted:"):
            raise ValueError("is encrypted: run `fivetran debug`, which decrypts it")
        if re.fullmatch("<.*>", value):
            raise ValueError("is a placeholder: replace it with a value of your own")
        return value

    @field_validator("start_date")
    @classmethod
    def _check_date(cls, date: Position, others: pydantic.ValidationInfo) -> Position:
        if others.data.get("mark_deleted"):
            raise ValueError("cannot be set with mark_deleted: rows deleted before are not known")
        return date

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

    def hide_secrets(self, text: str) -> str:
        """Return a text of the API without the key and what may be one in the query of base_url.

        Values of up to 7 characters, such as a page number, stay; of a key, up to 3.
        """
        query = [value for _, value in parse_qsl(urlsplit(self.base_url).query) if len(value) > 7]
        values = [v for v in (self.api_key.get_secret_value(), *query) if len(v) > 3]
        for value in sorted(values, key=len, reverse=True):
            text = re.sub("".join(map(any_spelling, value)), "***", text)
        return text


def any_spelling(character: str) -> str:
    """Return a regular expression of how a character may be written in a URL, JSON or HTML."""
    if character.isascii() and character.isalnum():
        return character
    percent = rf"(?:%\w\w){{{len(character.encode())}}}"
    return rf"(?:{re.escape(character)}|{percent}|\+|\\u\w{{4}}|\\.|&#?\w{{1,8}};)"


def validate_configuration(configuration: dict) -> Settings:
    """Return the settings of a configuration, in which an empty string means: not set.

    Raises `ValueError` that lists everything wrong, and what is allowed.
    """
    values = {name: value for name, value in configuration.items() if value not in ("", None)}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        faults = "\n- ".join(describe_faults(error))
        raise ValueError(f"The configuration cannot be used:\n- {faults}") from None


# Progress


def with_progress(reader: Reader) -> Iterator[list]:
    """Yield the pages of a reader, and log: at its start, about every ten seconds, at its end."""
    began = last_report = monotonic()
    pages = 0
    what = f"rows updated since {reader.since.text}" if reader.since.text else "all rows"
    log.info(f"Reading {what} from {reader.settings.host} into `{TABLE}`.")
    for rows in reader.pages():
        yield rows  # comes back once they are written
        pages += 1
        now, done = monotonic(), reader.rows_read
        if reader.window and now - last_report >= PROGRESS_SECONDS:
            last_report = now
            share, time_left = " rows", ""
            if left := reader.window.remaining:
                share = f" of {done + left:,} rows ({done * 100 // (done + left)} %)"
                time_left = f" Time left: {duration((now - began) * left / done)}."
            log.info(f"{done:,}{share}, updated up to {rows[-1].updated_at_text}.{time_left}")
    took, waited = duration(monotonic() - began), duration(reader.source.waited)
    log.info(
        f"Done in {took}, of which {waited} waiting for the API. Rows: {reader.rows_read:,}, "
        f"pages: {pages:,}, retries: {reader.source.retries:,}, pages read again as they had "
        f"moved: {reader.pages_dropped:,}."
    )
    if reader.cursor != LIST_START and not reader.rows_read:
        log.warning(
            f"No row was updated since {reader.cursor.text}, not even the one the last sync "
            "stopped at. It may have been deleted. If base_url was changed to another API, the "
            "state must be reset: `fivetran reset`, or a re-sync on Fivetran."
        )


def duration(seconds: float) -> str:
    """Return a duration as text, such as 1:05:09."""
    return str(timedelta(seconds=round(min(seconds, 1e9))))  # an absurd total would overflow


# Setup form


def configuration_form():
    """Return the setup form, for Fivetran's dashboard and `fivetran configuration`."""
    form, text_field = ConfigurationForm(), form_field.TextField
    for name, field in Settings.model_fields.items():
        allowed = field.metadata[-1]  # the last annotation of its type, see `setting`
        description = f"{field.description or ''} Allowed: {allowed}."
        description = " ".join(description.split())
        arguments = {"name": name, "label": field.title, "description": description}
        if field.default is False:
            form.add_field(form_field.ToggleField(**arguments))
            continue
        kind = text_field.password if field.annotation is SecretStr else text_field.plain_text
        example = field.examples[0] if field.examples else field.default
        arguments["placeholder"] = "" if example is None else str(example)
        form.add_field(text_field(field_type=kind, required=field.is_required(), **arguments))
    for number, label in enumerate(STEPS, 1):
        form.add_test(label=label, func=setup_test(number))
    return form


def setup_test(number: int) -> Callable[[dict], Test]:
    """Return a test: the first `number` steps of `check_api`, in `TEST_SECONDS` at most.

    `check_api` is a generator, which yields between two steps.
    """

    def run(configuration: dict):
        with closing(Client(validate_configuration(configuration))) as client:
            list(islice(check_api(client), number))

    def test(configuration: dict):
        with closing(Workers(1)) as worker:  # which ends after this call
            future = worker.submit(run, configuration)
        try:
            future.result(TEST_SECONDS)
            return Test.success()
        except FutureTimeoutError:
            advice = "Check base_url, and that the API is up."
            return Test.failure(f"The API did not answer within {TEST_SECONDS} s. {advice}")
        except Exception as error:
            return Test.failure(str(error))

    test.__name__ = f"test_{number}"  # the SDK tells tests apart by their names
    return test


STEPS = (  # labels of the tests
    "Check the settings",
    "Reach the API with its address and key",
    "Read a page",
    "Follow the pages",
    "Read what was updated since a time",
)


def check_api(client: Client) -> Iterator[None]:
    """Check the API in the steps of `STEPS`, and yield between them. Raises what is wrong."""
    yield  # making the client has checked the settings
    source, first_request = PageSource(client, tries=1), PageRequest(LIST_START, 0)
    with suppress(Refused, Malformed):  # what the next step is about
        client.get(first_request, source.limit)
    yield
    page = source.next_page([first_request])
    if len(page.rows) < min(page.total, 2):
        raise SyncError(
            f"The API promises {page.total} rows, but returns only {len(page.rows)}. It must "
            "return at least 2 rows per page."
        )
    yield
    if page.rows:
        limit = max(min(len(page.rows), TEST_PAGE_SIZE), 2)
        second = client.get(PageRequest(LIST_START, page.end - 1), limit)
        check_second_page(page, second.rows)
        yield
        recent = client.get(PageRequest(page.rows[-1].position, 0), limit)
        check_updated_since(page.rows[-1], recent.rows, client.settings)


def check_second_page(page: Page, second: list):
    """Check rows that begin with the last one of the first page. Raises what is wrong."""
    first, last, is_all = page.rows[0], page.rows[-1], page.total <= page.end
    if second and first.id == second[0].id and not is_all:
        raise SyncError("The API returns the same page at every offset: it must honor offset.")
    if second and second[0].updated_at < last.updated_at:
        raise SyncError(
            f"The API returns a second page whose first {UPDATED_AT} is earlier than the last one "
            "of the first page: it must sort all rows, and not only those of a page."
        )
    if is_all and second[1:] and second[0].id == last.id:
        raise SyncError(
            f"The API says that {page.total} rows match, but has more: `total` must count all "
            "rows that match, and not only those of a page."
        )


def check_updated_since(last: Row, recent: list, settings: Settings):
    """Check rows updated since the time of a page's last row. Raises what is wrong."""
    if recent and recent[0].updated_at <= last.updated_at - timedelta(seconds=1):
        raise SyncError(
            "The API returns rows updated before updated_since: it must leave them out, or every "
            "sync would read all rows."
        )
    is_inclusive = recent and recent[0].updated_at <= last.updated_at
    if not settings.lookback_seconds and not is_inclusive:
        raise SyncError(
            "The API leaves out rows updated at the very time of updated_since, some of which "
            "would be lost: set lookback_seconds to 1."
        )


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)


# Local runs: `python connector.py` goes on from files/state.json, as `fivetran debug` does


def load(path: Path) -> object:
    """Return the JSON of a file. Exits with a message if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Notepad may write a BOM
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}. Correct it.") from None


if __name__ == "__main__":
    project = Path(__file__).resolve().parent
    state_file = project / "files" / "state.json"
    connector.debug(
        project_path=str(project),
        configuration=load(project / "configuration.json"),
        state=load(state_file) if state_file.exists() else {},
    )
