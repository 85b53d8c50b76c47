"""The real playground (https://pypi.org/project/fivetran-api-playground/), served from this process."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import fivetran_api_playground
from werkzeug.serving import make_server


@contextmanager
def serve(port: int = 0) -> Iterator[str]:
    """Serve the playground on loopback at a port (0: any free one) and give the address of its users.

    `playground start` would run it in two processes that are hard to end together; this one ends with us.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
    server = make_server("127.0.0.1", port, fivetran_api_playground.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/pagination/offset"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def users() -> list:
    """The users it serves, which are ours to change."""
    return fivetran_api_playground.items


def now() -> str:
    """The time as it writes it: that of the local clock, marked as UTC."""
    return datetime.now().strftime(fivetran_api_playground.DATE_TIME_FORMAT)
