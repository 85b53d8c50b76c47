"""Times that are numbers, of seconds since 1970: rows get them as text, and requests as numbers again."""

from datetime import UTC, datetime

import requests

from connector import PageRequest, Table

TABLES = [
    Table(
        name="user",
        primary_key=["id"],
        updated_at="updatedAt",
        columns={"id": "STRING", "name": "STRING", "updatedAt": "UTC_DATETIME"},
    )
]


def http_request(table: Table, url: str, key: str, page: "PageRequest") -> requests.Request:
    parameters = {
        "updated_since": int(page.since.timestamp()) if page.since.text else None,
        "order_by": table.updated_at,
        "limit": page.limit,
        "offset": page.offset,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.Request("GET", url, headers=headers, params=parameters)


def rows_of(body) -> list:
    rows = body["data"]
    for row in rows:
        row["updatedAt"] = datetime.fromtimestamp(row["updatedAt"], UTC).isoformat()
    return rows


def total_of(body, headers) -> int:
    return body["total"]
