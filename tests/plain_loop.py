"""The loop that the connector is measured against: ask for a page, write it, ask for the next.

It is what the description of an offset-paged sync suggests at first reading, and a connector of its own.
"""

import requests
from fivetran_connector_sdk import Connector
from fivetran_connector_sdk import Operations as op

COLUMNS = {"id": "STRING", "updatedAt": "UTC_DATETIME", "createdAt": "UTC_DATETIME"}


def schema(configuration: dict):
    return [{"table": "user", "primary_key": ["id"], "columns": COLUMNS}]


def update(configuration: dict, state: dict):
    offset = 0
    while True:
        parameters = {
            "updated_since": state.get("last_updated_at"),
            "order_by": "updatedAt",
            "order_type": "asc",
            "limit": configuration["page_size"],
            "offset": offset,
        }
        response = requests.get(configuration["base_url"], params=parameters, timeout=60)
        response.raise_for_status()
        page = response.json()
        for user in page["data"]:
            op.upsert("user", user)
            last_updated_at = user["updatedAt"]
        if page["data"]:
            op.checkpoint({"last_updated_at": last_updated_at})
        offset += len(page["data"])
        if not page["data"] or offset >= page["total"]:
            return


connector = Connector(update=update, schema=schema)
