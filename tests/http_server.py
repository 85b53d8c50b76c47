"""A real HTTP server on loopback in front of an API in memory, which can fail the way only a socket can."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from types import SimpleNamespace

from memory_api import MemoryApi


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: MemoryApi):
        super().__init__(("127.0.0.1", 0), Handler)
        self.api = api
        self.faults = {}  # what is done instead of an answer to the n-th request, counted from 1
        self.asked = 0
        self.ended = Event()
        self.url = f"http://127.0.0.1:{self.server_port}/users"

    def handle_error(self, request, client_address):
        pass  # a client that was killed hangs up


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def do_GET(self):
        self.server.asked += 1
        fault = self.server.faults.get(self.server.asked)
        if callable(fault):
            fault()
        if fault == "reset":
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.connection.close()
            self.close_connection = True
            return
        if fault == "stall":
            self.server.ended.wait()
            self.close_connection = True  # or the client would wait on
            return
        request = SimpleNamespace(url=self.path, headers=self.headers, peer=self.client_address)
        status, headers, body = self.server.api.answer(request)
        content = body.encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "cut":
            self.close_connection = True
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@contextmanager
def serve(api: MemoryApi) -> Iterator[Server]:
    with Server(api) as server:
        thread = Thread(target=server.serve_forever, args=[0.01], daemon=True)  # seconds to end in
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


@contextmanager
def refused_url() -> Iterator[str]:
    """A URL at which no server listens, and none can begin to meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/users"
