"""Sync the users of a REST API into the table `user`: first all of them, then only what changed.

The API lists its rows by `updatedAt`: `updated_since` asks for those of that time or later, and
`limit` and `offset` page through them. No row is lost although the list changes while it is read:
`Reader` says why.
To sync another list, change `TABLE`, `ID`, `UPDATED_AT`, `COLUMNS`, `Client.get` and `Answer`.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from random import random
from threading import Thread
from time import monotonic, sleep
from types import NoneType
from typing import Annotated, Any, NamedTuple, Required

import pydantic
import requests
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op
from pydantic import AliasPath, BaseModel, Field, HttpUrl, SecretStr, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict

TABLE, ID, UPDATED_AT = "user", "id", "updatedAt"  # the fields by the API's names

CLOCK_SKEW = timedelta(seconds=10)  # between the clocks of the `Date` header and of timestamps
WINDOW_ROWS = 10_000  # the largest offset plus limit: many APIs refuse more, or show nothing
LEAST_OVERLAP = 2  # rows that two pages share: one of the last timestamp, one in front of it
FEW_ROWS = 10  # a total may count just the page; below this, no API cuts one off
MAX_SETBACKS = 8  # without a new row in between (see `Reader`)
MAX_CHANGED_PAGES = 100  # pages that end with a row changed during the sync, after which it ends

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds; the latter for each read of the socket
MAX_TRIES = 7  # requests for one page: with their waits, they outlast a limit per minute
FIRST_TRIES = 3  # while it is not known that the API is there
MAX_BACKOFF, MAX_RETRY_AFTER = 60, 600  # seconds
CALM_PAGES = 8  # times the ceiling: so many pages without a failure raise it by one
PROGRESS_SECONDS = 10  # between two progress messages
RESET = "reset the state (`fivetran reset`, or a re-sync on Fivetran)"


class SyncError(Exception):
    """The sync cannot go on. The message says what came and what to do."""


class Refused(SyncError):
    """The API does not accept the page size or the offset of a request."""


class Unavailable(SyncError):
    """A retry may succeed.

    `retry_after`: the seconds that the API asks to wait, 0 if it does not say how long, None if it
    does not ask. `too_large`: whether fewer rows might have come in time.
    """

    def __init__(self, message: str, retry_after: float | None = None, too_large: bool = False):
        super().__init__(message)
        self.retry_after, self.too_large = retry_after, too_large


# Connector


def schema(configuration: dict):
    """Declare the table, with the columns whose type must not depend on their first values."""
    columns = {name: column for name, (_, column) in COLUMNS.items()}
    return [{"table": TABLE, "primary_key": [ID], "columns": columns}]


def update(configuration: dict, state: dict):
    """Upsert every row updated since the last sync, and checkpoint after every page.

    `configuration` has strings by name, as `Settings` declares them; `state` is {} for a full
    sync, else {"last_updated_at": "<an ISO 8601 time>"}. Raises `ValueError` if one of them cannot
    be used, `SyncError` if the API gives no page, or its list cannot be read without a gap. The
    state is then that of the last page delivered, and the next sync goes on from there.
    """
    settings = validate_configuration(configuration)
    cursor = read_state(state)
    with closing(PageSource(settings)) as source:
        reader = Reader(source, settings, cursor)
        for number, rows in enumerate(with_progress(reader)):
            if number == 0 and settings.mark_deleted and not state:
                op.truncate(TABLE)  # marks all rows as deleted; an upsert unmarks its row
            for row in rows:
                op.upsert(TABLE, row)
            cursor = next_cursor(cursor, rows, reader.settled)
            op.checkpoint({"last_updated_at": cursor.text} if cursor.text else {})


def read_state(state: dict) -> "Timestamp":
    """Return where the last sync stopped. Raises `ValueError` if it cannot be read."""
    try:
        return Timestamp.parse(state.get("last_updated_at")) if state else LIST_START
    except ValueError as error:
        raise ValueError(f"The state's last_updated_at {error}. Correct it, or {RESET}.") from None


def next_cursor(cursor: "Timestamp", rows: list, settled: datetime) -> "Timestamp":
    """Return the cursor to checkpoint after a page: the time of its last row that has settled.

    In front of younger rows others may still appear, from transactions that take long: the next
    sync reads those again. The cursor never goes back, and stays as it is until a row has settled.
    """
    times = (row[UPDATED_AT] for row in reversed(rows) if row[UPDATED_AT] <= settled)
    return max(cursor, next(times, cursor))


def with_progress(reader: "Reader") -> Iterator[list]:
    """Yield the pages of a reader, and log how far it is: at its start, in between, at its end."""
    began = last_report = monotonic()
    what = f"rows updated since {reader.since.text}" if reader.since.text else "all rows"
    log.info(f"Reading {what} from {reader.settings.base_url.host} into `{TABLE}`.")
    for rows in reader.pages():
        yield rows  # comes back once they are written
        if monotonic() - last_report >= PROGRESS_SECONDS:
            last_report = monotonic()
            total = f" of {reader.rows_read + reader.rows_left:,}" if reader.rows_left else ""
            log.info(f"{reader.rows_read:,}{total} rows, up to {rows[-1][UPDATED_AT].text}.")
    log.info(
        f"Done in {monotonic() - began:.0f} s, {reader.source.waited:.0f} s waiting for the API. "
        f"Rows: {reader.rows_read:,}, retries: {reader.source.retries:,}, pages that had moved: "
        f"{reader.setbacks:,}."
    )
    if not reader.rows_read:  # not even the one that the last sync stopped at
        check = "If some should, check base_url and api_key; if the state is another API's,"
        log.warning(f"No row came. {check} {RESET}.")


# Reading the list


class Timestamp(datetime):
    """A time in UTC that remembers how the API wrote it, which is how it is sent back."""

    text = ""

    @classmethod
    def parse(cls, text: object) -> "Timestamp":
        """Parse an ISO 8601 date or time, in UTC if it has no zone. Raises `ValueError`."""
        try:
            if not text[4] == text[7] == "-":
                raise ValueError  # a number, say
            time = cls.fromisoformat(text)
            time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        except (ValueError, TypeError, LookupError, OverflowError):
            raise ValueError("should be an ISO 8601 date and time") from None
        time.text = text
        return time


LIST_START = Timestamp(1, 1, 1, tzinfo=UTC)  # before every row; no text: neither filter nor state


class RowsRead:
    """What has been read of a list: the last timestamp, and the ids of the rows that have it."""

    def __init__(self):
        self.last = LIST_START
        self.ids = set()

    def __contains__(self, row: dict) -> bool:
        """Return whether a row is older than the last timestamp, or was read with it."""
        time = row[UPDATED_AT]
        return time < self.last or (time == self.last and row[ID] in self.ids)

    def add(self, rows: list) -> list:
        """Remember the rows of a page, and return those that had not been read."""
        new = [row for row in rows if row not in self]
        if new and new[-1][UPDATED_AT] > self.last:
            self.last, self.ids = new[-1][UPDATED_AT], set()
        self.ids.update(row[ID] for row in new if row[UPDATED_AT] == self.last)
        return new


class Place(NamedTuple):
    """Where to read on: at an offset of a window, which is the rows updated since a time."""

    since: Timestamp
    offset: int = 0
    overlap: int = LEAST_OVERLAP  # rows that each page of the window shares with the one before
    cut: timedelta = timedelta(0)  # `since` less the time of the first row: above 0 if it was cut
    first_id: str | None = None  # of the page before


class Reader:
    """Reads all rows updated since a cursor, page after page, without a gap.

    The list is sorted by timestamp, and a row that changes moves to its end. So rows may leave the
    middle, but none joins it, except late ones, which the next sync reads (see `next_cursor`).

    The rule: a page leaves no gap if its first row is older than the last timestamp read. Every
    row older than that has been read (only of exactly that timestamp, some may be missing: ties),
    and behind its first row, the page is the list. That holds however many rows have left, in
    whatever order ties come, and on a replica that lags. A first row of the last timestamp is not
    enough, even if it was read: a tie that was not may stand in front of it. So each page overlaps
    the one before by the ties at its end and one row in front of them.

    If a page begins later all the same, or is empty, the list has moved: a setback. Reading goes
    on in a later window, of the rows updated since the last timestamp, which leaves out no tie.
    Some APIs cut that time, to the day, say, so that the window begins earlier. The next one must
    then be later by more than that, or each window would read the same rows again.

    If ties fill half a page or more, they and one row do not fit into half a page: overlapping
    them would cost most of each page. A page may then begin among them, with a row that was read,
    if they have a stable order, as by id: those that were read must stand in front of the others.

    A short page is not the end: the API may return fewer rows than asked for, or leave some out.
    The list ends where a page has no new row, no later window is left, and the next offset would
    be no larger. But behind a row that changed during the sync there are only rows that the next
    one reads again: reading stops at a short page of them, or after `MAX_CHANGED_PAGES`.
    """

    def __init__(self, source: "PageSource", settings: "Settings", cursor: Timestamp):
        self.source, self.settings = source, settings
        self.since = (settings.start_date or cursor) if cursor == LIST_START else cursor
        self.started: datetime | None = None  # when the first page was asked for: the API's clock
        self.settled: datetime | None = None  # no row up to that time will appear late
        self.rows_read = self.rows_left = self.setbacks = 0
        self._read = RowsRead()
        self._least_overlap = LEAST_OVERLAP  # doubles with each setback
        self._setbacks_in_a_row = self._changed_pages = 0

    def pages(self) -> Iterator[list]:
        """Yield the new rows of each page, while the next ones arrive. Raises `SyncError`."""
        place = Place(self.since)
        while place:
            try:
                page = self.source.get(place.since, place.offset, place.overlap)
            except Refused as refusal:
                place = self._after_refusal(place, refusal)
                continue
            if not self._continues(page):
                place = self._after_setback(place, page)
                continue
            new = self._take_new(page)
            if new:
                yield new
            place = self._after_page(place, page, has_new=bool(new))

    @property
    def _most_overlap(self) -> int:
        return max(self.source.longest // 2, 1)

    @property
    def _has_many_ties(self) -> bool:
        return len(self._read.ids) >= self._most_overlap

    def _continues(self, page: "Page") -> bool:
        """Return whether a page leaves no gap."""
        if page.offset == 0:
            return True
        if not page.rows:  # rows have left, so that the list is shorter
            return False
        first, last = page.rows[0], self._read.last
        if first[UPDATED_AT] < last:
            return True
        if first not in self._read or not self._has_many_ties:
            return False
        were_read = [row in self._read for row in page.rows if row[UPDATED_AT] == last]
        is_stable = were_read == sorted(were_read, reverse=True)
        return is_stable or last > self.settled  # what has not settled, the next sync reads again

    def _take_new(self, page: "Page") -> list:
        """Return the rows of a page that have not been read, and count them as read."""
        if not self.started:
            self.started = page.time
            self.settled = page.time - timedelta(seconds=self.settings.lookback_seconds)
        new = self._read.add(page.rows)
        self.rows_read, self.rows_left = self.rows_read + len(new), page.rows_left
        if new:
            self._setbacks_in_a_row = 0
        self._changed_pages += self._read.last >= self.started
        return new

    def _after_page(self, place: Place, page: "Page", has_new: bool) -> Place | None:
        """Return where to read on after a page that leaves no gap: None at the end of the list."""
        is_full = len(page.rows) >= self.source.page_length
        if self._may_stop(page, is_full):
            return None
        if page.offset == 0 and page.rows:
            place = place._replace(cut=place.since - page.rows[0][UPDATED_AT])
        is_deep = page.end + self.source.limit > self.source.max_end
        ends_window = not is_full or not has_new or self._has_many_ties or is_deep
        if ends_window and (later := self._later_window(place.since, place.cut)):
            return later
        ties = 0 if self._has_many_ties else len(self._read.ids) + 1
        overlap = min(max(place.overlap, self._least_overlap, ties), self._most_overlap)
        offset = max(page.end - overlap, 0)
        if not has_new and offset <= page.offset:
            return self._after_window(place, page)
        first_id = page.rows[0][ID] if page.rows else None
        if not has_new and first_id == place.first_id:
            self._count_setback(page)  # the API hides rows, or ignores the offset
        return place._replace(offset=offset, overlap=overlap, first_id=first_id)

    def _may_stop(self, page: "Page", is_full: bool) -> bool:
        """Return whether a page is all of the list, or what follows it is for the next sync."""
        if page.offset == 0 and page.end == page.total and page.end < FEW_ROWS:
            return not is_full
        # a time in the future is no change: it is a local one, marked or taken as UTC
        has_changed = self.started <= self._read.last <= page.time + CLOCK_SKEW
        return has_changed and (not is_full or self._changed_pages > MAX_CHANGED_PAGES)

    def _later_window(self, since: Timestamp, cut: timedelta = timedelta(0)) -> Place | None:
        """Return a window from the last timestamp on, None if `since` is not earlier by a cut."""
        is_later = self._read.last - since > cut
        return Place(self._read.last, overlap=self._least_overlap) if is_later else None

    def _after_setback(self, place: Place, page: "Page") -> Place | None:
        """Return where to read on after a page that leaves a gap. Raises `SyncError`."""
        if not page.rows and self._setbacks_in_a_row >= MAX_SETBACKS:
            return self._after_window(place, page)  # nor was there a new row further in front
        self._count_setback(page)
        self._least_overlap = min(2 * self._least_overlap, self._most_overlap)
        back = self.source.page_length * 2 ** (self._setbacks_in_a_row - 1)  # 1, 2, 4, ... pages
        place = place._replace(offset=max(place.offset - back, 0), first_id=None)
        later = self._later_window(place.since, place.cut)
        return later or place._replace(overlap=self._least_overlap)

    def _count_setback(self, page: "Page"):
        """Count a page that did not lead on. Raises `SyncError` after too many."""
        self.setbacks += 1
        self._setbacks_in_a_row += 1
        if self._setbacks_in_a_row > MAX_SETBACKS:
            raise SyncError(
                f"The list cannot be paged. Sort it by {ID}, too, so that the rows of one "
                f"{UPDATED_AT} keep their order, or set page_size above twice their number, which "
                f"is {len(self._read.ids)} or more. The API must honor offset, with 3 rows a page "
                f"or more: the page at offset {page.offset} did not lead on, like those before."
            )

    def _after_refusal(self, place: Place, refusal: Refused) -> Place:
        """Return where to read on after the API refused an offset. Raises `SyncError`."""
        if later := self._later_window(place.since):
            return later
        raise SyncError(
            f"More rows have {UPDATED_AT} {self._read.last.text}, or are one to the API's filter, "
            f"than it lets be paged through. Set page_size above their number. {refusal}"
        )

    def _after_window(self, place: Place, page: "Page") -> Place | None:
        """Return where to read on after the last page of a window: None at the end of the list.

        Raises `SyncError` if the list has probably been cut off.
        """
        is_whole = page.rows and page.end == page.total and page.end != WINDOW_ROWS
        if not is_whole and (later := self._later_window(place.since)):
            return later  # the API may end all windows at this depth
        problem = f"The list ends at offset {page.end}, and its total says {page.total}"
        if page.end == WINDOW_ROWS and page.rows_left > self.source.limit:
            raise SyncError(f"{problem}: the API cuts it off, or counts too many.")
        if page.rows_left or page.end == WINDOW_ROWS:
            log.warning(f"{problem}: the API counts too many, hides rows, or cuts the list off.")
        return None


# Requesting pages


class PageRequest(NamedTuple):
    """A request for up to `limit` rows from `offset` on, of those updated since a time."""

    since: Timestamp
    offset: int
    limit: int


class Page(NamedTuple):
    """The rows from an offset on, and the total if the API says one."""

    rows: list
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


class PageSource:
    """Gets pages: of a size that the API accepts, and again while it is unavailable."""

    def __init__(self, settings: "Settings", max_tries: int = MAX_TRIES):
        self.limit = settings.page_size  # rows to ask for
        self.longest = 0  # rows of the longest page that has come, at most `limit`
        self.max_end = WINDOW_ROWS  # or where the API refused an offset
        self.retries, self.waited = 0, 0.0  # seconds
        self._settings, self._max_tries = settings, max_tries
        client = Client(settings)
        self.close = client.close
        self._ahead = RequestsAhead(client, settings.parallel_requests)
        self._is_capped = False  # whether full pages have fewer rows than asked for
        self._last_length = 0  # rows of the last page
        self._rows_left = 0  # after the last page, as far as is known

    @property
    def page_length(self) -> int:
        """Rows of a full page: as many as are asked for, unless the API returns fewer."""
        return self.longest if self._is_capped else self.limit

    def get(self, since: Timestamp, offset: int, overlap: int = LEAST_OVERLAP) -> Page:
        """Return the page of rows updated since a time, from an offset on.

        The next one will probably share `overlap` rows with it. Raises `Refused` if the API does
        not accept the offset, `SyncError` if it gives no page.
        """
        failures, began = [], monotonic()
        while True:
            request = PageRequest(since, offset, self.limit)
            try:
                page = self._ahead.take(request, self._following(request, overlap))
                break
            except Refused as refusal:
                self._handle_refusal(refusal, offset)
            except Unavailable as error:
                failures.append(error)
                self._wait(failures, offset)
        self.waited += monotonic() - began
        self._learn_from(page)
        return page

    def _following(self, request: PageRequest, overlap: int) -> list[PageRequest]:
        """Return the requests that will probably follow one, as far as may be in flight."""
        step = max(self.page_length - overlap, 1)
        # a page that would have nothing but the overlap is not needed
        end = min(request.offset + self._rows_left, self.max_end - self.limit + 1)
        offsets = range(request.offset + step, end, step)[: self._settings.parallel_requests]
        return [request._replace(offset=offset) for offset in offsets]

    def _learn_from(self, page: Page):
        """Learn from a page how long full ones are, and how many rows follow."""
        length = len(page.rows)
        self.longest = max(self.longest, length)
        # shown by a short page with rows behind it, or by two pages of one length
        has_more = page.offset == 0 and page.rows_left > 0
        self._is_capped |= length > 1 and (has_more or length == self._last_length)
        self._last_length = length
        self._rows_left = page.rows_left
        if length >= self.page_length and not page.rows_left and page.total != page.end:
            self._rows_left = WINDOW_ROWS  # the total does not say how many

    def _handle_refusal(self, refusal: Refused, offset: int):
        """Ask for less, if the page size may be refused, else raise `Refused` or `SyncError`."""
        if offset > 0:
            self.max_end = offset  # the true one is less than a page above it
            raise refusal
        if self.longest or self.limit == 2:
            raise SyncError(f"The API refuses the request: {refusal}") from None
        self._ask_for_less(least=2)

    def _wait(self, failures: list[Unavailable], offset: int):
        """Wait until a page can be tried again. Raises `SyncError` if it has failed too often."""
        error, tries = failures[-1], len(failures)
        # what takes long or asks to wait is there, too
        is_there = self.longest or error.too_large or error.retry_after is not None
        if tries >= min(MAX_TRIES if is_there else FIRST_TRIES, self._max_tries):
            raise SyncError(f"No page at offset {offset} in {tries} tries: {error}") from None
        seconds = max(min(2**tries, MAX_BACKOFF) + random(), error.retry_after or 0)
        log.warning(f"No page: {error}. Trying again in {seconds:.0f} s.")
        self._ahead.slow_down()
        sleep(seconds)
        self.retries += 1
        if error.too_large and sum(failure.too_large for failure in failures) % 2 == 0:
            self._ask_for_less(least=max(self._settings.page_size // 4, 2))

    def _ask_for_less(self, least: int):
        """Ask for half as many rows from now on."""
        if self.limit > least:
            why = f"{self.limit} were refused, or too many"
            self.limit = max(self.limit // 2, least)
            self.longest = min(self.longest, self.limit)
            log.info(f"Asking for pages of {self.limit} rows from now on, as {why}.")


class RequestsAhead:
    """Keeps requests in flight: the one whose turn it is, and those that will probably follow.

    Twice as many are allowed whenever the expected page is asked for and has not come yet, half as
    many whenever another one is asked for: a list at rest is read many pages at a time, one that
    moves with each page one by one. What is expected is remembered even if it was not sent, so
    one right guess is enough to begin again. A failure may come of too many requests, whatever it
    says: half as many become the ceiling, which rises again with pages that come (`CALM_PAGES`).
    """

    def __init__(self, client: "Client", most: int):
        self._client, self._most = client, most  # requests in flight, whatever happens
        self._ceiling = most  # of what is allowed, since the last failure
        self._allowed = min(2, most)  # at present
        self._calm_pages = 0  # since the last failure, or since the ceiling has risen
        self._in_flight: dict[PageRequest, Future] = {}
        self._expected: PageRequest | None = None  # the next one

    def take(self, request: PageRequest, following: list[PageRequest]) -> Page:
        """Return the page of a request, and send those that will probably follow, in their order.

        Raises what `Client.get` raises.
        """
        for dropped in self._in_flight.keys() - {request, *following}:
            self._in_flight.pop(dropped).cancel()
        has_come = request in self._in_flight and self._in_flight[request].done()
        if self._expected == request and not has_come:
            self._allowed = min(self._allowed * 2, self._ceiling)
        elif self._expected not in (request, None):
            self._allowed = max(self._allowed // 2, 1)
        for sent in [request, *following][: self._allowed]:
            if sent not in self._in_flight:
                self._in_flight[sent] = self._client.send(sent)
        self._expected = None
        page = self._in_flight.pop(request).result()
        self._expected = following[0] if following else None
        self._calm_pages += 1
        if self._calm_pages >= CALM_PAGES * self._ceiling:
            self._calm_pages, self._ceiling = 0, min(self._ceiling + 1, self._most)
        return page

    def slow_down(self):
        """Allow half as many requests, and forget those that have failed: they are sent again."""
        self._ceiling = self._allowed = max(self._allowed // 2, 1)
        self._calm_pages = 0
        flying = self._in_flight.items()
        self._in_flight = {r: f for r, f in flying if not (f.done() and f.exception())}


# HTTP client


class Client:
    """The API over HTTP: one request at a time in each of up to `parallel_requests` threads."""

    def __init__(self, settings: "Settings"):
        self.settings = settings
        self._requests = SimpleQueue()  # with the future of each
        for _ in range(settings.parallel_requests):
            Thread(target=self._work, daemon=True).start()
        self._columns_warned_of = set()
        self._session = session = requests.Session()
        session.headers.update({"Accept": "application/json", "User-Agent": "fivetran-connector"})
        if key := settings.api_key.get_secret_value():
            session.headers["Authorization"] = f"Bearer {key}"
        # what the environment says of proxies and certificates, looked up once
        found = session.merge_environment_settings(str(settings.base_url), {}, None, None, None)
        session.proxies, session.verify = found["proxies"], found["verify"]
        session.trust_env = False

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
        parameters = {
            "updated_since": request.since.text or None,  # None leaves it out
            "order_by": UPDATED_AT,
            "order_type": "asc",
            "limit": request.limit,
            "offset": request.offset,
        }
        url, timeout = str(self.settings.base_url), (CONNECT_TIMEOUT, READ_TIMEOUT)
        sent = datetime.now(UTC)
        try:
            response = self._session.get(url, params=parameters, timeout=timeout)
        except (OSError, ValueError) as error:  # requests' own are OSErrors, urllib3's ValueErrors
            raise explain_no_answer(error, self.settings.base_url) from None
        date = http_date(response, "Date")
        time = date - response.elapsed if date else sent
        answer = self._parse(response, request.offset)
        return Page(answer.rows, answer.total, request.offset, time)

    def _parse(self, response: requests.Response, offset: int) -> "Answer":
        """Return the answer in a response. Raises as `get` does."""
        code = response.status_code
        if code == 204 or (code in (404, 416) and offset > 0):  # 416 as of PostgREST
            return NO_ROWS
        if code not in (200, 203, 206):  # 206 as of PostgREST
            raise self._explain_status(response, offset)
        body, where = self._parse_json(response), f"The API's answer at offset {offset}"
        if body == {}:  # some leave an empty list out
            return NO_ROWS
        try:
            answer = Answer.model_validate(body, context=self._columns_warned_of)
        except ValidationError as error:
            what = explain_validation(error, self.settings.hide_secrets)
            raise SyncError(f"{where} is not as expected: {what}") from None
        if isinstance(answer.offset, int) and answer.offset != offset:
            raise SyncError(f"{where} is not as expected: its `offset` is {answer.offset}.")
        if any(later[UPDATED_AT] < row[UPDATED_AT] for row, later in pairwise(answer.rows)):
            raise SyncError(f"{where} is out of order: it must be sorted by {UPDATED_AT}.")
        return answer

    def _parse_json(self, response: requests.Response) -> object:
        """Return the JSON of a response. Raises `Unavailable` if it is none."""
        with suppress(ValueError):
            return from_json(response.content)
        for content in (response.content, response.text):  # the latter as its header says
            with suppress(ValueError, RecursionError):  # half a surrogate pair becomes "?"
                text = json.dumps(json.loads(content), ensure_ascii=False)
                return from_json(text.encode("utf-8", "replace"))
        kind = self.settings.hide_secrets(response.headers.get("Content-Type", "no type"))
        raise Unavailable(f"a body that is not JSON ({kind}; is base_url the API?)")

    def _explain_status(self, response: requests.Response, offset: int) -> SyncError:
        """Return what to raise for an answer that is not a page."""
        code, seconds = response.status_code, retry_after(response)
        reason, body = response.reason or "", response.content.decode("utf-8", "replace")
        status = f"HTTP {code} {self.settings.hide_secrets(reason)[:60]}"
        words = f". It says: {self.settings.hide_secrets(body)[:200]}" if body else ""
        advice = {401: ", check api_key", 403: ", check api_key", 404: ", check base_url"}
        if code in (400, 422):  # waiting would not help
            return Refused(f"{status} at offset {offset}{words}")
        if code not in (408, 413, 425, 429) and code < 500 and seconds is None:
            return SyncError(f"{status} at offset {offset}{advice.get(code, '')}{words}")
        if seconds is not None and seconds > MAX_RETRY_AFTER:
            return SyncError(f"{status}: it asks to wait {seconds:.0f} s, sync again then{words}")
        hint = " (a smaller page_size may help)" if code >= 500 or code == 413 else ""
        wait = 0 if code == 429 and seconds is None else seconds  # a 429 always asks to wait
        too_large = code in (413, 504, 524)  # 524 as of Cloudflare
        return Unavailable(f"{status}{hint}{words}", wait, too_large)


def explain_no_answer(error: Exception, url: HttpUrl) -> SyncError:
    """Return why no answer came, and what to check. The error itself may quote people's data."""
    cause, host = error, f"{url.host}:{url.port}"
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    detail = getattr(cause, "strerror", None) or type(cause).__name__
    if isinstance(error, requests.TooManyRedirects | ValueError):
        return SyncError(f"base_url leads to no page ({type(error).__name__}): check it")
    if not isinstance(error, requests.RequestException):  # certificates that cannot be read
        return SyncError(f"No request is possible: {error}")
    is_slow = isinstance(error, requests.ReadTimeout) or isinstance(cause, TimeoutError)
    if is_slow and not isinstance(error, requests.ConnectTimeout):
        problem = f"no answer from {host} within {READ_TIMEOUT} s (a smaller page_size may help)"
        return Unavailable(problem, too_large=True)
    hint = "base_url, whether it is http or https, and the server"
    return Unavailable(f"no answer from {host} ({detail}; check {hint})")


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


# Rows, pages and settings


def null_if_unreadable(value: object, read: pydantic.ValidatorFunctionWrapHandler, info):
    """Return a value as its type reads it, else None, with a warning once per column and sync."""
    try:
        return read(value)
    except ValueError:
        if value and info.field_name not in info.context:
            info.context.add(info.field_name)
            log.warning(f"Some values of {info.field_name} cannot be read: they become null.")
        return None


Time = Annotated[datetime, pydantic.PlainValidator(Timestamp.parse)]
Id = Annotated[str, Field(coerce_numbers_to_str=True, min_length=1)]
AsJson = Annotated[Any, pydantic.AfterValidator(partial(json.dumps, ensure_ascii=False))]
Text = Annotated[str | AsJson | None, Field(union_mode="left_to_right")]  # not text: as JSON
OR_NULL = pydantic.WrapValidator(null_if_unreadable)

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
    "createdAt": (Annotated[Time, OR_NULL], "UTC_DATETIME"),
}
Record = TypedDict("Record", {name: kind for name, (kind, _) in COLUMNS.items()}, total=False)
Record.__pydantic_config__ = pydantic.ConfigDict(extra="allow")
Rows = Annotated[list[Record], pydantic.BeforeValidator(lambda rows: rows or [])]


class Answer(BaseModel, hide_input_in_errors=True):
    """An answer of the API: some rows, and how many match in all, None if it does not say."""

    rows: Rows = Field(alias="data", repr=False)
    # a path: ("meta", "total") is that of {"meta": {"total": 1}}
    total: Annotated[int | None, OR_NULL] = Field(None, validation_alias=AliasPath("total"))
    offset: Any = None


NO_ROWS = Answer.model_construct(rows=[])
JSON_TYPES = {NoneType: "null", bool: "a boolean", int: "a number", float: "a number"}
JSON_TYPES |= {str: "a string", list: "an array", dict: "an object"}


def explain_validation(error: ValidationError, hide_secrets: Callable[[str], str] = str) -> str:
    """Return what is wrong with an answer or a configuration, without people's data."""
    faults = []
    for fault in error.errors()[:5]:
        path, what = ".".join(map(str, fault["loc"])), explain_fault(fault, hide_secrets)
        if setting := Settings.model_fields.get(path):
            what += f" ({setting.description})"
        faults.append(f"`{path}` {what}" if path else what)
    return "; ".join(faults)


def explain_fault(fault: dict, hide_secrets: Callable[[str], str]) -> str:
    """Return what is wrong with a field."""
    kind, came = fault["type"], fault["input"]
    if kind == "missing":
        names = hide_secrets(", ".join(filter(str.isidentifier, came)))[:200] or "nothing"
        answer = came if len(fault["loc"]) == 1 else {}  # perhaps an error with status 200
        words = (answer[name] for name in ("error", "errors", "message") if name in answer)
        said = "".join(f"; it says: {hide_secrets(str(word))[:200]}" for word in words)
        return f"is missing; there is {names}{said}"
    if kind == "extra_forbidden":
        return f"is not a setting; known are {', '.join(Settings.model_fields)}"
    if kind in ("model_type", "dict_type"):
        return f"should be an object, but is {JSON_TYPES[type(came)]}"
    what = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["loc"] and type(came) is not str:
        what += f", but is {JSON_TYPES[type(came)]}"
    if came is None and fault["loc"][-1] == UPDATED_AT:
        what += " (it must be filled when a row is created, too)"
    return what


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
    """An ISO 8601 time: the first sync reads only rows updated since. Not with mark_deleted."""

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

    def hide_secrets(self, text: str) -> str:
        """Return a text with *** for the key and base_url's query, however they are spelled."""
        for _, secret in [("", self.api_key.get_secret_value()), *self.base_url.query_params()]:
            parts = re.findall("[A-Za-z0-9]+", secret)  # JSON, HTML and URLs encode the rest
            if sum(map(len, parts)) > 3:  # less is no secret, but a page number, say
                spelled = parts[0] + "".join(f"(?>.{{1,40}}?{part})" for part in parts[1:])
                text = re.sub(spelled, "***", text, flags=re.DOTALL)
        return text


def validate_configuration(configuration: dict) -> Settings:
    """Return the settings, in which an empty string means: not set. Raises `ValueError`."""
    values = {name: str(value or "").strip() for name, value in configuration.items()}
    try:
        return Settings.model_validate({name: value for name, value in values.items() if value})
    except ValidationError as error:
        problem = explain_validation(error)
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
    try:
        settings = validate_configuration(configuration)
        one_by_one = settings.model_copy(update={"parallel_requests": 1})
        with closing(PageSource(one_by_one, max_tries=1)) as source:
            check_api(source, settings.start_date or LIST_START)
    except (SyncError, ValueError) as error:
        return Test.failure(str(error))
    return Test.success()


def check_api(source: PageSource, since: Timestamp):
    """Check what the README asks of an API. Raises `SyncError` if it does otherwise."""
    first = source.get(since, 0)
    if len(first.rows) < 2 and first.rows_left and not since.text:  # a total may ignore the filter
        raise SyncError(f"The API promises {first.total} rows, and returns {len(first.rows)}.")
    if not first.rows:
        return
    second = source.get(since, first.end - 1)
    ids, last = [row[ID] for row in first.rows], first.rows[-1][UPDATED_AT]
    ids_2 = [row[ID] for row in second.rows]
    if ids_2 == ids and len(ids) > 1:
        raise SyncError("The API returns the same page at every offset: it must honor offset.")
    if ids_2 and ids_2[0] not in ids and second.rows[0][UPDATED_AT] < last:
        raise SyncError("The API sorts only the rows of a page: it must sort all rows.")
    recent = source.get(last, 0).rows
    if recent and last - recent[0][UPDATED_AT] > timedelta(days=1):  # some cut it to the day
        raise SyncError("The API returns rows updated before the time that it is asked for.")
    if not recent or recent[0][UPDATED_AT] > last:
        raise SyncError(
            f"The API leaves out a row of {last.text} when asked for those since. If it omits "
            "just that time, ask for a second less, in `Client.get`. If it reads times in another "
            "zone than it writes them, it cannot be synced."
        )


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
