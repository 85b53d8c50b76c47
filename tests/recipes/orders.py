"""Django REST framework: orders, and customers, each a list of their own, as `tests/orders_api.py` serves them."""

import requests

from connector import PageRequest, Table

TABLES = [
    Table(
        name="orders",
        path="orders",
        primary_key=["id"],
        updated_at="updated_at",
        columns={
            "id": "STRING",
            "customer": "STRING",
            "amount": {"type": "DECIMAL", "precision": 12, "scale": 2},
            "line_items": "JSON",
            "is_deleted": "BOOLEAN",
            "updated_at": "UTC_DATETIME",
        },
        deleted="is_deleted",
    ),
    Table(
        name="customers",
        path="customers",
        primary_key=["id"],
        updated_at="updated_at",
        columns={
            "id": "STRING",
            "name": "STRING",
            "amount": "STRING",
            "updated_at": "UTC_DATETIME",
        },
    ),
]


def http_request(table: Table, url: str, key: str, page: "PageRequest") -> requests.Request:
    parameters = {
        "updated_since": page.since.text or None,  # None leaves it out
        "ordering": f"{table.updated_at},id",
        "limit": page.limit,
        "offset": page.offset,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.Request("GET", url, headers=headers, params=parameters)


def rows_of(body) -> list:
    return body["results"]


def total_of(body, headers) -> int:
    return body["count"]
