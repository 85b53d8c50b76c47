"""An API in memory, behind `responses`: it filters, sorts and slices its users as the README asks of an API.

Tests say what is special about it with attributes (`api.page_cap = 50`), and what happens between two requests with
`api.before`, a list of functions of which each request takes and calls the first. What the API calls its fields, and
what its answers look like, stands here and nowhere else in the tests.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from hashlib import blake2b
from threading import Lock
from urllib.parse import parse_qsl, urlsplit

import requests
import responses

from sdk import connector

URL = "https://api.example.com/users"
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
ID, UPDATED_AT, CREATED_AT, ROWS = "id", "updatedAt", "createdAt", "data"
LEFT_OUT = object()


# How the connector reads it: what the section "The API" of connector.py says of another one


def table(**changes) -> connector.Table:
    """The table of the users, or one that differs from it; `columns` are added to those it has."""
    fields = {
        "name": "user",
        "primary_key": [ID],
        "updated_at": UPDATED_AT,
    }
    columns = dict.fromkeys((ID, "name", "email", "job"), "STRING")
    columns |= dict.fromkeys((CREATED_AT, UPDATED_AT), "UTC_DATETIME")
    return connector.Table(**fields | changes | {"columns": columns | changes.get("columns", {})})


TABLE = table()


def http_request(table: connector.Table, url: str, key: str, page) -> requests.Request:
    parameters = {
        "updated_since": page.since.text or None,
        "order_by": table.updated_at,
        "order_type": "asc",
        "limit": page.limit,
        "offset": page.offset,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.Request("GET", url, headers=headers, params=parameters)


def rows_of(body) -> list:
    return body[ROWS]


def total_of(body, headers) -> int:
    return body["total"]


def envelope(rows: list, total: int, offset: int = 0, limit: int = 100) -> dict:
    """What the API answers."""
    return {ROWS: rows, "offset": offset, "limit": limit, "total": total}


def timestamp(time: datetime) -> str:
    """A time as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def instant(text: str) -> datetime:
    """The time that the API has written, or was asked for."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def names(users: dict) -> dict:
    """The names of users or rows by id: they show in which version one is."""
    return {id: user["name"] for id, user in users.items()}


def always(answer) -> dict:
    """One answer to every request, for `MemoryApi.answers`."""
    return dict.fromkeys(range(1, 1000), answer)


class MemoryApi:
    def __init__(self):
        self.users = {}  # by id, in the order they were made
        self.now = EPOCH + timedelta(days=30)  # what its clock says; every request takes a second
        self.before = []  # what happens before the next requests: functions that may answer
        self.answers = {}  # instead of a page: what to answer to the n-th request, counted from 1
        self.lists = {}  # other lists of the API, by their path behind `URL`
        self.requests = []  # the parameters of every request
        self.keys = []  # its Authorization header
        self.limit_max = None  # answers HTTP 400 to a larger limit
        self.offset_max = None  # answers HTTP 400 to a larger offset
        self.depth = None  # returns no users behind that many
        self.page_cap = None  # quietly returns no more users than that
        self.page_lengths = None  # a function that says how many users the next page may have
        self.total = lambda total, rows: total  # how it says its total, on a page of those rows
        self.total_cap = None  # never says a larger total
        self.total_excess = 0  # says a total that is that much too large
        self.hidden = set()  # ids of users that are left out of a page after it has been cut
        self.exclusive = False  # whether updated_since leaves out users updated at that very time
        self.compares_texts = False  # whether it compares updated_since with updatedAt as texts
        self.cut = str  # what it makes of the text of updated_since before it compares
        self.counts_all = False  # whether its total counts all users, whatever updated_since is
        self.tie_order = None  # a function that sorts users with one updatedAt; None: the order they were made in
        self.stamp = timestamp  # how it writes the time of a change
        self.lag = None  # a function that says how many seconds old the next page may be
        self.skew = timedelta(0)  # how far its `Date` is ahead of the clock that stamps its users
        self.seconds_per_request = 1
        self._late = []  # changes that are not visible yet: from when on they are, and the user
        self._added = 0
        self._sorted = None  # its users, until one changes
        self._states = []  # what it could have shown, if it lags: since when, and the users
        self._lock = Lock()

    # What its users are

    def add(
        self, count: int = 1, updated_at: datetime | None = None, late: int = 0, **fields
    ) -> list:
        """Add users: a second apart from `EPOCH` on, or all updated at one time. Returns their ids.

        They become visible some seconds `late`.
        """
        ids = []
        for _ in range(count):
            self._added += 1
            number = self._added
            time = updated_at or EPOCH + timedelta(seconds=number)
            user = {
                ID: str(number),
                "name": f"User {number}",
                "email": f"{number}@example.com",
                "job": "Job",
                CREATED_AT: timestamp(EPOCH),
                UPDATED_AT: self.stamp(time),
            }
            user |= fields
            self._write(user, late)
            ids.append(user[ID])
        return ids

    def touch(self, *ids: str, late: int = 0) -> None:
        """Change users now, which moves them to the end of the list; visible some seconds `late`."""
        for id in ids:
            user = self.users[id]
            self._write(
                user | {"name": f"{user['name']}'", UPDATED_AT: self.stamp(self.now)}, late
            )

    def delete(self, *ids: str) -> None:
        for id in ids:
            del self.users[id]
        self._sorted = None
        self._remember(self.now)

    def updated_at(self, id: str) -> str:
        return self.users[id][UPDATED_AT]

    def _write(self, user: dict, late: int):
        if late:
            self._late.append((self.now + timedelta(seconds=late), user))
        else:
            self.users[user[ID]] = user
            self._sorted = None
            self._remember(self.now)

    def commit(self):
        """Make the late changes visible whose time has come."""
        shown = [late for late in self._late if late[0] <= self.now]
        for due, user in sorted(shown, key=lambda late: late[0]):
            self._late.remove((due, user))
            before = self.users.get(user[ID])
            if before is None or instant(before[UPDATED_AT]) <= instant(user[UPDATED_AT]):
                self.users[user[ID]] = user
                self._sorted = None
                self._remember(due)

    # What it answers

    def sorted_users(self) -> list:
        if self._sorted is None or self.tie_order:
            self._sorted = self._sort(self.users)
        return self._sorted

    def _sort(self, users: dict) -> list:
        users = users.values()
        users = sorted(users, key=self.tie_order) if self.tie_order else users
        return sorted(users, key=lambda user: instant(user[UPDATED_AT]))

    def _remember(self, time: datetime):
        """Keep what a page that lags may show later."""
        if self.lag and self.requests:  # what was before the first one has always been
            time = max(time, self._states[-1][0]) if self._states else time
            self._states.append((time, dict(self.users)))

    def _shown_users(self) -> list:
        """The users of the latest state that is as old as the next page lags."""
        if not (seconds := self.lag and self.lag()):
            return self.sorted_users()
        time = self.now - timedelta(seconds=seconds)
        states = [users for since, users in self._states if since <= time]
        return self._sort(states[-1] if states else self._states[0][1])

    def matching(self, users: list, parameters: dict) -> list:
        """Those of sorted users that were updated since the time that is asked for."""
        if not (since := parameters.get("updated_since")):
            return users
        read = str if self.compares_texts else instant
        since = read(self.cut(since))
        find = bisect_right if self.exclusive else bisect_left
        return users[find(users, since, key=lambda user: read(user[UPDATED_AT])) :]

    def page(self, parameters: dict) -> dict:
        all_users = self._shown_users()
        users = self.matching(all_users, parameters)
        offset, limit = int(parameters["offset"]), int(parameters["limit"])
        length = min(
            limit, self.page_cap or limit, self.page_lengths() if self.page_lengths else limit
        )
        rows = users[: self.depth or len(users)][offset : offset + length]
        rows = [user for user in rows if user[ID] not in self.hidden]
        total = len(all_users if self.counts_all else users) + self.total_excess
        total = self.total(min(total, self.total_cap or total), rows)
        answer = envelope(rows, total, offset, limit)
        return {name: value for name, value in answer.items() if value is not LEFT_OUT}

    def answer(self, request) -> tuple:
        """Answer a request: the status, the headers and the body. What `responses` calls."""
        with self._lock:
            parameters = dict(parse_qsl(urlsplit(request.url).query))
            if body := getattr(request, "body", None):
                parameters |= json.loads(body)
            self.requests.append(parameters)
            assert len(self.requests) < 5000, "this sync never ends"
            self.keys.append(request.headers.get("Authorization"))
            if not self._states:
                self._remember(self.now)
            self.now += timedelta(seconds=self.seconds_per_request)
            happens = self.before.pop(0) if self.before else None
            fault = happens() if happens else None
            self.commit()
            answer = fault or self.answers.get(len(self.requests))
            if answer is None:
                answer = self.refusal(parameters) or self.page(parameters)
            if callable(answer):
                answer = answer(self.page(parameters))
            headers = {
                "Date": format_datetime(self.now + self.skew, usegmt=True),
                "Content-Type": "application/json",
            }
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, tuple):
                status, more_headers, body = answer
                return status, headers | more_headers, body
            return 200, headers, json.dumps(answer)

    def refusal(self, parameters: dict) -> tuple | None:
        for name, most in {"limit": self.limit_max, "offset": self.offset_max}.items():
            if most is not None and int(parameters[name]) > most:
                problem = f"Invalid value for '{name}'. It should be at most {most}."
                return 400, {}, json.dumps({"error": problem})
        return None

    @contextmanager
    def served(self) -> Iterator["MemoryApi"]:
        """Answer what is asked of `URL` in this process."""

        def answer(request):
            path = urlsplit(request.url).path.rpartition("/")[2]
            return self.lists.get(path, self).answer(request)

        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            for method in (responses.GET, responses.POST):
                mock.add_callback(method, re.compile(re.escape(URL)), callback=answer)
            yield self


# Ways to say a total, for `MemoryApi.total`
TOTALS = {
    "left out": lambda total, rows: LEFT_OUT,
    "null": lambda total, rows: None,
    "negative": lambda total, rows: -1,
    "text": lambda total, rows: f"{total:,}" if total > 999 else f"{total} rows",
    "the page's own count": lambda total, rows: len(rows),
}


def order_by_page_end(api: MemoryApi):
    """A way to sort ties, for `MemoryApi.tie_order`: in an order that changes with offset + limit.

    PostgreSQL sorts `order by updated_at limit 100 offset 99` so, without a second column.
    """

    def place(user: dict) -> int:
        end = int(api.requests[-1]["offset"]) + int(api.requests[-1]["limit"])
        return int.from_bytes(blake2b(f"{user[ID]} {end}".encode(), digest_size=8).digest())

    return place


def cut_to_day(since: str) -> str:
    """A way to read `updated_since`, for `MemoryApi.cut`."""
    return f"{since[:10]}T00:00:00Z"


def cut_to_minute(since: str) -> str:
    return f"{since[:16]}:00Z"


def whole_minutes(time: datetime) -> str:
    """A way to write times, for `MemoryApi.stamp`."""
    return timestamp(time.replace(second=0))
