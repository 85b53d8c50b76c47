"""PostgREST behind Basic authentication: a bare array, its total in a header, and a key of two fields."""

import requests

from connector import PageRequest, Table

TABLES = [
    Table(
        name="order_line",
        path="order_lines",
        primary_key=["order_id", "line"],
        updated_at="updated_at",
        columns={
            "order_id": "LONG",
            "line": "INT",
            "product": "STRING",
            "updated_at": "UTC_DATETIME",
        },
    )
]


def http_request(table: Table, url: str, key: str, page: "PageRequest") -> requests.Request:
    parameters = {
        "updated_at": f"gte.{page.since.text}" if page.since.text else None,
        "order": ",".join([table.updated_at, *table.primary_key]),
        "limit": page.limit,
        "offset": page.offset,
    }
    user, _, password = key.partition(":")  # api_key is <USER>:<PASSWORD>
    return requests.Request(
        "GET",
        url,
        headers={"Prefer": "count=exact"},
        params=parameters,
        auth=(user, password),
    )


def rows_of(body) -> list:
    return body


def total_of(body, headers) -> int:
    return headers["Content-Range"].partition("/")[2]  # of 0-99/2500
