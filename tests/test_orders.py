"""Django REST framework on a real PostgreSQL without an index: the orders and customers of tests/recipes/orders.py."""

import json
from contextlib import contextmanager
from datetime import UTC
from threading import Event, Thread
from time import monotonic, sleep

import pytest
import requests
from django.db import connection, connections
from rest_framework.exceptions import PermissionDenied

import orders_api
import sdk
from orders_api import Customer, Order

BY_TIME_ALONE = {'"ordering": f"{table.updated_at},id"': '"ordering": table.updated_at'}
ORDERS = 3_000


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
        orders_api.make_orders(ORDERS)
        orders_api.make_customers(2_000)
        yield url


@pytest.fixture(scope="module", autouse=True)
def late(url):
    """A transaction that begins before all tests of this file: it is open while they run, and none waits for all of it."""
    late = LateTransaction()
    yield late
    late.close()


@contextmanager
def changes():
    """Let orders change all the time while this is entered: ten at a time, or 300, and some are deleted."""
    ended = Event()

    def run():
        count = 0
        while not ended.wait(0.05):
            orders_api.change(300 if count % 40 == 39 else 10)
            if count % 10 == 0:
                orders_api.change(2, is_deleted=True)
            count += 1
        connections.close_all()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def orders_in_postgresql() -> dict:
    names = ("customer", "amount", "line_items", "updated_at")
    orders = Order.objects.filter(is_deleted=False).values_list("id", *names)
    return {
        str(id): (customer, amount, json.dumps(items), time)
        for id, customer, amount, items, time in orders
    }


def orders_in_duckdb(folder) -> dict:
    columns = "id, customer, amount, line_items, updated_at at time zone 'UTC'"
    return {
        id: (customer, amount, json.dumps(json.loads(items)), time.replace(tzinfo=UTC))
        for id, customer, amount, items, time in sdk.rows(folder, columns, "orders")
    }


def customers_in_postgresql() -> dict:
    customers = Customer.objects.values_list("id", "name", "amount")
    return {str(id): (name, amount) for id, name, amount in customers}


def customers_in_duckdb(folder) -> dict:
    found = sdk.rows(folder, "id, name, amount", "customers")
    return {id: (name, amount) for id, name, amount in found}


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


def test_of_two_tables_the_one_that_fails_is_named_and_the_other_is_synced(
    url, tmp_path, monkeypatch
):
    connector = sdk.adapted(tmp_path, "orders").connector
    configuration = {"base_url": url, "page_size": "300"}

    def refuse_second_page(view, request):
        if view.queryset.model is Order and int(request.GET["offset"]) > 0:
            raise PermissionDenied

    with monkeypatch.context() as patch:
        patch.setattr(orders_api.Orders, "check_permissions", refuse_second_page)
        assert "orders" in sdk.form_failure(connector, configuration)
        with pytest.raises(RuntimeError, match=r"orders.*403") as caught:
            sdk.run(connector, tmp_path, configuration)
    assert "customers" not in str(caught.value)
    assert customers_in_duckdb(tmp_path) == customers_in_postgresql()
    sdk.run(connector, tmp_path, configuration)
    assert orders_in_duckdb(tmp_path) == orders_in_postgresql()
    assert sdk.state(tmp_path)["last_updated_at"].keys() == {"orders", "customers"}


def test_orders_that_change_all_the_time_land_in_duckdb_as_they_are_in_postgresql(
    url, late, tmp_path
):
    connectors = {}
    for order, replacements in {"time_and_id": {}, "time_alone": BY_TIME_ALONE}.items():
        (tmp_path / order).mkdir()
        connectors[order] = sdk.adapted(tmp_path / order, "orders", replacements).connector
        assert sdk.form_failure(connectors[order], {"base_url": url}) is None

    def sync():
        for order, connector in connectors.items():
            sdk.run(connector, tmp_path / order, {"base_url": url})

    def stale() -> dict:
        """By order, the orders that are missing in its table, or have another version there."""
        expected = orders_in_postgresql().items()
        return {
            order: expected ^ orders_in_duckdb(tmp_path / order).items() for order in connectors
        }

    with changes():
        sync()
        late.wait_until(12)  # longer ago than clocks differ
        sync()
    late.commit()
    assert all(stale().values())
    sync()
    assert stale() == {"time_and_id": set(), "time_alone": set()}
    for order in connectors:
        assert customers_in_duckdb(tmp_path / order) == customers_in_postgresql()
