"""A loop that asks again after every page: for the rows updated since the last time it has read, at offset 0.

Like the connector it loses no row while the list changes, as long as fewer rows share a time than fit on a page: it
has no offset that rows could slip past. It cannot ask ahead, as each request needs the answer to the one before.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import requests
from fivetran_connector_sdk import Connector
from fivetran_connector_sdk import Operations as op

from plain_loop import schema


def update(configuration: dict, state: dict):
    cursor = since = state.get("last_updated_at")
    settled = None  # rows updated later may still be followed by others of their time, or earlier
    while True:
        parameters = {
            "updated_since": since,
            "order_by": "updatedAt",
            "order_type": "asc",
            "limit": configuration["page_size"],
            "offset": 0,
        }
        response = requests.get(configuration["base_url"], params=parameters, timeout=60)
        response.raise_for_status()
        settled = settled or parsedate_to_datetime(response.headers["Date"]) - timedelta(
            seconds=10
        )
        page = response.json()["data"]
        for user in page:
            op.upsert("user", user)
            if datetime.fromisoformat(user["updatedAt"]).replace(tzinfo=UTC) <= settled:
                cursor = user["updatedAt"]
        if page and cursor:
            op.checkpoint({"last_updated_at": cursor})
        if len(page) < int(configuration["page_size"]):
            return
        if page[-1]["updatedAt"] == since:
            raise ValueError(f"More rows share {since} than fit on a page")
        since = page[-1]["updatedAt"]


connector = Connector(update=update, schema=schema)
