"""An API in memory, behind `responses`: it filters, sorts and slices its users as the README asks of an API.

Tests say what is special about it with attributes (`api.page_cap = 50`), and what happens between two requests with
`api.before`, a list of functions of which each request takes and calls the first.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from threading import Lock
from urllib.parse import parse_qsl, urlsplit

import responses

URL = "https://api.example.com/users"
EPOCH = datetime(2024, 1, 1, tzinfo=timezone.utc)


def timestamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


class MemoryApi:
    def __init__(self):
        self.users = {}  # by id, in the order they were made
        self.now = EPOCH + timedelta(days=30)  # what its clock says; every request takes a second
        self.before = []  # what happens before the next requests, one function each, which may return an answer
        self.answers = {}  # instead of a page: what to answer to the n-th request, counted from 1
        self.at_offset = {}  # the same, for pages at an offset
        self.requests = []  # the parameters of every request
        self.keys = []  # its Authorization header
        self.limit_max = None  # answers HTTP 400 to a larger limit
        self.offset_max = None  # answers HTTP 400 to a larger offset
        self.page_cap = None  # quietly returns no more users than that
        self.total_cap = None  # never says a larger total
        self.exclusive = False  # whether updated_since leaves out users updated at that very time
        self.tie_order = None  # a function that sorts users with one updatedAt; None: the order they were made in
        self.seconds_per_request = 1
        self._added = 0
        self._lock = Lock()

    # What its users are

    def add(self, count: int = 1, updated_at: datetime | None = None, **fields) -> list:
        """Add users: a second apart before the API's `now`, or all updated at one time. Returns their ids."""
        ids = []
        for _ in range(count):
            self._added += 1
            number = self._added
            time = updated_at or EPOCH + timedelta(seconds=number)
            user = {
                "id": str(number),
                "name": f"User {number}",
                "email": f"{number}@example.com",
                "address": "1 Road",
                "company": "Company",
                "job": "Job",
                "createdAt": timestamp(EPOCH),
                "updatedAt": timestamp(time),
            }
            user |= fields
            self.users[user["id"]] = user
            ids.append(user["id"])
        return ids

    def touch(self, *ids: str) -> None:
        """Change users now, which moves them to the end of the list."""
        for id in ids:
            self.users[id] = self.users[id] | {"name": f"{self.users[id]['name']}'", "updatedAt": timestamp(self.now)}

    def delete(self, *ids: str) -> None:
        for id in ids:
            del self.users[id]

    # What it answers

    def sorted_users(self) -> list:
        users = sorted(self.users.values(), key=self.tie_order) if self.tie_order else list(self.users.values())
        return sorted(users, key=lambda user: user["updatedAt"])

    def page(self, parameters: dict) -> dict:
        since = parameters.get("updated_since", "")
        users = [
            user
            for user in self.sorted_users()
            if user["updatedAt"] > since or (user["updatedAt"] == since and not self.exclusive)
        ]
        offset, limit = int(parameters["offset"]), int(parameters["limit"])
        data = users[offset : offset + min(limit, self.page_cap or limit)]
        total = min(len(users), self.total_cap or len(users))
        return {"data": data, "offset": offset, "limit": limit, "total": total}

    def answer(self, request) -> tuple:
        """Answer a request: the status, the headers and the body. What `responses` calls."""
        with self._lock:
            parameters = dict(parse_qsl(urlsplit(request.url).query))
            self.requests.append(parameters)
            self.keys.append(request.headers.get("Authorization"))
            self.now += timedelta(seconds=self.seconds_per_request)
            happens = self.before.pop(0) if self.before else None
            fault = happens() if happens else None
            answer = fault or self.answers.get(len(self.requests)) or self.at_offset.get(int(parameters["offset"]))
            if answer is None:
                answer = self.refusal(parameters) or self.page(parameters)
            if callable(answer):
                answer = answer(self.page(parameters))
            headers = {"Date": format_datetime(self.now, usegmt=True), "Content-Type": "application/json"}
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, tuple):
                status, more_headers, body = answer
                return status, headers | more_headers, body
            return 200, headers, json.dumps(answer)

    def refusal(self, parameters: dict) -> tuple | None:
        for name, most in {"limit": self.limit_max, "offset": self.offset_max}.items():
            if most is not None and int(parameters[name]) > most:
                return 400, {}, json.dumps({"error": f"Invalid value for '{name}'. It should be at most {most}."})
        return None

    @contextmanager
    def served(self) -> Iterator["MemoryApi"]:
        """Answer what is asked of `URL` in this process."""
        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            mock.add_callback(responses.GET, URL, callback=lambda request: self.answer(request))
            yield self
