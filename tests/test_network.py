"""What `requests` takes from the environment: proxies and certificates, also as this connector sets it up."""

import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import trustme

import connector
import http_server
from memory_api import MemoryApi


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_a_proxy_of_the_environment_is_used(sync, monkeypatch):
    api = MemoryApi()
    api.add(30)
    with http_server.serve(api) as proxy:  # it is asked with the whole address, and answers itself
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert set(sync(base_url="http://users.invalid/users").table) == set(api.users)
        assert proxy.asked > 0


def test_an_https_proxy_is_asked_to_connect(sync, monkeypatch):
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            asked.append(self.path)
            self.send_error(502)

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        with pytest.raises(connector.SyncError, match=r"users\.invalid"):
            sync(base_url="https://users.invalid/users")
        proxy.shutdown()
    assert asked[0] == "users.invalid:443"


def test_a_certificate_authority_of_ones_own_is_honored(sync, monkeypatch, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    api = MemoryApi()
    api.add(3)
    with http_server.Server(api) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_port}/users"
        with pytest.raises(connector.SyncError, match=r"localhost.*certificate"):
            sync(base_url=url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        assert len(sync(base_url=url).table) == 3
        server.shutdown()
