"""Syncs the users of a REST API into the table `user`: first all of them, then only what changed.

The file reads from top to bottom: what is set, how one page is asked for, how pages become a list, what the
table is, what a sync does, and how to run one on a laptop.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import requests
from fivetran_connector_sdk import Connector
from fivetran_connector_sdk import Logging as log
from fivetran_connector_sdk import Operations as op

# What to change for another table, other columns or other field names
TABLE = "user"
ID = "id"
UPDATED_AT = "updatedAt"
COLUMNS = {
    "id": "STRING",
    "name": "STRING",
    "email": "STRING",
    "address": "STRING",
    "company": "STRING",
    "job": "STRING",
    "updatedAt": "UTC_DATETIME",
    "createdAt": "UTC_DATETIME",
}
STRING_COLUMNS = [name for name, kind in COLUMNS.items() if kind == "STRING"]
TIME_COLUMNS = [name for name, kind in COLUMNS.items() if kind == "UTC_DATETIME"]

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer


class SyncError(Exception):
    """The sync cannot go on. The message says what was expected, what came, where, and what to do."""


class Refused(SyncError):
    """The API does not take a request as it is (HTTP 400 or 422)."""


# What is set


@dataclass(frozen=True)
class Settings:
    """What configuration.json sets: the API's address, and how many users to ask for at a time."""

    base_url: str
    page_size: int = 100


def read_settings(configuration: dict) -> Settings:
    """Check the configuration and return it as `Settings`. Raises `SyncError` if a value is not usable."""
    base_url = configuration.get("base_url") or ""
    page_size = configuration.get("page_size") or "100"
    if not base_url:
        raise SyncError("The configuration has no base_url: set it to the address of the API.")
    if not re.fullmatch("[0-9]{1,5}", page_size) or not 2 <= int(page_size) <= 10_000:
        raise SyncError(f"page_size is {page_size!r}: set it to a whole number from 2 to 10000.")
    return Settings(base_url, int(page_size))


# How one page is asked for


class Request(NamedTuple):
    """A page to ask for: the users updated since a time (None: all), from which offset, and how many at most."""

    updated_since: str | None
    offset: int
    limit: int


class Page(NamedTuple):
    """A page of users, as rows of the table; how many match in all; and the last one's `updatedAt` as it came."""

    users: list
    total: int
    last_updated_at: str | None


def get_page(session: requests.Session, base_url: str, request: Request) -> Page:
    """Ask the API for one page. Raises `Refused` for HTTP 400 and 422, `SyncError` for anything else but a page."""
    parameters = {
        "updated_since": request.updated_since,  # left out of the URL where it is None
        "order_by": UPDATED_AT,
        "order_type": "asc",
        "limit": request.limit,
        "offset": request.offset,
    }
    try:
        response = session.get(base_url, params=parameters, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise SyncError(f"The API did not answer at offset {request.offset}: {error}") from None
    if response.status_code != 200:
        kind = Refused if response.status_code in (400, 422) else SyncError
        raise kind(f"The API answered HTTP {response.status_code} at offset {request.offset}: {response.text[:200]}")
    return to_page(response.json())


def to_page(answer: dict) -> Page:
    """Turn an answer of the API into a `Page`."""
    data = answer["data"]
    return Page([to_row(user) for user in data], answer["total"], data[-1][UPDATED_AT] if data else None)


def to_row(user: dict) -> dict:
    """Turn a user of the API into a row of the table: its times as `datetime`s, and JSON text in STRING columns.

    A column that `schema()` does not name is left as it is: the SDK finds its type. It would store a dict or list in
    a STRING column as Python writes it, though, which no warehouse can read.
    """
    row = dict(user)
    for name in TIME_COLUMNS:
        if row.get(name) is not None:
            row[name] = parse_time(row[name])
    for name in STRING_COLUMNS:
        if not isinstance(row.get(name), str | None):
            row[name] = json.dumps(row[name], ensure_ascii=False)
    return row


ISO_8601 = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)? ?(?:Z|([+-]\d\d)(?::?(\d\d))?)?)?",
    re.ASCII | re.IGNORECASE,
)


def parse_time(text: str) -> datetime:
    """Read an ISO 8601 date and time as UTC, kept to the microsecond. Without a zone it is taken as UTC.

    `datetime.fromisoformat` alone would not do: up to Python 3.10 it reads few of the forms APIs use, and since then
    it also reads long numbers as times. Raises `ValueError` if `text` is no calendar date, with or without a time.
    """
    match = ISO_8601.fullmatch(text)
    if not match:
        raise ValueError(f"not an ISO 8601 time: {text!r}")
    year, month, day, hour, minute, second, fraction, zone, zone_minute = match.groups(default="00")
    time = datetime.fromisoformat(
        f"{year}-{month}-{day}T{hour}:{minute}:{second}.{fraction[:6]:0<6}{zone:+>3}:{zone_minute}"
    )
    return time if time.tzinfo is timezone.utc else time.astimezone(timezone.utc)


# How pages become a list


def read_pages(settings: Settings, updated_since: str | None) -> Iterator[Page]:
    """Yield the pages of all users updated since a time, or of all users if that is None."""
    limit, offset = settings.page_size, 0
    with requests.Session() as session:
        while True:
            try:
                page = get_page(session, settings.base_url, Request(updated_since, offset, limit))
            except Refused as error:
                if offset or limit == 2 or "limit" not in str(error):
                    raise
                limit = max(limit // 2, 2)
                continue
            if limit != settings.page_size and offset == 0:
                log.info(f"The API refused pages of {settings.page_size} users: asking for {limit} at a time.")
            yield page
            offset += len(page.users)
            if offset >= page.total or not page.users:
                return


# What the table is


def schema(configuration: dict):
    """Declare the table: its key and the columns whose type must not depend on what comes first."""
    return [{"table": TABLE, "primary_key": [ID], "columns": COLUMNS}]


# What a sync does


def update(configuration: dict, state: dict):
    """Upsert every user updated since the last sync, and checkpoint after every page how far it came."""
    settings = read_settings(configuration)
    for page in read_pages(settings, state.get("last_updated_at")):
        for user in page.users:
            op.upsert(TABLE, user)
        if page.users:
            op.checkpoint({"last_updated_at": page.last_updated_at})


connector = Connector(update=update, schema=schema)

# How to run one on a laptop: `python connector.py` goes on from files/state.json, as `fivetran debug` does

if __name__ == "__main__":
    project = Path(__file__).resolve().parent
    state_file = project / "files" / "state.json"
    connector.debug(
        project_path=str(project),
        configuration=json.loads((project / "configuration.json").read_text(encoding="utf-8")),
        state=json.loads(state_file.read_text(encoding="utf-8")) if state_file.exists() else {},
    )
