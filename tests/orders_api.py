"""An API of orders as Django REST framework makes it: `count` and `results`, decimals as text, microseconds.

`python tests/orders_api.py` serves 2,000 orders at http://127.0.0.1:8010/orders, and changes five of them a second.
"""

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from django import conf, setup

conf.settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(tempfile.mkdtemp()) / "orders.sqlite3",
            "OPTIONS": {"timeout": 60},
        }
    },
    REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []},
    ROOT_URLCONF=__name__,
)
setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.urls import path  # noqa: E402
from django_filters import rest_framework as django_filters  # noqa: E402
from rest_framework import filters, generics, pagination, serializers  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402


class Order(models.Model):
    customer = models.TextField()
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    line_items = models.JSONField()
    is_deleted = models.BooleanField(default=False)
    updated_at = models.DateTimeField(db_index=True)

    class Meta:
        app_label = "orders"


class UpdatedSince(django_filters.FilterSet):
    updated_since = django_filters.IsoDateTimeFilter("updated_at", "gte")


class Serializer(serializers.ModelSerializer):
    class Meta:
        model, fields = Order, "__all__"


class Orders(generics.ListAPIView):
    queryset, serializer_class, filterset_class = Order.objects.all(), Serializer, UpdatedSince
    pagination_class = pagination.LimitOffsetPagination
    filter_backends = (django_filters.DjangoFilterBackend, filters.OrderingFilter)
    ordering_fields = ("updated_at", "id")


urlpatterns = [path("orders", Orders.as_view())]


def make_orders(count: int):
    """Create the table, with orders that were updated a minute apart, the last one an hour ago."""
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    begin = datetime.now(UTC) - timedelta(hours=1, minutes=count)
    Order.objects.bulk_create(
        Order(
            customer=f"Customer {number}",
            amount=f"{number}.91",
            line_items=[{"sku": f"A-{number}", "quantity": 2}],
            updated_at=begin + timedelta(minutes=number, microseconds=number),
        )
        for number in range(count)
    )


def change(count: int):
    """Change some orders, which moves them to the end of the list."""
    ids = random.sample(range(1, Order.objects.count() + 1), count)
    for order in Order.objects.filter(id__in=ids):
        order.amount, order.updated_at = order.amount + 1, datetime.now(UTC)
        order.save()


@contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Serve the API on loopback at a port (0: any free one). Gives the address of the orders."""
    server = make_server("127.0.0.1", port, get_wsgi_application(), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/orders"
    finally:
        server.shutdown()


if __name__ == "__main__":
    make_orders(2000)
    with serve(8010) as url:
        print(f"2,000 orders at {url}", flush=True)
        while True:
            change(5)
            time.sleep(1)
