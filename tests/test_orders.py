"""Django REST framework on a real PostgreSQL: the orders of tests/orders.diff, and two lists in one connector."""

import json
from contextlib import contextmanager
from datetime import UTC
from decimal import Decimal
from threading import Event, Thread
from time import monotonic, sleep

import duckdb
import pytest
import requests
from django.db import connection, connections
from rest_framework.exceptions import PermissionDenied

import orders_api
import sdk
from orders_api import Customer, Order

BY_TIME_ALONE = {'"ordering": f"{UPDATED_AT},{ID}"': '"ordering": UPDATED_AT'}


class LateTransaction:
    """Stamps some orders when it begins, and shows them when it commits, 15 s later."""

    def __init__(self):
        self._connection = connection.get_new_connection(connection.get_connection_params())
        self._connection.execute(
            "update orders_order set amount = amount + 1, updated_at = now() where id % 100 = 0"
        )
        self._began = monotonic()

    def wait_until(self, seconds: float):
        """Wait until so many seconds have passed since it began."""
        sleep(max(self._began + seconds - monotonic(), 0))

    def commit(self):
        self.wait_until(15)
        self._connection.commit()

    def close(self):
        self._connection.close()


@pytest.fixture(scope="module")
def url():
    with orders_api.database(), orders_api.serve() as url:
        orders_api.make_orders(1000)
        orders_api.make_customers(1000)
        yield url


@pytest.fixture(scope="module", autouse=True)
def late(url):
    """A transaction that begins before all tests of this file: they need not wait for it one after the other."""
    late = LateTransaction()
    orders_api.change(40)
    yield late
    late.close()


@contextmanager
def changes():
    """Let orders change all the time while this is entered."""
    ended = Event()

    def run():
        while not ended.wait(0.05):
            orders_api.change(10)
        connections.close_all()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def orders_in_postgresql() -> dict:
    return {str(order["id"]): order | {"id": str(order["id"])} for order in Order.objects.values()}


def orders_in_duckdb(folder) -> dict:
    names = ("id", "customer", "amount", "line_items", "is_deleted", "updated_at")
    with duckdb.connect(str(folder / "files" / "warehouse.db"), read_only=True) as warehouse:
        found = warehouse.execute(
            "select id, customer, amount, line_items, is_deleted, "
            "updated_at at time zone 'UTC' from tester.orders"
        ).fetchall()
    orders = (dict(zip(names, row, strict=True)) for row in found)
    return {
        order["id"]: order
        | {
            "line_items": json.loads(order["line_items"]),
            "updated_at": order["updated_at"].replace(tzinfo=UTC),
        }
        for order in orders
    }


def customers_in_duckdb(folder) -> dict:
    with duckdb.connect(str(folder / "files" / "warehouse.db"), read_only=True) as warehouse:
        found = warehouse.execute("select id, name, amount from tester.customers")
        return {id: (name, amount) for id, name, amount in found.fetchall()}


def customers_in_postgresql() -> dict:
    customers = Customer.objects.values_list("id", "name", "amount")
    return {str(id): (name, amount) for id, name, amount in customers}


def test_a_plain_loop_misses_rows_of_a_list_sorted_by_time_alone_though_nothing_changes(url):
    read, offset, count = set(), 0, 1
    while offset < count:
        page = requests.get(
            f"{url}/customers?ordering=updated_at&limit=100&offset={offset}", timeout=60
        ).json()
        read |= {str(customer["id"]) for customer in page["results"]}
        offset, count = offset + 100, page["count"]
    missing = customers_in_postgresql().keys() - read
    assert len(missing) >= 10


def test_the_connector_misses_no_row_of_a_list_sorted_by_time_alone(url, tmp_path):
    replacements = BY_TIME_ALONE | {
        'TABLE, ID, UPDATED_AT = "orders"': 'TABLE, ID, UPDATED_AT = "customers"',
        '{"type": "DECIMAL", "precision": 12, "scale": 2}': '"STRING"',
    }
    connector = sdk.adapted(tmp_path, "orders", replacements=replacements)
    sdk.run(connector, tmp_path, {"base_url": f"{url}/customers"})
    assert customers_in_duckdb(tmp_path) == customers_in_postgresql()


@pytest.mark.parametrize("replacements", [{}, BY_TIME_ALONE], ids=["time_and_id", "time_alone"])
def test_orders_that_change_all_the_time_land_in_duckdb_as_they_are_in_postgresql(
    url, tmp_path, replacements
):
    connector = sdk.adapted(tmp_path, "orders", replacements=replacements)
    configuration = {"base_url": f"{url}/orders"}
    assert connector.run_test("test_connection", configuration).failure is None
    with changes():
        sdk.run(connector, tmp_path, configuration)
    sdk.run(connector, tmp_path, configuration)
    assert orders_in_duckdb(tmp_path) == orders_in_postgresql()
    assert isinstance(orders_in_duckdb(tmp_path)["5"]["amount"], Decimal)


def test_of_two_lists_the_one_that_fails_is_named_and_the_other_is_synced(
    url, tmp_path, monkeypatch
):
    replacements = {
        '("users", COLUMNS)': '("orders", COLUMNS)',
        '"team": ("teams", TEAM)': '"customers": ("customers", TEAM)',
        '"name": (Text, "STRING")}': '"amount": (Text, "STRING")}',
    }
    connector = sdk.adapted(tmp_path, "orders", "several_lists", replacements=replacements)
    configuration = {"base_url": url, "page_size": "300"}
    assert connector.run_test("test_connection", configuration).failure is None

    def refuse_second_page(view, request):
        if view.queryset.model is Order and int(request.GET["offset"]) > 0:
            raise PermissionDenied

    with monkeypatch.context() as patch:
        patch.setattr(orders_api.Orders, "check_permissions", refuse_second_page)
        assert "orders: " in connector.run_test("test_connection", configuration).failure
        with pytest.raises(RuntimeError, match=r"orders: .*403") as caught:
            sdk.run(connector, tmp_path, configuration)
    assert "customers: " not in str(caught.value)
    assert customers_in_duckdb(tmp_path) == customers_in_postgresql()
    sdk.run(connector, tmp_path, configuration)
    assert orders_in_duckdb(tmp_path) == orders_in_postgresql()
    assert {table: list(of_list) for table, of_list in sdk.state(tmp_path).items()} == {
        "orders": ["last_updated_at"],
        "customers": ["last_updated_at"],
    }


def test_rows_of_a_transaction_that_commits_late_arrive_though_others_changed_meanwhile(
    url, late, tmp_path
):
    connector = sdk.adapted(tmp_path, "orders", replacements=BY_TIME_ALONE)
    configuration = {"base_url": f"{url}/orders", "page_size": "500"}
    sdk.run(connector, tmp_path, configuration)
    late.wait_until(12)  # longer ago than clocks differ
    orders_api.change(40)
    sdk.run(connector, tmp_path, configuration)
    late.commit()
    assert orders_in_duckdb(tmp_path) != orders_in_postgresql()
    sdk.run(connector, tmp_path, configuration)
    assert orders_in_duckdb(tmp_path) == orders_in_postgresql()
