"""A token that expires: one POST with the key gives it, and it is kept for ten minutes."""

import requests

from connector import READ_TIMEOUT, PageRequest, Table, Unavailable, monotonic

TABLES = [
    Table(
        name="user",
        primary_key=["id"],
        updated_at="updatedAt",
        columns={"id": "STRING", "name": "STRING", "updatedAt": "UTC_DATETIME"},
    )
]
TOKEN_URL = "https://api.example.com/token"
TOKEN_SECONDS = 600  # less than it is valid
tokens = {}  # by the period in which they were given


def token_of(key: str) -> str:
    """Return the token of the current period. Threads may ask for it at the same time: each may get one."""
    period = monotonic() // TOKEN_SECONDS
    if period not in tokens:
        try:
            response = requests.post(TOKEN_URL, data={"key": key}, timeout=READ_TIMEOUT)
            response.raise_for_status()
        except requests.RequestException as error:  # it may quote the key
            raise Unavailable(f"no token ({type(error).__name__})") from None
        tokens[period] = response.json()["access_token"]
    return tokens[period]


def http_request(table: Table, url: str, key: str, page: "PageRequest") -> requests.Request:
    parameters = {
        "updated_since": page.since.text or None,
        "order_by": table.updated_at,
        "limit": page.limit,
        "offset": page.offset,
    }
    headers = {"Authorization": f"Bearer {token_of(key)}"}
    return requests.Request("GET", url, headers=headers, params=parameters)


def rows_of(body) -> list:
    return body["data"]


def total_of(body, headers) -> int:
    return body["total"]
