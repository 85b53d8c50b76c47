"""Odoo's JSON-2: a POST with a JSON body, answered by a bare array in which `false` stands for null."""

import requests

from connector import PageRequest, Table

TABLES = [
    Table(
        name="partner",
        path="res.partner/search_read",  # base_url is https://<COMPANY>.odoo.com/json/2
        primary_key=["id"],
        updated_at="write_date",
        columns={
            "id": "LONG",
            "name": "STRING",
            "email": "STRING",
            "active": "BOOLEAN",
            "write_date": "UTC_DATETIME",
        },
    )
]


def http_request(table: Table, url: str, key: str, page: "PageRequest") -> requests.Request:
    since = [["write_date", ">=", page.since.text]] if page.since.text else []
    body = {
        "domain": [["active", "in", [True, False]], *since],  # archived ones, too
        "fields": [*table.columns, table.updated_at],
        "order": "write_date asc, id asc",
        "limit": page.limit,
        "offset": page.offset,
    }
    return requests.Request("POST", url, headers={"Authorization": f"Bearer {key}"}, json=body)


def rows_of(body) -> list:
    return [
        {
            name: None if value is False and name != "active" else value
            for name, value in row.items()
        }
        for row in body
    ]


def total_of(body, headers):
    return None  # it says none
