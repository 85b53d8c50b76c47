"""Sync the users of a REST API into the table `user`: first all of them, then only what changed.

The API lists its rows by `updatedAt`: `updated_since` asks for those of that time or later, and
`limit` and `offset` page through them. No row is lost although the list changes while it is read:
`RowsRead` has the rule, and the README its proof.
To sync another list, change `TABLE`, `ID`, `UPDATED_AT`, `COLUMNS`, `Client.get` and `Page`.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from types import NoneType
from typing import Annotated, Any, NamedTuple, Required

import pydantic
import requests
import tenacity
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op
from pydantic import BaseModel, Field, HttpUrl, SecretStr, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict

TABLE, ID, UPDATED_AT = "user", "id", "updatedAt"  # the fields by the API's names

SETTLING_TIME = timedelta(seconds=10)  # how long rows may still appear in front of a row
UNSTABLE_TIME = timedelta(seconds=70)  # the same for ties, where times are cut to the minute
WINDOW_ROWS = 10_000  # the largest offset plus limit: many APIs refuse more
CUT_ROWS = 10_000  # rows after which APIs may cut off their list
MAX_SETBACKS = 8  # without a new row in between (see `Reader`)
MAX_YOUNG_PAGES = 100  # pages of rows updated during the sync, after which it ends

CONNECT_TIMEOUT, READ_TIMEOUT, MAX_RETRY_AFTER = 10, 60, 600  # seconds; for each socket read
TRIES, FIRST_TRIES = 7, 3  # requests for one page; while it is not known that the API is there
BACKOFF = tenacity.wait_exponential_jitter(multiplier=2, max=60)  # outlasts a limit per minute
PROGRESS_SECONDS = 10  # between two progress messages
RESET = "reset the state (`fivetran reset`, or a re-sync on Fivetran)"


class SyncError(Exception):
    """The sync cannot go on. The message says what came and what to do."""


class Refused(SyncError):
    """The API does not accept the page size or the offset of a request."""


class Unavailable(SyncError):
    """A retry may succeed: after `retry_after` seconds (0: unknown) if the API asks to wait."""

    def __init__(self, message: str, retry_after: float | None = None, timeouts: int = 0):
        super().__init__(message)
        self.retry_after, self.timeouts = retry_after, timeouts  # a page too large counts as two


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
    with closing(Client(settings)) as client:
        for number, rows in enumerate(with_progress(Reader(client, cursor))):
            if number == 0 and settings.mark_deleted and not state:
                op.truncate(TABLE)  # marks all rows as deleted; an upsert unmarks its row
            for row in rows:
                op.upsert(TABLE, row)
            cursor = next_cursor(cursor, rows, client.started)
            op.checkpoint({"last_updated_at": cursor.text} if cursor.text else {})


def read_state(state: dict) -> "Timestamp":
    """Return where the last sync stopped. Raises `ValueError` if it cannot be read."""
    try:
        return Timestamp.parse(state.get("last_updated_at")) if state else LIST_START
    except ValueError as error:
        raise ValueError(f"The state's last_updated_at {error}. Correct it, or {RESET}.") from None


def next_cursor(cursor: "Timestamp", rows: list, started: datetime) -> "Timestamp":
    """Return the cursor to checkpoint after a page: the time of its last row that has settled.

    It was updated at least 10 seconds before the sync started, by the API's clock: in front of
    younger rows others may still appear, so the next sync reads those again. The cursor never
    goes back, and stays as it is as long as no row has settled.
    """
    settled = started - SETTLING_TIME
    times = (row[UPDATED_AT] for row in reversed(rows) if row[UPDATED_AT] <= settled)
    return max(cursor, next(times, cursor))


def with_progress(reader: "Reader") -> Iterator[list]:
    """Yield the pages of a reader, and log how far it is: at its start, in between, at its end."""
    began = last_report = monotonic()
    what = f"rows updated since {reader.since.text}" if reader.since.text else "all rows"
    log.info(f"Reading {what} from {reader.settings.base_url.host} into `{TABLE}`.")
    for rows in reader.pages():
        yield rows  # comes back once they are written
        if reader.window and monotonic() - last_report >= PROGRESS_SECONDS:
            last_report = monotonic()
            percent = reader.rows_read * 100 // (reader.rows_read + reader.rows_left)
            log.info(
                f"{reader.rows_read:,} rows ({percent} %), up to {rows[-1][UPDATED_AT].text}."
            )
    log.info(
        f"Done in {monotonic() - began:.0f} s, {reader.source.waited:.0f} s waiting for the API. "
        f"Rows: {reader.rows_read:,}, retries: {reader.source.retries:,}, pages that had moved: "
        f"{reader.pages_dropped:,}."
    )
    if reader.cursor != LIST_START and not reader.rows_read:
        log.warning(
            f"No row was updated since {reader.cursor.text}, not even the one that the last sync "
            f"stopped at. If that was not deleted, the state is that of another API: {RESET}."
        )


# Reading the list


class Timestamp(datetime):
    """A time in UTC that remembers how the API wrote it, which is how it is sent back."""

    text = ""

    @classmethod
    def parse(cls, text: object) -> "Timestamp":
        """Parse an ISO 8601 date or time, in UTC if it has no zone. Raises `ValueError`."""
        try:
            if not (text[4] == text[7] == "-" and text[13:14] in ("", ":")):
                raise ValueError  # a number, a week, or a form that `earlier` does not know
            time = cls.fromisoformat(text)
            time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        except (ValueError, TypeError, LookupError, OverflowError):
            raise ValueError("should be an ISO 8601 date and time") from None
        time.text = text
        return time

    def earlier(self, seconds: int) -> "Timestamp":
        """Return the timestamp some seconds earlier, written as the API writes this one."""
        if seconds == 0 or not self.text:
            return self
        date_time = re.match(r"[\d-]+(.[\d:]+)?", self.text)[0]  # without its fraction and zone
        try:
            earlier = datetime.fromisoformat(date_time) - timedelta(seconds=seconds)
            text = earlier.isoformat(date_time[10:11] or "T", "seconds")[: len(date_time)]
            return self.parse(text + self.text[len(date_time) :])
        except (OverflowError, ValueError):  # some APIs write the year 1 for rows never updated
            return self


LIST_START = Timestamp(1, 1, 1, tzinfo=UTC)  # before every row


class RowsRead:
    """What has been read of a list: the last timestamp, and the ids of the rows that have it.

    The rule: a page leaves no gap if its first row has been read. The list is sorted by timestamp,
    and ties keep their order, so rows may leave the middle, for the end or for good, but only
    young ones join it, which the next sync reads again (see `next_cursor`). So everything in front
    of a row that has been read has been read, or has left, and nothing unread stands in front of
    such a page, however many rows have left, and even if the page shows an older state of the list
    than the page before. A page at offset 0 leaves no gap either: it begins where the sync began,
    or at a timestamp that has been read.
    """

    def __init__(self):
        self.last = LIST_START
        self.ids = set()

    def __contains__(self, row: dict) -> bool:
        """Return whether a row is older than the last timestamp, or was read with it."""
        time = row[UPDATED_AT]
        return time < self.last or (time == self.last and row[ID] in self.ids)

    def add(self, rows: list):
        """Remember new rows, which are in the order of the list."""
        if rows and rows[-1][UPDATED_AT] > self.last:
            self.last, self.ids = rows[-1][UPDATED_AT], set()
        self.ids.update(row[ID] for row in rows if row[UPDATED_AT] == self.last)


class Window:
    """Where reading stands in the rows updated since a time, which are paged by offset."""

    def __init__(self, since: Timestamp, read_until: Timestamp):
        self.since = since
        self.read_until = read_until  # what had been read when it began
        self.cost = timedelta(0)  # how far before that its first row is
        self.offset = 0  # of the next page
        self.overlap = 1  # rows that the next page repeats; grows, so that steps stay the same
        self.first_id = None  # of the page before


class Reader:
    """Reads all rows updated since a cursor, page after page, without a gap (see `RowsRead`).

    Each page overlaps the one before by a row (or by the ties at its end and a row in front, as
    they may change places), so that it begins with a row that has been read. If it does not, the
    list has moved: a setback. Reading goes on in a later window, which begins at the last
    timestamp read, or if this one began there already, further in front in this one.
    """

    def __init__(self, client: "Client", cursor: Timestamp):
        self.cursor, self.settings, self.source = cursor, client.settings, PageSource(client)
        self.since = cursor.earlier(self.settings.lookback_seconds)
        if cursor == LIST_START and self.settings.start_date:
            self.since = self.settings.start_date
        self.window: Window | None = Window(self.since, LIST_START)  # None: at the end
        self.rows_read = self.rows_left = self.pages_dropped = 0
        self._client, self._read = client, RowsRead()
        self._setbacks = self._young_pages = 0

    def pages(self) -> Iterator[list]:
        """Yield the new rows of each page, while the next ones arrive. Raises `SyncError`."""
        while self.window:
            try:
                page = self.source.get(self.window.since, self.window.offset, self.window.overlap)
            except Refused as refusal:
                self._after_refusal(refusal)
                continue
            if not self._continues(page):
                self._set_back(page)
                continue
            new = [row for row in page.rows if row not in self._read]
            self._read.add(new)
            self._advance(page, new)
            if new:
                yield new

    def _continues(self, page: "Page") -> bool:
        """Return whether a page leaves no gap, and ties have kept their order if they must."""
        rows, last = page.rows, self._read.last
        if page.offset > 0 and not (rows and rows[0] in self._read):
            return False
        begins_in_ties = page.offset > 0 and rows[0][UPDATED_AT] == last
        if begins_in_ties and self._tie_overlap() > 1:
            return False  # it should begin before them
        may_end_in_ties = rows and rows[-1][UPDATED_AT] == last and not self._is_last(page)
        unstable = UNSTABLE_TIME + timedelta(seconds=self.settings.lookback_seconds)
        if last >= self._client.started - unstable or not (begins_in_ties or may_end_in_ties):
            return True  # they are too young to tell, or all on the page
        was_read = [row[ID] in self._read.ids for row in rows if row[UPDATED_AT] == last]
        return was_read == sorted(was_read, reverse=True)

    def _tie_overlap(self) -> int:
        """Return the overlap with the last ties and a row in front, 1 if they are none or many."""
        ties = len(self._read.ids)
        return ties + 1 if 1 < ties < self.source.page_length // 2 else 1

    def _is_last(self, page: "Page") -> bool:
        return page.end >= page.total and len(page.rows) < self.source.page_length

    def _set_back(self, page: "Page"):
        """Read on after a page that leaves a gap."""
        window = self.window
        self.pages_dropped += 1
        self._count_setback(page)
        if later := self._later_window(window.cost):
            self.window = later
        else:  # most often, more rows share a time than fit on a page: go back, ever further
            back = self.source.page_length * 2 ** (self._setbacks - 1)
            window.offset = max(page.offset - back, 0)
            window.overlap = self.source.page_length // 2

    def _count_setback(self, page: "Page"):
        self._setbacks += 1
        if self._setbacks > MAX_SETBACKS:
            raise SyncError(
                f"The list cannot be paged: {self._setbacks} pages did not continue it, the last "
                f"at offset {page.offset} of {page.total} rows. It must honor offset, have 2 rows "
                f"a page or more, and ties in a stable order, as by {ID}. Else set page_size to "
                f"over twice the rows of one {UPDATED_AT} (at least {len(self._read.ids)}), or "
                "those that are left out side by side."
            )

    def _later_window(self, cost: timedelta = timedelta(0)) -> Window | None:
        """Return a window that begins at the last timestamp read, None if it is not worth it.

        It has to begin later than this one by more than `cost`, which is what this one repeated:
        some filters cut times, to the day for instance.
        """
        # with a lookback, `updated_since` may leave out rows of that very timestamp
        since = self._read.last.earlier(min(self.settings.lookback_seconds, 1))
        return Window(since, self._read.last) if since - self.window.since > cost else None

    def _after_refusal(self, refusal: Refused):
        """Read on in a later window after the API refused an offset."""
        later = self._later_window()
        if not later:
            raise SyncError(
                f"More rows share {UPDATED_AT} {self._read.last.text}, or the second before, than "
                f"the API lets be paged through. Set page_size above their number. {refusal}"
            )
        self.source.max_end = self.window.offset
        self.window = later

    def _advance(self, page: "Page", new: list):
        """Decide where to read on after a page that continues the list, or that it has ended."""
        window = self.window
        if page.offset == 0 and page.rows:
            window.cost = max(window.read_until - page.rows[0][UPDATED_AT], timedelta(0))
        overlap = max(window.overlap, self._tie_overlap())
        window.overlap = min(overlap, self.source.page_length // 2)
        window.offset = max(page.end - window.overlap, page.offset + 1)
        self.rows_read, self.rows_left = self.rows_read + len(new), max(page.total - page.end, 0)
        if new:
            self._setbacks = 0
        if self._client.started <= self._read.last <= self._client.now + SETTLING_TIME:
            self._young_pages += 1  # later times than now are those of APIs in another zone
        if self._is_last(page) and not (new and page.end > page.total):
            self.window = None  # unless new rows show that the total is too small
        elif self._young_pages > MAX_YOUNG_PAGES:
            self.window = None  # it changes faster than it is read: the next sync goes on
        elif not new or len(page.rows) <= window.overlap:  # the next page could not overlap it
            self._after_dead_end(page)
        elif window.offset + self.source.limit > self.source.max_end:
            self.window = self._later_window(window.cost) or window
        window.first_id = page.rows[0][ID] if page.rows else None

    def _after_dead_end(self, page: "Page"):
        """Read on where no next page can follow, although the total promises more rows."""
        if later := self._later_window():  # the API does not follow offsets that deep
            self.window = later
        elif len(page.rows) <= self.window.overlap:
            self._end_before_total(page)
        elif page.rows[0][ID] == self.window.first_id:  # the API may ignore the offset
            self._count_setback(page)

    def _end_before_total(self, page: "Page"):
        """End the list short of its total, unless there are rows where the last ones should be."""
        last_page = max(page.total - self.source.limit, page.end, 1)
        if self._has_rows(last_page, page.end):  # some are left out, or have just come: read on
            self._count_setback(page)
            return
        self.window = None
        problem = f"The API promises {page.total} rows, but returns none from offset {page.end} on"
        is_much = page.total - page.end > self.source.page_length
        if (is_much and page.end >= CUT_ROWS) or (not self.rows_read and self.since == LIST_START):
            raise SyncError(f"{problem}. Its total is too large, or it cuts off its list.")
        if is_much:
            log.warning(f"{problem}. Its total counts too many, or it leaves rows out.")

    def _has_rows(self, offset: int, end: int) -> bool:
        """Return whether there are rows at an offset, or if it is refused, nearer to `end`."""
        try:
            return bool(self.source.get(self.window.since, offset).rows)
        except Refused:  # it is too deep, or behind the last row
            return offset > end + 1 and self._has_rows((offset + end) // 2, end)


# Requesting pages


class PageRequest(NamedTuple):
    """A request for up to `limit` rows from `offset` on, of those updated since a time."""

    since: Timestamp
    offset: int
    limit: int


class PageSource:
    """Gets pages: in a size the API accepts, again while unavailable, and requested ahead.

    With each page, those that will probably follow are requested, too. Two requests are in flight
    at first, and one more whenever a page has to be waited for, up to `parallel_requests`. A
    slowdown limits them for the rest of the sync: to half as many if the API asks to wait, to one
    if pages change their length.
    """

    def __init__(self, client: "Client", tries: int = TRIES):
        self.limit = client.settings.page_size  # rows to ask for
        self.page_length = self.limit  # rows on a full page, as far as is known
        self.max_end = WINDOW_ROWS  # the largest offset plus limit
        self.retries, self.waited = 0, 0.0  # seconds with nothing to do but wait for a page
        self._client, self._tries = client, tries
        self._timeouts = 0  # of the present page
        self._least = max(self.limit // 4, 2)  # rows to ask for, whatever times out
        self._in_flight = {}  # the future of each request
        self._rows_left = 0  # after the last page, as far as its total tells
        self._most = client.settings.parallel_requests  # requests in flight
        self._allowed = min(2, self._most)  # at present

    def get(self, since: Timestamp, offset: int, overlap: int = 0) -> "Page":
        """Return the page of rows updated since a time, from an offset on.

        The next one will probably begin with its last `overlap` rows (0: none will follow). Raises
        `Refused` if the API does not accept the offset, `SyncError` if it gives no page.
        """
        self._timeouts = 0
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=self._is_last_try,
            wait=lambda call: max(BACKOFF(call), call.outcome.exception().retry_after or 0),
            before=self._before_try,
            before_sleep=self._after_failure,
            reraise=True,
        )
        try:
            page = retrying(self._take, since, offset, overlap)
        except Refused as refusal:
            if offset > 0:
                raise
            if self.limit == 2:
                raise SyncError(f"The API refuses pages of any size: {refusal}") from None
            self._ask_for_less()
            self._least = max(self.limit // 4, 2)
            return self.get(since, offset, overlap)
        except Unavailable as error:
            tries = retrying.statistics["attempt_number"]
            problem = f"The API gave no page at offset {offset}: {error} (tries: {tries})."
            raise SyncError(problem) from None
        if page.end < page.total and len(page.rows) not in (0, 1, self.page_length):
            self.page_length = len(page.rows)
            if offset > 0:
                self._most = self._allowed = 1  # pages ahead would begin in wrong places
        self._rows_left = page.total - page.end
        return page

    def _take(self, since: Timestamp, offset: int, overlap: int) -> "Page":
        """Return the page at an offset. Raises what its request raised."""
        request = PageRequest(since, offset, self.limit)
        self._send(request, overlap)
        future, began = self._in_flight.pop(request), monotonic()
        if not future.done():
            self._allowed = min(self._allowed + 1, self._most)
        try:
            return future.result()
        finally:
            self.waited += monotonic() - began

    def _send(self, request: PageRequest, overlap: int):
        """Send a request, and those that will probably follow, and cancel all others."""
        step = max(self.page_length - overlap, 1)
        end = min(request.offset + self._rows_left, self.max_end - self.limit + 1)
        ahead = range(request.offset + step, end, step)[: self._allowed - 1 if overlap else 0]
        upcoming = [request, *(request._replace(offset=offset) for offset in ahead)]
        for dropped in self._in_flight.keys() - set(upcoming):
            self._in_flight.pop(dropped).cancel()
        for request in upcoming:
            if request not in self._in_flight:
                self._in_flight[request] = self._client.send(request)

    def _is_last_try(self, attempt: tenacity.RetryCallState) -> bool:
        error = attempt.outcome.exception()
        is_there = self._client.started or error.timeouts or error.retry_after is not None
        return attempt.attempt_number >= min(TRIES if is_there else FIRST_TRIES, self._tries)

    def _before_try(self, attempt: tenacity.RetryCallState):
        """Forget requests ahead that have failed, too: they are sent again with this one."""
        if attempt.attempt_number > 1:
            flying = self._in_flight.items()
            self._in_flight = {r: f for r, f in flying if not (f.done() and f.exception())}

    def _after_failure(self, attempt: tenacity.RetryCallState):
        error = attempt.outcome.exception()
        self.retries += 1
        self.waited += attempt.upcoming_sleep
        log.warning(f"No page: {error}. Trying again in {attempt.upcoming_sleep:.0f} s.")
        if error.retry_after is not None:
            self._most = self._allowed = max(self._allowed // 2, 1)
        self._timeouts += error.timeouts
        if self._timeouts >= 2 and self.limit // 2 >= self._least:
            self._timeouts = 0
            self._ask_for_less()

    def _ask_for_less(self):
        """Ask for half as many rows from now on."""
        self.limit = max(self.limit // 2, 2)
        self.page_length = min(self.page_length, self.limit)
        log.info(f"Asking for pages of {self.limit} rows from now on.")


# HTTP client


class Client:
    """The API over HTTP: one request at a time in each of up to `parallel_requests` threads."""

    def __init__(self, settings: "Settings"):
        self.settings = settings
        self.started = None  # the API's clock when the first request that succeeded was sent
        self.now = None  # when the last one was
        self._requests = SimpleQueue()  # with the future of each
        for _ in range(settings.parallel_requests):
            Thread(target=self._work, daemon=True).start()
        self._columns_warned_of = set()
        self._session = session = requests.Session()
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

    def get(self, request: PageRequest) -> "Page":
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
        page = self._read(response, request.offset)
        self.now = date - response.elapsed if (date := http_date(response, "Date")) else sent
        self.started = self.started or self.now
        return page

    def _read(self, response: requests.Response, offset: int) -> "Page":
        """Return the page of a response. Raises as `get` does."""
        code = response.status_code
        if code == 204 or (code in (404, 416) and offset > 0):  # 416 as of PostgREST
            return Page.model_construct(rows=[], total=0, offset=offset)
        if code != 200 and (code >= 400 or "Retry-After" in response.headers):
            raise self._explain_status(response, offset)
        answer, where = self._read_json(response), f"The API's answer at offset {offset}"
        try:
            page = Page.model_validate(answer, context=self._columns_warned_of)
        except ValidationError as error:
            what = explain_validation(error)
            says = isinstance(answer, dict) and (answer.get("error") or answer.get("message"))
            says = f". It says: {self.settings.hide_secrets(str(says))[:200]}" if says else ""
            raise SyncError(f"{where} is not as expected: {what}{says}") from None
        if isinstance(page.offset, int) and page.offset != offset:
            raise SyncError(f"{where} is not as expected: its `offset` is {page.offset}.")
        if any(later[UPDATED_AT] < row[UPDATED_AT] for row, later in pairwise(page.rows)):
            raise SyncError(f"{where} is out of order: it must be sorted by {UPDATED_AT}.")
        page.offset = offset
        return page

    def _read_json(self, response: requests.Response) -> object:
        """Return the JSON of a response. Raises `Unavailable` if it is none."""
        with suppress(ValueError):
            return from_json(response.content)
        # perhaps it is not UTF-8, or has half a surrogate pair, which becomes "?"
        try:
            text = response.content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = response.text  # in the encoding that its header names
        try:
            text = json.dumps(json.loads(text), ensure_ascii=False)
            return from_json(text.encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            kind = self.settings.hide_secrets(response.headers.get("Content-Type", "no type"))
            raise Unavailable(f"a body that is not JSON ({kind}; is base_url the API?)") from None

    def _explain_status(self, response: requests.Response, offset: int) -> SyncError:
        """Return what to raise for an answer that is not a page."""
        code, seconds = response.status_code, retry_after(response)
        status = f"HTTP {code} {self.settings.hide_secrets(response.reason or '')[:60]}"
        advice = {401: ", check api_key", 403: ", check api_key", 404: ", check base_url"}
        body = self.settings.hide_secrets(response.content.decode("utf-8", "replace"))[:200]
        explained = f"{status} at offset {offset}{advice.get(code, '')}: {body}"
        if code in (400, 422):  # waiting would not help
            return Refused(explained)
        if code not in (408, 413, 425, 429) and code < 500 and seconds is None:
            return SyncError(explained)
        if seconds is not None and seconds > MAX_RETRY_AFTER:
            return SyncError(f"{status}: the API asks to wait {seconds:.0f} s. Sync again then.")
        hint = " (a smaller page_size may help)" if code >= 500 or code == 413 else ""
        wait = 0 if code == 429 and seconds is None else seconds
        return Unavailable(f"{status}{hint}", wait, timeouts={504: 1, 413: 2}.get(code, 0))


def explain_no_answer(error: Exception, url: HttpUrl) -> SyncError:
    """Return why no answer came, and what to check. The error itself may quote people's data."""
    cause, host = error, f"{url.host}:{url.port}"
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    detail = getattr(cause, "strerror", None) or type(cause).__name__
    if isinstance(error, requests.TooManyRedirects | ValueError):
        return SyncError(f"base_url leads to no page ({type(error).__name__}): check it")
    if not isinstance(error, requests.RequestException):  # certificates that cannot be read
        return SyncError(f"No request is possible: {error}")
    is_slow = isinstance(error, requests.ReadTimeout) or isinstance(cause, TimeoutError)
    if is_slow and not isinstance(error, requests.ConnectTimeout):
        problem = f"no answer from {host} within {READ_TIMEOUT} s (a smaller page_size may help)"
        return Unavailable(problem, timeouts=1)
    is_insecure = isinstance(error, requests.exceptions.SSLError)
    hint = "whether it is http, or its certificate" if is_insecure else "base_url, and the server"
    return Unavailable(f"no answer from {host} ({detail}; check {hint})")


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds of the `Retry-After` header, None if there is none that can be read."""
    if re.fullmatch(r"\d+(\.\d+)?", value := response.headers.get("Retry-After", "").strip()):
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
Total = Annotated[int, Field(ge=0), pydantic.BeforeValidator(lambda total: total or 0)]


class Page(BaseModel, hide_input_in_errors=True):
    """An answer of the API: a page of rows, and how many rows match in all."""

    rows: Rows = Field(alias="data", repr=False)
    # a path: ("meta", "total") is that of {"meta": {"total": 1}}
    total: Total = Field(validation_alias=pydantic.AliasPath("total"))
    offset: Any = None  # optional in the answer; `Client` fills it in

    @property
    def end(self) -> int:
        """The offset of the first row after the page."""
        return self.offset + len(self.rows)


JSON_TYPES = {NoneType: "null", bool: "a boolean", int: "a number", float: "a number"}
JSON_TYPES |= {str: "a string", list: "an array", dict: "an object"}


def explain_validation(error: ValidationError) -> str:
    """Return what is wrong with an answer or a configuration, without values that are secret."""
    faults = []
    for fault in error.errors()[:5]:
        path, what, came = ".".join(map(str, fault["loc"])), fault["msg"], fault["input"]
        if fault["type"] == "missing":
            what = f"is missing; there is {', '.join(filter(str.isidentifier, came))[:200]}"
        elif fault["type"] == "extra_forbidden":
            what = f"is not a setting; known are {', '.join(Settings.model_fields)}"
        elif fault["type"] in ("model_type", "dict_type"):
            what = f"should be an object, but is {JSON_TYPES[type(came)]}"
        elif path and type(came) is not str:
            what += f", but is {JSON_TYPES[type(came)]}"
        if setting := Settings.model_fields.get(path):
            what += f" ({setting.description})"
        what = what.removeprefix("Value error, ").removeprefix("Input ")
        faults.append(f"`{path}` {what}" if path else what)
    return "; ".join(faults)


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
    lookback_seconds: int = Field(0, ge=0, le=31_536_000)
    """How many seconds before its cursor a sync begins, 0 to 31,536,000: how late changes show."""
    mark_deleted: bool = False
    """true or false: whether a full sync that brings rows marks all others as deleted."""
    start_date: Time | None = None
    """An ISO 8601 time: the first sync reads only rows updated since. Not with mark_deleted."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Settings":
        if not re.fullmatch("(?!fivetran_encrypted:)[!-~]*", self.api_key.get_secret_value()):
            raise ValueError("`api_key` should be ASCII, or is to be decrypted: `fivetran debug`")
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
    values = {name: value for name, value in configuration.items() if value not in ("", None)}
    try:
        return Settings.model_validate(values)
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
        with closing(Client(settings)) as client:
            check_api(PageSource(client, tries=1), settings)
    except (SyncError, ValueError) as error:
        return Test.failure(str(error))
    return Test.success()


def check_api(source: PageSource, settings: Settings):
    """Check what the README asks of an API. Raises `SyncError` if it does otherwise."""
    first = source.get(LIST_START, 0)
    if len(first.rows) < min(first.total, 2):
        raise SyncError(f"The API promises {first.total} rows, at least 2 a page, and does not.")
    if not first.rows:
        return
    second = source.get(LIST_START, first.end - 1)
    ids, last = [row[ID] for row in first.rows], first.rows[-1][UPDATED_AT]
    ids_2 = [row[ID] for row in second.rows]
    if ids_2 == ids and len(ids) > 1:
        raise SyncError("The API returns the same page at every offset: it must honor offset.")
    if ids_2 and ids_2[0] not in ids and second.rows[0][UPDATED_AT] < last:
        raise SyncError("The API sorts only the rows of a page: it must sort all rows.")
    if len(ids_2) > 1 and first.end >= max(first.total, second.total):
        raise SyncError("The API's total counts the rows of a page: it must count all that match.")
    since = last.earlier(min(settings.lookback_seconds, 1))  # as `Reader` asks
    recent = source.get(since, 0).rows
    if recent and since - recent[0][UPDATED_AT] > timedelta(days=1):  # some cut it to the day
        raise SyncError("The API returns rows updated before the time that it is asked for.")
    if not recent or recent[0][UPDATED_AT] > last:
        raise SyncError(
            f"The API leaves out a row of {last.text} when asked for those since {since.text}. If "
            "it leaves out just that time, set lookback_seconds to 1. If it reads times in "
            "another zone than it writes them, it cannot be synced."
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
