"""Shows the connector at work: the playground's users land in DuckDB, first all of them, then only what changed.

Run it with `python tests/demo.py`. It works on a copy of the project in a temporary folder, and leaves nothing behind.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import requests

import playground
import sdk


def main() -> int:
    """Run the demo. Returns the exit code: 0 if both syncs succeeded."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        base_url = json.loads(
            (sdk.copy_project(folder) / "configuration.json").read_text(encoding="utf-8")
        )["base_url"]
        ours = not answers(base_url)
        if ours:
            if urlsplit(base_url).hostname not in ("127.0.0.1", "localhost"):
                print(f"Nothing answers at {base_url}, which configuration.json names.")
                return 1
            stack.enter_context(playground.serve(urlsplit(base_url).port or 80))
        print(f"{'The playground is up' if ours else 'Something answers already'} at {base_url}\n")

        title("First sync: fivetran debug")
        if not debug(folder):
            return 1
        first = show_table(folder)

        if ours:
            user = playground.users()[41]
            user.update(job="Astronaut", updatedAt=playground.now())
            title(f"One user changes: {user['name']} becomes an astronaut")

        title("Second sync: fivetran debug")
        if not debug(folder):
            return 1
        show_table(folder, since=first)
        title(f"The state, where the next sync goes on: {json.dumps(sdk.state(folder))}")
        return 0


def answers(url: str) -> bool:
    try:
        requests.get(url, timeout=5)
    except requests.RequestException:
        return False
    return True


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def debug(folder: Path) -> bool:
    """Run `fivetran debug` on a project, showing what it prints. Returns whether it succeeded."""
    process = subprocess.Popen(
        [sdk.fivetran(), "debug", str(folder)],
        env=sdk.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        shown = True
        for line in process.stdout:
            if re.match(
                r"\d\d:\d\d:\d\d", line
            ):  # where a message starts; the rest of it is indented
                shown = "pipreqs failed with error" not in line
                if not shown:
                    print("   (there is no network to look dependencies up; the sync needs none)")
            if shown:
                print(f"   {line}", end="", flush=True)
        print()
        return process.wait() == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def show_table(folder: Path, since: str | None = None) -> str:
    """Print the table `user`, or what a sync wrote to it since a time. Returns the time of its last write."""
    with duckdb.connect(str(folder / "files" / "warehouse.db"), read_only=True) as warehouse:
        table = warehouse.table("tester.user")
        (rows,) = table.count("*").fetchone()
        (last,) = table.aggregate("max(_fivetran_synced)::varchar").fetchone()
        title(f"The table tester.user has {rows} rows")
        if since is None:
            rows_to_show = table.order("updated_at desc").limit(5)
        else:
            rows_to_show = table.filter(f"_fivetran_synced > '{since}'").order("updated_at desc")
            print(f"   of which the second sync read {rows_to_show.count('*').fetchone()[0]}:")
        print(
            rows_to_show.project(
                "left(id, 8) as id, name, left(email, 24) as email, left(job, 24) as job, updated_at"
            )
        )
        return last


if __name__ == "__main__":
    sys.stdout.reconfigure(
        encoding="utf-8", errors="replace"
    )  # whatever the console's own encoding is
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ended from outside, it cleans up as after Ctrl-C
    try:
        code = main()
    except KeyboardInterrupt:
        print("\nInterrupted: nothing is left running.")
        code = 130
    sys.exit(code)
