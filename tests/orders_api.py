"""An API of orders and customers as Django REST framework makes it, on a PostgreSQL of its own.

`count` and `results`, decimals as text, microseconds. Asked for `ordering=updated_at` it sorts by that alone, and 2 to
300 rows share a time: PostgreSQL then returns them in an order that depends on the page, as no column but the key has
an index. Three groups in four are small; one of more than 100 does not fit on a page.

`python tests/orders_api.py` serves 2,000 orders and 2,000 customers at http://127.0.0.1:8010, and changes five orders
a second.
"""

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import psycopg
from django import conf, setup

conf.settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []},
    ROOT_URLCONF=__name__,
)
setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, connections, models, transaction  # noqa: E402
from django.urls import path  # noqa: E402
from django_filters import rest_framework as django_filters  # noqa: E402
from rest_framework import filters, generics, pagination, serializers  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

import postgres  # noqa: E402


class Order(models.Model):
    customer = models.TextField()
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    line_items = models.JSONField()
    is_deleted = models.BooleanField(default=False)
    updated_at = models.DateTimeField()

    class Meta:
        app_label = "orders"


class Customer(models.Model):
    name = models.TextField()
    amount = models.TextField()  # in words, where an order's is a number
    updated_at = models.DateTimeField()

    class Meta:
        app_label = "orders"


class OrderSerializer(serializers.ModelSerializer):
    class Meta:
        model, fields = Order, "__all__"


class CustomerSerializer(serializers.ModelSerializer):
    class Meta:
        model, fields = Customer, "__all__"


class UpdatedSince(django_filters.FilterSet):
    updated_since = django_filters.IsoDateTimeFilter("updated_at", "gte")


class Orders(generics.ListAPIView):
    queryset, serializer_class = Order.objects.all(), OrderSerializer
    filterset_class = UpdatedSince
    pagination_class = pagination.LimitOffsetPagination
    filter_backends = (django_filters.DjangoFilterBackend, filters.OrderingFilter)
    ordering_fields = ("updated_at", "id")


class Customers(Orders):
    queryset, serializer_class = Customer.objects.all(), CustomerSerializer


urlpatterns = [path("orders", Orders.as_view()), path("customers", Customers.as_view())]


@contextmanager
def database() -> Iterator[None]:
    """Run a PostgreSQL with empty tables while this is entered. It ends with this process, whatever ends that."""
    with postgres.serve() as uri:
        address = psycopg.conninfo.conninfo_to_dict(uri)
        connections.databases["default"].update(
            USER=address["user"], HOST=address["host"], PORT=address.get("port", "")
        )
        try:
            with connection.schema_editor() as editor:
                editor.create_model(Order)
                editor.create_model(Customer)
            yield
        finally:
            connections.close_all()


def numbers_and_times(count: int) -> Iterator[tuple[int, datetime]]:
    """Give new rows their numbers and times: 2 to 40 rows each, or up to 300, all over an hour ago."""
    dice, number = random.Random(1), 0
    time = datetime.now(UTC) - timedelta(hours=1, minutes=count)
    while number < count:
        time += timedelta(minutes=1, microseconds=1)
        group_size = dice.randint(2, dice.choice((40, 40, 40, 300)))
        for _ in range(min(group_size, count - number)):
            number += 1
            yield number, time


def make_orders(count: int):
    Order.objects.bulk_create(
        Order(
            customer=f"Customer {number}",
            amount=f"{number}.91",
            line_items=[{"sku": f"A-{number}", "quantity": 2}],
            updated_at=time,
        )
        for number, time in numbers_and_times(count)
    )


def make_customers(count: int):
    Customer.objects.bulk_create(
        Customer(name=f"Customer {number}", amount=f"about {number}", updated_at=time)
        for number, time in numbers_and_times(count)
    )


def change(count: int, **values):
    """Change some orders at once, which moves them to the end of the list. Those that others are changing stay."""
    ids = random.sample(range(1, Order.objects.count() + 1), count)
    values = {"amount": models.F("amount") + 1, "updated_at": datetime.now(UTC)} | values
    with transaction.atomic():
        free = Order.objects.select_for_update(skip_locked=True).filter(id__in=ids).values("id")
        Order.objects.filter(id__in=free).update(**values)


@contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Serve the API on loopback at a port (0: any free one). Gives its address, under which the lists are."""
    server = make_server("127.0.0.1", port, get_wsgi_application(), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), database(), serve(8010) as url:
        make_orders(2000)
        make_customers(2000)
        print(f"2,000 orders and 2,000 customers at {url}", flush=True)
        while True:
            change(5)
            time.sleep(1)
