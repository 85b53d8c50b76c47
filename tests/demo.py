"""Shows the connector at work, in three acts, and leaves the warehouses in files/demo/.

Users of the playground API land in DuckDB: first all of them, then only what changed. Then the plain loop and this
connector read the same list side by side while it changes, and their tables are compared with it.

Run it with `python tests/demo.py`. It works on copies of the project.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import requests

import http_server
import plain_loop
import playground
import sdk
from memory_api import ID, UPDATED_AT, MemoryApi
from sdk import connector

FOLDER = sdk.PROJECT / "files" / "demo"
USERS = 5_000
CHANGES, PAGES = 5, 50  # how many users change before each of the first so many requests
READERS = {"plain loop": plain_loop, "this connector": connector}
TABLE = f'tester."{connector.TABLES[0].name}"'
KEY, TIME = (re.sub("([A-Z])", r"_\1", name).lower() for name in (ID, UPDATED_AT))


def main() -> int:
    """Run the demo. Returns the exit code: 0 if all syncs succeeded."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    project = FOLDER / "playground"
    project.mkdir(parents=True)
    return two_syncs(project) or a_moving_list()


# A first sync, a change, a second sync


def two_syncs(folder: Path) -> int:
    with ExitStack() as stack:
        configuration = sdk.copy_project(folder) / "configuration.json"
        base_url = json.loads(configuration.read_text(encoding="utf-8"))["base_url"]
        is_ours = not answers(base_url)
        if is_ours and urlsplit(base_url).hostname not in ("127.0.0.1", "localhost"):
            print(f"Nothing answers at {base_url}, which configuration.json names.")
            return 1
        if is_ours:
            stack.enter_context(playground.serve(urlsplit(base_url).port or 80))
            print(f"The playground is up at {base_url}")
        else:
            print(f"Something answers already at {base_url}: if it is not a playground, stop it.")

        title("1. First sync: fivetran debug")
        if not debug(folder):
            return 1
        first = show_table(folder)

        if is_ours:
            user = playground.users()[41]
            user.update(job="Astronaut", updatedAt=playground.now())
            title(f"One user changes: {user['name']} becomes an astronaut")
        else:
            title("No user is changed: this API was running already, and its users are not ours")

        title("2. Second sync: fivetran debug")
        if not debug(folder):
            return 1
        show_table(folder, since=first)
        title(f"The state, from which the next sync goes on: {json.dumps(sdk.state(folder))}")
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
    """Run `fivetran debug` on a project, showing what matters of it, or all if it fails. Returns whether it succeeded."""
    print("   (it first looks its dependencies up on the network: up to 20 s)", flush=True)
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
        lines = list(process.stdout)
        has_succeeded = process.wait() == 0
    finally:
        process.kill()
    for line in lines:
        if not has_succeeded or re.search(r" connector | checkpoint | SYNC |Upserts", line):
            print(f"   {line}", end="", flush=True)
    return has_succeeded


def show_table(folder: Path, since: str | None = None) -> str:
    """Print the table, or what a sync wrote to it since a time. Returns the time of its last write."""
    with duckdb.connect(str(folder / "files" / "warehouse.db"), read_only=True) as warehouse:
        table = warehouse.sql(f"from {TABLE}")
        (rows,) = table.count("*").fetchone()
        (last,) = table.aggregate("max(_fivetran_synced)::varchar").fetchone()
        title(f"The table {TABLE} has {rows} rows")
        shown = table.order(f"{TIME} desc").limit(5)
        if since is not None:
            shown = table.filter(f"_fivetran_synced > '{since}'").order(f"{TIME} desc")
            print(
                f"   The second sync read {shown.count('*').fetchone()[0]}: what changed, and what the first one had "
                "read last, as updated_since includes that time."
            )
        columns = [short(name) for name in table.columns if name not in (TIME, "created_at")]
        columns = [column for column in columns if "_fivetran" not in column]
        columns = [*columns[:3], columns[-1]]
        print(shown.project(", ".join([*columns, f"{TIME}::varchar as {TIME}"])))
        return last


def short(name: str) -> str:
    """The SQL for a column whose long values end in an ellipsis."""
    text = f"replace(\"{name}\"::varchar, chr(10), ' ')"
    return f"if(length({text}) > 18, left({text}, 17) || '…', {text}) as \"{name}\""


# A list that changes while it is read


class MovingApi(MemoryApi):
    """Before each of its first requests, some users change of those that have just been read."""

    def __init__(self, changes: int = CHANGES):
        super().__init__()
        self.add(USERS)
        self.changes = changes
        self.read = 0  # users that were answered, for the progress bar

    def page(self, parameters: dict) -> dict:
        if self.changes and 1 < len(self.requests) <= PAGES:
            users = self.sorted_users()
            start = int(parameters["offset"]) // 2
            self.touch(*[user[ID] for user in users[start : start + self.changes]])
        page = super().page(parameters)
        self.read += int(parameters["limit"])
        return page


def a_moving_list() -> int:
    title(
        f"3. The same list of {USERS:,} users, read by the plain loop and by this connector, side by side. Before each "
        f"page, {CHANGES} users change that were read already"
    )
    with ExitStack() as stack:
        apis = {name: MovingApi() for name in READERS}
        urls = {name: stack.enter_context(http_server.serve(apis[name])).url for name in READERS}
        if not sync_both(urls, apis):
            return 1
        print("   Then nothing changes any more, and each of them syncs once again.")
        for api in apis.values():
            api.changes = 0
        if not sync_both(urls):
            return 1
    show_losses(apis)
    return 0


def sync_both(urls: dict, apis: dict | None = None) -> bool:
    """Sync with both readers at a time, each in a process of its own. Returns whether both succeeded."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, name, url],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env=sdk.environment(),
        )
        for name, url in urls.items()
    }
    outputs = {}
    readers = [
        threading.Thread(target=lambda n=name, p=process: outputs.update({n: p.communicate()[0]}))
        for name, process in processes.items()
    ]
    for reader in readers:
        reader.start()
    try:
        while apis and any(reader.is_alive() for reader in readers):
            if sys.stdout.isatty():
                show_progress(apis)
            time.sleep(0.2)
        for reader in readers:
            reader.join()
    finally:
        for process in processes.values():
            process.kill()
    if apis:
        show_progress(apis, end="\n")
    for name, process in processes.items():
        if process.returncode:
            print(f"{name} failed:\n{outputs[name]}")
    return not any(process.returncode for process in processes.values())


def show_progress(apis: dict, end: str = "") -> None:
    bars = []
    for name, api in apis.items():
        done = min(api.read * 20 // USERS, 20)
        bars.append(f"{name} [{'#' * done}{'.' * (20 - done)}]")
    print("\r   " + "   ".join(bars), end=end, flush=True)


def run_reader(name: str, url: str) -> None:
    """Run one sync of a reader, by its name, with the SDK's runner."""
    settings = {"base_url": url, "page_size": "100"}
    if READERS[name] is connector:
        settings["parallel_requests"] = "1"  # so that the list changes the same way every time
    sdk.run(READERS[name].connector, folder_of(name), settings)


def folder_of(name: str) -> Path:
    folder = FOLDER / name.replace(" ", "_")
    folder.mkdir(exist_ok=True)
    return folder


def show_losses(apis: dict) -> None:
    """Print how many users each table lacks or has in an old version, and some of them in both tables."""
    missing, tables = {}, {}
    for name, api in apis.items():
        with duckdb.connect(
            str(folder_of(name) / "files" / "warehouse.db"), read_only=True
        ) as warehouse:
            tables[name] = dict(warehouse.execute(f"select {KEY}, name from {TABLE}").fetchall())
        missing[name] = [
            id for id, user in api.users.items() if tables[name].get(id) != user["name"]
        ]
    title("What is missing in their tables, and stays missing")
    for name in READERS:
        print(f"   {name:15} {len(missing[name]):4} of {USERS:,} users")
    shown = missing["plain loop"][:3]
    print(f"\n   {'':8}" + "".join(f"{name:18}" for name in ("the API", *READERS)))
    for id in shown:
        row = (
            apis["plain loop"].users[id]["name"],
            *(tables[name].get(id, "-") for name in READERS),
        )
        print(f"   {id:8}" + "".join(f"{value:18}" for value in row))
    database = (folder_of("this connector") / "files" / "warehouse.db").relative_to(sdk.PROJECT)
    query = f"select * from {TABLE} order by {TIME} desc limit 5".replace('"', "")
    title(
        "The tables stay in files/demo/ until the next run. To query them, from the project's folder:"
    )
    print(
        f"""   {command()} -c "import duckdb; duckdb.connect('{database.as_posix()}').sql('{query}').show()\""""
    )


def command() -> str:
    """How to call this Python from the project's folder."""
    python = Path(sys.executable)
    return (
        python.relative_to(sdk.PROJECT).as_posix()
        if python.is_relative_to(sdk.PROJECT)
        else "python"
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(
        encoding="utf-8", errors="replace"
    )  # whatever the console's own encoding is
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ended from outside, it cleans up as after Ctrl-C
    try:
        code = run_reader(*sys.argv[1:]) if sys.argv[1:] else main()
    except KeyboardInterrupt:
        print("\nInterrupted: nothing is left running.")
        code = 130
    sys.exit(code)
