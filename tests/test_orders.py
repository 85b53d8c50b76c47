"""What the README says of adapting the connector: the orders of tests/orders.diff, and its recipes, for real."""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import duckdb
import pytest
import requests
import responses
from fivetran_connector_sdk import Connector

import orders_api
import sdk
from memory_api import ROWS, UPDATED_AT, URL, instant, names


def adapted(diff: str, folder) -> Connector:
    """Adapt a copy of the connector with a diff, and import it."""
    shutil.copy(sdk.PROJECT / "connector.py", folder)
    command = ["git", "apply", "--unsafe-paths", str(sdk.PROJECT / "tests" / f"{diff}.diff")]
    subprocess.run(command, cwd=folder, check=True)
    spec = importlib.util.spec_from_file_location(f"adapted_{diff}", folder / "connector.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.connector


# The orders


@pytest.fixture(scope="module")
def base_url():
    orders_api.make_orders(2000)
    with orders_api.serve() as url:
        yield url


@pytest.fixture
def changes():
    """Let orders change all the time while this is entered."""

    class Changes:
        def __enter__(self):
            self.ended = threading.Event()
            self.thread = threading.Thread(target=self.run)
            self.thread.start()

        def run(self):
            while not self.ended.wait(0.02):
                orders_api.change(5)

        def __exit__(self, *error):
            self.ended.set()
            self.thread.join()

    return Changes()


def stored_orders() -> dict:
    return {str(o["id"]): o | {"id": str(o["id"])} for o in orders_api.Order.objects.values()}


def test_orders_that_change_all_the_time_land_in_duckdb_as_they_are_in_sqlite(
    base_url, changes, tmp_path
):
    connector, configuration = adapted("orders", tmp_path), {"base_url": base_url}
    assert connector.run_test("test_connection", configuration).failure is None
    with changes:
        sdk.run(connector, tmp_path, configuration)
    sdk.run(connector, tmp_path, configuration)
    with duckdb.connect(str(tmp_path / "files" / "warehouse.db"), read_only=True) as warehouse:
        found = warehouse.execute(
            "select id, customer, amount, line_items, is_deleted, "
            "updated_at at time zone 'UTC' from tester.orders"
        ).fetchall()
    rows = {
        id: {
            "id": id,
            "customer": customer,
            "amount": amount,
            "line_items": json.loads(line_items),
            "is_deleted": is_deleted,
            "updated_at": updated_at.replace(tzinfo=UTC),
        }
        for id, customer, amount, line_items, is_deleted, updated_at in found
    }
    assert rows == stored_orders()
    assert isinstance(rows["7"]["amount"], Decimal)


def test_a_plain_loop_over_the_same_api_loses_orders(base_url, changes):
    rows, cursor = {}, "2020-01-01T00:00:00Z"

    def sync():
        nonlocal cursor
        url = f"{base_url}?ordering=updated_at,id&limit=100"
        parameters, offset, count = {"updated_since": cursor}, 0, 1
        while offset < count:
            page = requests.get(url, params=parameters | {"offset": offset}, timeout=60).json()
            rows.update({str(order["id"]): Decimal(order["amount"]) for order in page["results"]})
            offset, count = offset + 100, page["count"]
            cursor = page["results"][-1]["updated_at"]

    with changes:
        sync()
    sync()
    assert rows != {id: order["amount"] for id, order in stored_orders().items()}


# The recipes


def test_the_recipe_for_a_deletion_flag(api, tmp_path):
    connector = adapted("deletion_flag", tmp_path)
    api.add(5, is_deleted=False)
    sdk.run(connector, tmp_path, {"base_url": URL})
    api.users["3"]["is_deleted"] = True
    api.touch("3")
    sdk.run(connector, tmp_path, {"base_url": URL})
    assert sdk.deleted(tmp_path) == {"3"}


def test_the_recipe_for_a_token_that_expires(api, tmp_path):
    connector = adapted("token", tmp_path)
    api.add(250)
    given = []

    def give_token(request):
        given.append(f"token {len(given)}")
        return 200, {}, json.dumps({"access_token": given[-1]})

    answer = api.answer
    api.answer = lambda request: (
        answer(request)
        if request.headers.get("Authorization", "").removeprefix("Bearer ") in given
        else (401, {}, "")
    )
    with responses.RequestsMock() as mock:
        mock.add_callback(responses.GET, URL, callback=lambda request: api.answer(request))
        mock.add_callback(responses.POST, "https://api.example.com/token", callback=give_token)
        sdk.run(connector, tmp_path, {"base_url": URL, "api_key": "s3cr3t"})
    assert names(sdk.table(tmp_path)) == names(api.users)
    assert 1 <= len(given) <= 8


def test_the_recipe_for_epoch_numbers(api, tmp_path):
    connector = adapted("epoch", tmp_path)
    api.add(250)
    page = api.page

    def epoch_page(parameters):
        if since := parameters.get("updated_since"):
            time = datetime.fromtimestamp(int(since), UTC)
            parameters = parameters | {"updated_since": time.strftime("%Y-%m-%dT%H:%M:%SZ")}
        answer = page(parameters)
        return answer | {
            ROWS: [
                row | {UPDATED_AT: int(instant(row[UPDATED_AT]).timestamp())}
                for row in answer[ROWS]
            ]
        }

    api.page = epoch_page
    for lookback in ("0", "60"):
        api.touch("7")
        api.now += timedelta(seconds=60)
        configuration = {"base_url": URL, "lookback_seconds": lookback}
        sdk.run(connector, tmp_path, configuration)
        assert names(sdk.table(tmp_path)) == names(api.users)
    assert sdk.state(tmp_path)["last_updated_at"].startswith("2024-01-")
