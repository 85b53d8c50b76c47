"""Syncs the users of a REST API into the table `user`: first all of them, then only what changed.

It loses no user while the list changes under it. The file reads from top to bottom: what is set, how one page is
asked for, how pages are asked for ahead and become an unbroken list, what the table is, what a sync does and says,
how it is set up, and how to run it on a laptop. The README says why the paging is safe, and which lines to change
for another API.
"""

import json
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from functools import partial
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from threading import Event, RLock, Semaphore, Thread
from time import monotonic
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote_plus, urlsplit

import requests
import tenacity
from fivetran_connector_sdk import ConfigurationForm, Connector, Test, form_field
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op
from requests.adapters import HTTPAdapter

# What to change for another table, other columns or other field names
TABLE = "user"
ID = "id"
UPDATED_AT = "updatedAt"
COLUMNS = {
    ID: "STRING",
    "name": "STRING",
    "email": "STRING",
    "address": "STRING",
    "company": "STRING",
    "job": "STRING",
    UPDATED_AT: "UTC_DATETIME",
    "createdAt": "UTC_DATETIME",
}
STRING_COLUMNS = [name for name, kind in COLUMNS.items() if kind == "STRING"]
TIME_COLUMNS = [name for name, kind in COLUMNS.items() if kind == "UTC_DATETIME"]

WINDOW_ROWS = 10_000  # how deep offsets go before paging starts again at the cursor; many APIs refuse deeper ones
MOST_REREADS = 5  # how often a window may be read again without bringing anything new

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds; READ_TIMEOUT is for each piece of an answer, not for all of it
TRIES = 6  # for each page
LONGEST_WAIT = 600  # seconds: the longest Retry-After that is obeyed, and the most from a page's first try to its last
CAREFUL_PAGES = 50  # how many pages to ask for one at a time, after an API asked to wait
RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
RETRIED_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)

PROGRESS_SECONDS = 10  # between two lines that say how far a sync is
TEST_SECONDS, TEST_PAGE_SIZE = 15, 10  # how long the connection test may take; the page size of its later requests


class SyncError(Exception):
    """The sync cannot go on. The message says what was expected, what came, where, and what to do."""


class Refused(SyncError):
    """The API does not take a request as it is (HTTP 400 or 422)."""


class Unavailable(SyncError):
    """No page came this time. `retry_after` is how many seconds the API asks to wait, None if it does not say."""

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


# What is set


@dataclass(frozen=True)
class Settings:
    """What configuration.json sets. The README has a table of it."""

    base_url: str
    page_size: int  # users
    parallel_requests: int
    lookback_seconds: int
    api_key: str = field(repr=False)  # empty if the API needs none

    @property
    def host(self) -> str:
        """The host, with the port if base_url names one: what errors call the API by."""
        return urlsplit(self.base_url).netloc


NUMBERS = {  # lowest, highest, default
    "page_size": (1, 10_000, 100),
    "parallel_requests": (1, 16, 4),
    "lookback_seconds": (0, 31_536_000, 0),
}
SETTINGS = ("base_url", "api_key", *NUMBERS)
PARAMETERS = {"updated_since", "order_by", "order_type", "limit", "offset"}


def read_settings(configuration: dict) -> Settings:
    """Check the configuration and return it as `Settings`.

    Raises `SyncError` that lists everything wrong, with each value but that of `api_key`, and what is allowed.
    """
    values = {name: str(configuration.get(name) or "") for name in SETTINGS}
    problems = [problem for name, value in values.items() if (problem := problem_with(name, value))]
    if problems:
        raise SyncError("The configuration cannot be used:\n- " + "\n- ".join(problems))
    numbers = {name: int(values[name] or default) for name, (_, _, default) in NUMBERS.items()}
    return Settings(values["base_url"], api_key=values["api_key"], **numbers)


def problem_with(name: str, value: str) -> str | None:
    """Return what is wrong with the value of a setting, and what is allowed, in a sentence; None if it can be used."""
    if value.startswith("fivetran_encrypted:"):
        return f"{name} is still encrypted: run `fivetran debug`, which decrypts it, and not `python connector.py`."
    if re.fullmatch("<.*>", value):
        return f"{name} is a placeholder: replace it with a value of your own."
    if name == "base_url":
        return problem_with_url(value)
    if name == "api_key":
        fine = all("!" <= character <= "~" for character in value)
        return (
            None if fine else "api_key has a space, a line break or another character that no key has: copy it again."
        )
    lowest, highest, default = NUMBERS[name]
    if not value or (re.fullmatch("[0-9]{1,9}", value) and lowest <= int(value) <= highest):
        return None
    return f"{name} is {value[:40]!r}: it must be a whole number from {lowest} to {highest}, or '' for {default}."


def problem_with_url(url: str) -> str | None:
    if not url:
        return "base_url is missing: set it to the address of the API, such as https://api.example.com/users."
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the error quotes what may be a part of a password
        is_address = False
    if not url.isprintable() or " " in url:
        problem = "it must have no spaces or line breaks"
    elif re.search("//[^/]*@", url) or "@" in url.split("?")[0]:
        problem = "it must hold no user name or password: put the key of the API into api_key"
    elif not is_address:
        problem = "it must be an http or https address with a host, such as https://api.example.com/users"
    elif parts.fragment:
        problem = "it must have no fragment (the part from `#` on)"
    elif ours := {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} & PARAMETERS:
        problem = f"it must not set {', '.join(sorted(ours))}, which this connector does"
    else:
        return None
    # shown without what may be secret in it: a password, or the query
    return f"base_url is {re.sub('.*@', '***@', url).split('?')[0][:200]!r}: {problem}."


def warnings_about(configuration: dict, settings: Settings) -> list:
    """Return sentences about settings that can be used, but may not do what is meant."""
    warnings = []
    for name in configuration.keys() - set(SETTINGS):
        nearest = get_close_matches(name, SETTINGS, n=1)
        meant = f"Is {nearest[0]} meant?" if nearest else f"Those it knows are {', '.join(SETTINGS)}."
        warnings.append(f"The configuration has a setting {name!r}, which this connector does not know. {meant}")
    address = urlsplit(settings.base_url)
    if settings.api_key and address.scheme == "http" and not is_this_machine(address.hostname):
        warnings.append("api_key is sent unencrypted, as base_url begins with http: use https if the API offers it.")
    return warnings


def is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# How one page is asked for


class Cursor(NamedTuple):
    """A place in the list of users, which is sorted by `updatedAt`: a time, and how to write it to the API."""

    time: datetime
    text: str

    @classmethod
    def at(cls, time: datetime) -> "Cursor":
        """The place of a time of our own, in UTC, cut to the second: not every API reads fractions."""
        time = time.replace(microsecond=0)
        return cls(time, time.replace(tzinfo=None).isoformat() + "Z")


class Request(NamedTuple):
    """A page to ask for: of the users updated since a cursor (None: of all), from which offset."""

    since: Cursor | None
    offset: int


@dataclass(frozen=True)
class Page:
    """A page of the list."""

    rows: list = field(repr=False)  # for the table; never shown, as they are people's data
    total: int  # how many users match, not only those of this page
    last: Cursor | None  # where its last user stands
    remaining: int = 0  # how many users follow, as far as is known


class Api:
    """The API: asked for a page, and asked again where that may help. Several threads may ask at a time."""

    def __init__(self, settings: Settings, tries: int = TRIES):
        self.settings = settings
        self.limit = max(settings.page_size, 2)  # users to ask for (pages overlap by one); less once that is refused
        self.started = None  # a Cursor: what the API's clock said when the sync began
        self.retries = 0
        self.closed = Event()
        self._tries = tries
        self._has_given_pages = False
        self._resume_at = 0.0  # on the monotonic clock: when the API, which asked to wait, may be asked again
        self._careful_pages = 0  # how many pages are still to be asked for one at a time, since it did
        self._one_at_a_time = RLock()
        self._secrets = secrets_of(settings)
        self._session = requests.Session()
        self._session.auth = self._authorize
        connections = HTTPAdapter(pool_maxsize=settings.parallel_requests)
        self._session.mount("http://", connections)
        self._session.mount("https://", connections)
        self._backoff = tenacity.wait_exponential_jitter(max=60)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=self._wait,
            stop=tenacity.stop_after_attempt(tries)
            | tenacity.stop_before_delay(LONGEST_WAIT + 1),  # waits for LONGEST_WAIT itself
            sleep=tenacity.sleep_using_event(self.closed),
            before_sleep=self._announce_wait,
            retry_error_callback=self._give_up,
        )

    def close(self):
        """End every wait, and the connections."""
        self.closed.set()
        self._session.close()

    def fetch(self, request: Request) -> Page:
        """Ask for a page, as often as it may be tried.

        If the API refuses the page size before it has given any page, halve it and ask again.

        Raises `Refused` if the API does not take the request, and `SyncError` if there is no page to be had.
        """
        while True:
            try:
                with ExitStack() as turn:
                    page = self._retrying(self._try_once, request, turn)
            except Refused as refusal:
                if self._has_given_pages or "limit" not in str(refusal).lower():
                    raise
                if self.limit == 2:
                    raise SyncError(f"The API refuses every page size down to 2 users. {refusal}") from None
                self.limit = max(self.limit // 2, 2)
            else:
                if not self._has_given_pages and self.limit < self.settings.page_size:
                    log.info(f"The API refused pages of {self.settings.page_size} users: asking for {self.limit}.")
                self._has_given_pages = True
                return page

    def _try_once(self, request: Request, turn: ExitStack) -> Page:
        if self._careful_pages:
            # If all pages that wait asked again at once, the API might refuse all but one, and some page six times. So
            # one page at a time asks, and keeps its turn until it is there (each try enters again: an RLock).
            turn.enter_context(self._one_at_a_time)
        while (seconds := self._resume_at - monotonic()) > 0 and not self.closed.is_set():
            self.closed.wait(seconds)
        if self.closed.is_set():
            raise SyncError("The sync has ended.")
        try:
            page = self._send(request)
        except Unavailable as error:
            if error.retry_after is not None:  # that holds for every request
                self._resume_at = max(self._resume_at, monotonic() + error.retry_after)
                self._careful_pages = CAREFUL_PAGES
            raise
        self._careful_pages = max(self._careful_pages - 1, 0)
        return page

    def _send(self, request: Request) -> Page:
        parameters = {
            "updated_since": request.since and request.since.text,  # left out of the URL if it is None
            "order_by": UPDATED_AT,
            "order_type": "asc",
            "limit": self.limit,
            "offset": request.offset,
        }
        try:
            response = self._session.get(
                self.settings.base_url, params=parameters, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)
            )
        except RETRIED_ERRORS as error:
            raise Unavailable(in_words(error, self.settings.host)) from None
        except (requests.RequestException, ValueError) as error:  # such as a redirect to what is no address
            raise SyncError(f"The API cannot be asked: {type(error).__name__}. Check base_url.") from None
        if self.started is None:
            # no later than when the request was sent: the page may be older than its Date
            self.started = Cursor.at(server_time(response) - response.elapsed)
        try:
            check_status(response, request.offset, self._hide_secrets)
            return to_page(read_json(response), request)
        except SyncError as error:
            error.args = (self._hide_secrets(str(error)),)
            raise

    def _hide_secrets(self, text: str) -> str:
        """Return a text without the secrets that an answer it quotes may repeat."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key. Were it a header of the session, `requests` would replace it by what ~/.netrc has for the host.

        It takes the key off again where the API redirects to another host.
        """
        if self.settings.api_key:
            request.headers["Authorization"] = f"Bearer {self.settings.api_key}"
        return request

    def _wait(self, attempt: tenacity.RetryCallState) -> float:
        asked = error_of(attempt).retry_after
        return self._backoff(attempt) if asked is None else asked

    def _announce_wait(self, attempt: tenacity.RetryCallState):
        if self.closed.is_set():
            return
        self.retries += 1
        log.warning(
            f"No page at offset {attempt.args[0].offset}: {error_of(attempt)}. Waiting {attempt.upcoming_sleep:.1f} s "
            f"before try {attempt.attempt_number + 1} of {self._tries}."
        )

    def _give_up(self, attempt: tenacity.RetryCallState):
        message = f"The API gave no page at offset {attempt.args[0].offset}: {error_of(attempt)}."
        if self._tries > 1:
            message += (
                f" Tries: {attempt.attempt_number}, in {attempt.seconds_since_start:.0f} s. Nothing is lost: the next "
                "sync goes on from the last checkpoint."
            )
        raise SyncError(message)


def secrets_of(settings: Settings) -> list:
    """Return what must not be quoted from an answer, longest first: the key and the query, in all their forms."""
    parts = re.split("[&=]", urlsplit(settings.base_url).query)
    secrets = {settings.api_key} | {secret for part in parts for secret in (part, unquote_plus(part)) if len(part) > 7}
    forms = {form for secret in secrets for form in (secret, quote_plus(secret), quote(secret, safe=""))}
    forms |= {form.replace("/", "\\/") for form in forms}  # as some write JSON
    return sorted((form for form in forms if len(form) > 3), key=len, reverse=True)


def error_of(attempt: tenacity.RetryCallState) -> Unavailable:
    return attempt.outcome.exception()


def in_words(error: requests.RequestException, host: str) -> str:
    """Say why no answer came, and what to do. The error itself says too much: it may quote a URL, or people's data."""
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    detail = getattr(cause, "strerror", None) or type(cause).__name__
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection to {host} within {CONNECT_TIMEOUT} s (check base_url, and that a firewall lets it pass)"
    if isinstance(error, requests.Timeout) or isinstance(cause, TimeoutError):
        return f"no answer from {host} within {READ_TIMEOUT} s (try a smaller page_size)"
    if isinstance(error, requests.exceptions.SSLError):
        detail = getattr(cause, "verify_message", detail)
        return f"no secure connection to {host} (TLS: {detail}; check its certificate, and base_url)"
    if isinstance(cause, socket.gaierror):
        return f"the name {host} is not found (check base_url)"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {host} ({detail}; check base_url, and that the API is up)"
    return f"the answer of {host} broke off ({detail})"


def check_status(response: requests.Response, offset: int, hide: Callable[[str], str]):
    """Return if the status is a success. Raises `Unavailable`, `Refused` or `SyncError` if it is not.

    `hide` removes secrets from the part of the body that is quoted.
    """
    status = f"HTTP {response.status_code} {response.reason or ''}".strip()
    if response.status_code in RETRIED_STATUSES:
        seconds = retry_after(response)
        if seconds is not None and seconds > LONGEST_WAIT:
            raise SyncError(
                f"The API answered {status} at offset {offset} and asks to wait {seconds:.0f} s, longer than the "
                f"{LONGEST_WAIT} s a sync waits. Sync again after that, or less often."
            )
        raise Unavailable(status, seconds)
    if response.status_code in (401, 403):
        moved = " It was redirected: if to another host, set base_url to that, as only its host is given the key."
        raise SyncError(f"The API answered {status}: check api_key.{moved if response.history else ''}")
    if response.status_code == 404:
        raise SyncError(f"The API answered {status}: check base_url.")
    if not 200 <= response.status_code < 300:
        kind = Refused if response.status_code in (400, 422) else SyncError
        body = hide(response.content[:4000].decode("utf-8", "replace"))[:200]  # hidden before it is cut in two
        raise kind(f"The API answered {status} at offset {offset}: {body}")


def read_json(response: requests.Response) -> object:
    """Return the body of an answer. Raises `Unavailable` if it is no JSON: it may have been cut, or be a login page."""
    body = response.content
    try:
        answer = json.loads(body)  # not response.json(), which takes text/* for Latin-1
        if rb"\ud" in body.lower():  # half an emoji (a lone surrogate) cannot be encoded as UTF-8: make it a `?`
            answer = json.loads(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
        return answer
    except (ValueError, RecursionError):
        kind = response.headers.get("Content-Type", "of no stated type")
        raise Unavailable(
            f"HTTP {response.status_code} with a body that is not JSON ({kind}, {len(body)} bytes; is base_url "
            "the API, and not a page for people such as a login?)"
        ) from None


def retry_after(response: requests.Response) -> float | None:
    """Return how many seconds the `Retry-After` header asks to wait (RFC 9110, 10.2.3), None if it does not say."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", value):
        return float(value)
    until = http_date(value)
    return None if until is None else max(0.0, (until - server_time(response)).total_seconds())


def server_time(response: requests.Response) -> datetime:
    """Return the API's own time, from the `Date` header, or the local one if there is none."""
    return http_date(response.headers.get("Date", "")) or datetime.now(timezone.utc)


def http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).replace(tzinfo=timezone.utc)  # it is always GMT (RFC 9110, 5.6.7)
    except (ValueError, OverflowError):
        return None


def to_page(answer: object, request: Request) -> Page:
    """Check an answer of the API and turn it into a `Page`. Raises `SyncError` if it is not as the README says."""
    if not isinstance(answer, dict):
        raise unreadable(request, "a JSON object", kind_of(answer))
    data, total, offset = answer.get("data"), answer.get("total"), answer.get("offset", request.offset)
    if not isinstance(data, list):
        raise unreadable(request, "`data` to be a list of users", kind_of(data))
    if type(total) is not int or total < 0:
        raise unreadable(request, "`total` to be a whole number, 0 or more", shown(total))
    if offset != request.offset:
        raise unreadable(request, f"`offset` to be {request.offset}, as asked for", shown(offset))
    if request.offset == 0 and total < len(data):
        raise unreadable(request, f"`total` to be at least {len(data)}, the users of its first page", shown(total))
    rows = []
    for user in data:
        row = to_row(user, request)
        if rows and row[UPDATED_AT] < rows[-1][UPDATED_AT]:
            raise SyncError(
                f"The users at offset {request.offset} are out of order: `{UPDATED_AT}` of user {row[ID]} is earlier "
                f"than that of user {rows[-1][ID]} before. The API must sort by order_by={UPDATED_AT} and "
                "order_type=asc, or what changed cannot be told."
            )
        rows.append(row)
    return Page(rows, total, Cursor(rows[-1][UPDATED_AT], data[-1][UPDATED_AT]) if rows else None)


def to_row(user: object, request: Request) -> dict:
    """Turn a user of the API into a row of the table: its times as `datetime`s, and JSON text in STRING columns.

    A column that `schema()` does not name is left as it is: the SDK finds its type. It would store a dict or list in
    a STRING column as Python writes it, though, which no warehouse can read. Raises `SyncError` for a user with no
    usable id or times.
    """
    if not isinstance(user, dict):
        raise unreadable(request, "each user to be a JSON object", kind_of(user))
    row = dict(user)
    if type(row.get(ID)) not in (str, int):
        raise unreadable(request, f"`{ID}` of each user to be a string or a whole number", shown(row.get(ID)))
    for name in TIME_COLUMNS:
        if row.get(name) is not None or name == UPDATED_AT:
            try:
                row[name] = parse_time(row.get(name))
            except (TypeError, ValueError, OverflowError):
                raise unreadable(
                    request, f"`{name}` of user {row[ID]} to be an ISO 8601 time", shown(row.get(name))
                ) from None
    for name in STRING_COLUMNS:
        if not isinstance(row.get(name), str | None):
            row[name] = json.dumps(row[name], ensure_ascii=False)
    return row


def unreadable(request: Request, expected: str, came: str) -> SyncError:
    """Return the error for an answer that is not what the README asks for."""
    return SyncError(
        f"The API's answer at offset {request.offset} cannot be read: expected {expected}, but got {came}. "
        "The README lists what the API must offer."
    )


def shown(value: object) -> str:
    """Show a number, a time or what came in its place in an error, if it is short; or else say only what it is."""
    if isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 40):
        return repr(value)
    return kind_of(value)


def kind_of(value: object) -> str:
    """Say what a value is, and nothing of what it holds: that may be people's data."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, bool):
        return "true or false"
    return "nothing" if value is None else "a number"


ISO_8601 = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)? ?(?:Z|([+-]\d\d)(?::?(\d\d))?)?)?",
    re.ASCII | re.IGNORECASE,
)


def parse_time(text: str) -> datetime:
    """Read an ISO 8601 date and time as UTC, kept to the microsecond. Without a zone it is taken as UTC.

    `datetime.fromisoformat` alone would not do: up to Python 3.10 it reads few of the forms APIs use, and since then
    it also reads long numbers as times. Raises `ValueError` if `text` is no calendar date, with or without a time,
    `TypeError` if it is no text, and `OverflowError` if it is no year from 1 to 9999 in UTC.
    """
    match = ISO_8601.fullmatch(text)
    if not match:
        raise ValueError(f"not an ISO 8601 time: {text!r}")
    year, month, day, hour, minute, second, fraction, zone, zone_minute = match.groups(default="00")
    time = datetime.fromisoformat(
        f"{year}-{month}-{day}T{hour}:{minute}:{second}.{fraction[:6]:0<6}{zone:+>3}:{zone_minute}"
    )
    return time.astimezone(timezone.utc)


# How pages are asked for ahead


class ReadAhead:
    """Asks for pages before they are needed, `parallel_requests` at a time."""

    def __init__(self, api: Api):
        self.waited = 0.0  # seconds in which the sync had nothing to do but wait for a page
        self._api = api
        self._slots = Semaphore(api.settings.parallel_requests)
        self._in_flight = {}  # the future of each page asked for, the next one first

    def expect(self, coming: Iterable[Request]):
        """Ask for the pages that are coming, as many as may be in flight, and for no others any more."""
        wanted = list(islice(coming, self._api.settings.parallel_requests))
        for request, future in self._in_flight.items():
            if request not in wanted:
                future.cancel()
        self._in_flight = {request: self._in_flight.get(request) or self._ask(request) for request in wanted}

    def has_next(self) -> bool:
        """Return whether the next page is there already."""
        future = next(iter(self._in_flight.values()), None)
        return future is not None and future.done()

    def get(self, request: Request) -> Page:
        """Wait for a page. Raises what `Api.fetch` does."""
        future = self._in_flight.pop(request, None) or self._ask(request)
        began = monotonic()
        try:
            return future.result()
        finally:
            self.waited += monotonic() - began

    def _ask(self, request: Request) -> Future:
        return in_background(f"page at offset {request.offset}", partial(self._api.fetch, request), self._slots)


def in_background(name: str, work: Callable[[], object], slots: Semaphore | None = None) -> Future:
    """Call a function in a thread, once there is a slot for it. Returns the future of its result.

    The thread is a daemon: one that is left in a stalled answer does not keep a sync that failed from ending.
    """
    future = Future()

    def run():
        with slots or nullcontext():
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future


# How pages become an unbroken list


class Window(NamedTuple):
    """Where reading stands in a window: the pages of one `updated_since`, at growing offsets."""

    since: Cursor | None
    offset: int = 0  # of the next page
    seam: tuple | None = None  # the last user so far, which the next page must begin with
    last: Cursor | None = None  # where that user stands
    total: int = 0  # users in the window, as its first page says; before that, as the window before lets expect


class Paging:
    """Reads the list of users without a gap, though it changes: one that is updated moves to the end of the list."""

    def __init__(self, api: Api, cursor: Cursor | None):
        """Read from a cursor on, or everything if that is None."""
        self.ahead = ReadAhead(api)
        self._api = api
        self._lookback = api.settings.lookback_seconds
        self._window = Window(earlier(cursor, self._lookback) if cursor and self._lookback else cursor)
        self._window_rows = WINDOW_ROWS
        self._page_rows = api.limit  # users on a full page: some APIs give fewer than asked
        self._seen = None  # what came since a window was first read again; None if it was not
        self._rereads = 0  # how often it was, since anything new came
        self.windows = 1
        self.moved = 0  # how often a seam was broken

    def pages(self) -> Iterator[Page]:
        """Yield pages with all users. Raises `SyncError` if the API does not let them be read without a gap.

        While a page is written, those after it arrive. Up to `parallel_requests` of them are checked before they are
        yielded, so that the next window is asked for before this one is written.
        """
        ready = deque()
        most_ready = self._api.settings.parallel_requests
        try:
            for page in self._unbroken():
                ready.append(page)
                while ready and (len(ready) == most_ready or not self.ahead.has_next()):
                    yield ready.popleft()
        except SyncError:
            yield from ready
            raise
        yield from ready

    def _unbroken(self) -> Iterator[Page]:
        while self._window:
            window = self._window
            try:
                page = self.ahead.get(Request(window.since, window.offset))
            except Refused as refusal:
                self._window = self._after_refusal(refusal)
                self.ahead.expect(self._requests_to_come())
                continue
            # The seam: each page overlaps the one before by a user. Users only ever leave from in front of it, for the
            # end of the list, and never join there. So if that user is where it was, nothing in front of it has moved
            # between the two requests, whichever the API answered first, and the rest of the page is new.
            if window.seam and (not page.rows or version(page.rows[0]) != window.seam):
                self._window = self._after_broken_seam(page)
                self.ahead.expect(self._requests_to_come())
                continue
            new = page.rows[1:] if window.seam else page.rows
            self._window = self._after(page) if new else self._after_nothing_new(page)
            self.ahead.expect(self._requests_to_come())
            # less one for the user of the seam, who is counted on both sides
            remaining = max(self._window.total - self._window.offset - 1, 0) if self._window else 0
            yield replace(page, rows=new, remaining=remaining)

    def _requests_to_come(self) -> Iterator[Request]:
        """Yield the requests for the pages that must follow, as far as the total of the window tells."""
        window = self._window
        if window:
            yield Request(window.since, window.offset)
            step = max(self._full_page() - 1, 1)  # the last user of a page is the first of the next
            end = min(window.total - 1, self._window_rows - self._api.limit + 1)
            for offset in range(window.offset + step, end, step):
                yield Request(window.since, offset)

    def _after(self, page: Page) -> Window | None:
        """Return where to read on after a page, None at the end of the list."""
        window = self._window
        if self._seen is not None and not self._seen.issuperset(map(version, page.rows)):
            self._seen.update(map(version, page.rows))
            self._rereads = 0
        read = window.offset + len(page.rows)  # users of the window, up to here
        total = window.total if window.offset else page.total
        is_full = len(page.rows) >= self._full_page()
        is_deep = read - 1 + self._api.limit > self._window_rows  # the next page would reach beyond the window
        if read < total:
            self._page_rows = len(page.rows)
        elif not (is_full and (is_deep or page.last.time < self._api.started.time)):
            return None  # otherwise it may be a total that the API caps, and no end
        onward = Window(window.since, read - 1, version(page.rows[-1]), page.last, total)
        if is_deep and (following := self._next_window(onward)):
            return following
        return onward

    def _after_nothing_new(self, page: Page) -> Window | None:
        """Return where to read on after a page with nothing new: None, unless the API says that there is more."""
        read = self._window.offset + len(page.rows)
        if page.total <= read:
            return None
        following = self._next_window(self._window) if read else None
        if following is None:
            if read <= 1:
                raise too_few_users(page.total, read, self._api.limit)
            op.warning(f"The API says {page.total} users match, but its list ends after {read}. The sync ends there.")
        return following

    def _after_broken_seam(self, page: Page) -> Window | None:
        """Return where to read on after the list moved: from the last user on, or the same window again."""
        window = self._window
        self.moved += 1
        if window.last.time >= self._api.started.time:
            return None  # what is left changed after the sync began: the next one reads it
        following = self._next_window(window)
        if following:
            return following
        self._seen = self._seen or set()
        self._rereads += 1
        if self._rereads > MOST_REREADS:
            ties = sum(time == window.last.time for _, time in self._seen)
            raise SyncError(
                f"The list cannot be paged: read again {MOST_REREADS} times, it brought nothing new. The page at "
                f"offset {window.offset} should begin with user {window.seam[0]}, the last of the page before, but "
                f"begins with {f'user {page.rows[0][ID]}' if page.rows else 'nothing'}. "
                f"At least {ties} users share {UPDATED_AT} {window.last.text}; the API must give users with one "
                "time in an order that stays, such as by id, and must heed offset. Where neither can be had, set "
                "page_size above the number of users that share a time."
            )
        return Window(window.since, total=window.total)

    def _after_refusal(self, refusal: Refused) -> Window:
        """Return where to read on after the API refused an offset. It is the depth of all windows from now on."""
        window = self._window
        if window.offset == 0:
            raise refusal
        self._window_rows = window.offset
        following = self._next_window(window)
        if following is None:
            raise SyncError(
                f"More users share {UPDATED_AT} {window.last.text} than the API lets be paged through: it refuses "
                f"offset {window.offset}. Set page_size to more than that, or have the API take larger offsets. "
                f"{refusal}"
            )
        return following

    def _next_window(self, window: Window) -> Window | None:
        """Return the window from the last user on, None if that is no later.

        With a lookback it begins a second before: the filter may be exclusive, and leave that user out.
        """
        since = earlier(window.last, 1) if self._lookback else window.last
        if window.since and since.time <= window.since.time:
            return None
        self._seen, self._rereads = None, 0
        self.windows += 1
        return Window(since, total=window.total - window.offset)

    def _full_page(self) -> int:
        return min(self._page_rows, self._api.limit)


def too_few_users(total: int, users: int, limit: int) -> SyncError:
    """Return the error for pages that cannot overlap."""
    return SyncError(
        f"The API says that {total} users match, but returns only {users} for limit={limit}. It must return at least 2 "
        "users per page."
    )


def version(row: dict) -> tuple:
    """What tells a user in its present version from all others."""
    return row[ID], row[UPDATED_AT]


def earlier(cursor: Cursor, seconds: int) -> Cursor:
    """Return the cursor some seconds earlier, but not before the first year."""
    year_one = datetime.min.replace(tzinfo=timezone.utc)
    return Cursor.at(cursor.time - min(timedelta(seconds=seconds), cursor.time - year_one))


# What the table is


def schema(configuration: dict):
    """Declare the table: its key, and the columns whose type must not depend on what comes first."""
    return [{"table": TABLE, "primary_key": [ID], "columns": COLUMNS}]


# What a sync does


def update(configuration: dict, state: dict):
    """Upsert every user updated since the last sync, and checkpoint after every page how far it came.

    Raises `SyncError` if something is wrong that only a person can fix. The state is then that of the last page.
    """
    try:
        sync(configuration, state)
    except SyncError as error:
        # raised anew: it says what is wrong, to which its traceback would only add people's data in a crash report
        raise SyncError(str(error)) from None


def sync(configuration: dict, state: dict):
    settings = read_settings(configuration)
    cursor = read_state(state)
    for warning in warnings_about(configuration, settings):
        op.warning(warning)
    api = Api(settings)
    paging = Paging(api, cursor)
    progress = Progress(api, paging, cursor)
    try:
        for page in paging.pages():
            upsert(page)
            cursor = reached(cursor, page.last, api.started)
            if cursor:
                op.checkpoint({"last_updated_at": cursor.text})
            progress.report(page)
    finally:
        api.close()
    progress.summarize()


def read_state(state: dict) -> Cursor | None:
    """Return where the last sync stopped, None before the first. Raises `SyncError` if that cannot be read."""
    if not state:
        return None
    text = state.get("last_updated_at")
    try:
        return Cursor(parse_time(text), text)
    except (TypeError, ValueError, OverflowError):
        raise SyncError(
            f"The state's last_updated_at should be an ISO 8601 time, as this connector writes it, but is "
            f"{shown(text)}. Put it right, or empty the state to sync everything again."
        ) from None


def upsert(page: Page):
    """Upsert the users of a page. Its own function, to keep them from what a crash report shows of `sync`."""
    for row in page.rows:
        op.upsert(TABLE, row)


def reached(cursor: Cursor | None, last: Cursor | None, started: Cursor) -> Cursor | None:
    """Return the cursor to checkpoint after a page: where its last user stands, but never past the start of the sync.

    A user that is updated during the sync may tie with users being read, and slip in front of a seam. Its time is not
    before the start, so the next sync reads it. Nor does the cursor ever go back, to where a lookback began.
    """
    if last is None:
        return cursor
    safe = min(last, started, key=lambda place: place.time)
    return safe if cursor is None or safe.time > cursor.time else cursor


class Progress:
    """Says at info level what a sync does: at its start, about every ten seconds, and at its end."""

    def __init__(self, api: Api, paging: Paging, cursor: Cursor | None):
        self._api = api
        self._paging = paging
        self._users = self._pages = 0
        self._began = self._last_report = monotonic()
        what = f"the users updated since {cursor.text}" if cursor else "all users"
        if cursor and api.settings.lookback_seconds:
            what += f", less {api.settings.lookback_seconds} s"
        log.info(f"Reading {what} from {api.settings.host}.")

    def report(self, page: Page):
        """Count a page that was written, and say how far the sync is if it was last said ten seconds ago."""
        self._users += len(page.rows)
        self._pages += 1
        now = monotonic()
        if page.remaining and now - self._last_report >= PROGRESS_SECONDS:
            self._last_report = now
            total = self._users + page.remaining
            log.info(
                f"{self._users:,} of {total:,} users ({self._users * 100 // total} %), updated up to {page.last.text}, "
                f"about {duration((now - self._began) * page.remaining / self._users)} left."
            )

    def summarize(self):
        """Say what was done."""
        took, waited = duration(monotonic() - self._began), duration(self._paging.ahead.waited)
        log.info(
            f"Done in {took}, of which {waited} waiting for the API. Upserts: {self._users:,}, pages: {self._pages:,}, "
            f"windows: {self._paging.windows:,}, retries: {self._api.retries:,}."
        )
        if self._paging.moved:
            log.info(
                f"Pages moved {self._paging.moved} times while they were read. They were read again, and nothing was "
                "lost."
            )


def duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


# How it is set up


FORM = {  # of each setting: its label, and what to say of it
    "base_url": ("Address of the API", "The address that lists the users, without the parameters this connector adds."),
    "api_key": ("API key", "Sent as `Authorization: Bearer`. Leave it empty if the API needs none."),
    "page_size": ("Users per page", "More make fewer requests. A size that the API refuses is halved until it fits."),
    "parallel_requests": (
        "Requests at a time",
        "More help where the API answers slowly, if its rate limit allows them.",
    ),
    "lookback_seconds": (
        "Seconds to look back",
        "Reads that much before the last sync again: for APIs that show changes late. Set it to 1 if `updated_since` "
        "leaves out users updated at that very second.",
    ),
}


def configuration_form():
    """Return the setup form, which Fivetran shows and `fivetran configuration` asks in the terminal."""
    form = ConfigurationForm()
    for name, (label, description) in FORM.items():
        kind = form_field.TextField.password if name == "api_key" else form_field.TextField.plain_text
        placeholder = "https://api.example.com/users" if name == "base_url" else None
        if name in NUMBERS:
            lowest, highest, default = NUMBERS[name]
            description += f" From {lowest:,} to {highest:,}; empty for {default}."
            placeholder = str(default)
        required = name == "base_url"
        form.add_field(
            form_field.TextField(name, label, kind, description=description, required=required, placeholder=placeholder)
        )
    form.add_test(label="Read a page of users", func=connection_test)
    return form


def connection_test(configuration: dict):
    """Return whether a first sync would work, or in a sentence why not. Takes `TEST_SECONDS` at most."""
    check = in_background("connection test", lambda: check_api(read_settings(configuration)))
    wait([check], timeout=TEST_SECONDS)
    if not check.done():
        return Test.failure(f"The API did not answer within {TEST_SECONDS} s. Check base_url, and that the API is up.")
    error = check.exception()
    if error is None:
        return Test.success()
    return Test.failure(str(error) if isinstance(error, SyncError) else f"The test itself failed: {error!r}")


def check_api(settings: Settings):
    """Ask the API for a page, the next, and what changed since. Raises `SyncError` if a sync could not work."""
    api = Api(settings, tries=1)
    try:
        page = api.fetch(Request(None, 0))  # of the size that a sync would ask for
        if len(page.rows) < min(page.total, 2):
            raise too_few_users(page.total, len(page.rows), api.limit)
        api.limit = min(api.limit, TEST_PAGE_SIZE)
        if page.rows:
            second = api.fetch(Request(None, len(page.rows) - 1))
            first_again, *more = map(version, second.rows or page.rows[-1:])
            if page.total > len(page.rows) and first_again == version(page.rows[0]):
                raise SyncError("The API returns the same page at every offset: it must heed the parameter `offset`.")
            if page.total <= len(page.rows) and first_again == version(page.rows[-1]) and more:
                raise SyncError(
                    f"The API says that {page.total} users match, but has more: `total` must count all that match, and "
                    "not only those of a page."
                )
        if page.last:
            since = api.fetch(Request(page.last, 0)).rows
            if since and since[0][UPDATED_AT] <= page.last.time - timedelta(seconds=1):
                raise SyncError(
                    "The API returns users updated before updated_since: it must leave them out, or every sync would "
                    "read all users."
                )
            if not settings.lookback_seconds and (not since or since[0][UPDATED_AT] > page.last.time):
                raise SyncError(
                    "The API leaves out users updated at the very time of updated_since, some of which would be lost: "
                    "set lookback_seconds to 1."
                )
    finally:
        api.close()


connector = Connector(update=update, schema=schema, configuration_form=configuration_form)

# How to run one on a laptop: `python connector.py` goes on from files/state.json, as `fivetran debug` does


def load(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' Notepad may have written it
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
