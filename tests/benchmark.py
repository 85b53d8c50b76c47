"""Compares the connector with two loops: what they lose of a list, and how long they take.

Run it by hand: `python tests/benchmark.py`. Times are multiples of the floor, the time that writing the same rows takes
with no API at all. Each run is a process of its own, against an API on loopback in another, and the contenders take
turns; what is printed are medians. `--plot` draws them, too.
"""

import argparse
import importlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

PROJECT = Path(__file__).resolve().parent.parent
CONTENDERS = ("floor", "plain loop", "short loop", "connector", "1 at a time")
MODULES = {
    "plain loop": "plain_loop",
    "short loop": "short_loop",
    "connector": "connector",
    "1 at a time": "connector",
}
PAGE_SIZE = 100
CHANGES = (0, 1, 5, 20)  # users that change before a page
STYLES = {  # of the lines in the plot, two of which lie on one another
    "plain loop": {"color": "#d1495b", "lw": 2.5},
    "short loop": {"color": "#edae49", "lw": 2.5, "linestyle": (0, (3, 2))},
    "connector": {"color": "#2a9d8f", "lw": 5},
}
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


def make_users(count: int) -> list:
    """Return made-up users, as an API gives them, a second apart."""
    return [
        {
            "id": str(number),
            "name": f"Firstname{number} Lastname{number}",
            "email": f"firstname.lastname{number}@example.com",
            "address": f"{number} Some Street\nSome Town, ST {number:05}",
            "company": f"Company {number % 977}",
            "job": f"Job {number % 331}",
            "createdAt": "2023-06-01T12:00:00Z",
            "updatedAt": (EPOCH + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        for number in range(count)
    ]


# The API


class Api(BaseHTTPRequestHandler):
    """Answers pages of users after a delay, and `/counts` with what it has done since it was last asked for that."""

    protocol_version = "HTTP/1.1"  # keeps connections alive
    users: ClassVar[list] = []
    times: ClassVar[list] = []
    delay: ClassVar[float] = 0.0  # seconds
    counts: ClassVar[Counter] = Counter()

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/counts":
            self.answer(dict(self.counts))
            self.counts.clear()
            return
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        start = bisect_left(self.times, parameters.get("updated_since", ""))
        offset, limit = int(parameters["offset"]), int(parameters["limit"])
        self.counts.update(requests=1)
        page = self.users[start + offset : start + offset + limit]
        time.sleep(self.delay)
        self.answer(
            {"data": page, "offset": offset, "limit": limit, "total": len(self.users) - start}
        )

    def answer(self, body: dict):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


def serve(count: int, delay: float):
    """Serve users for ever, having printed the port."""
    Api.users, Api.delay = make_users(count), delay
    Api.times = [user["updatedAt"] for user in Api.users]
    Api.wbufsize = 1 << 16  # one packet per answer
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


# A run


def run(contender: str, count: int, url: str, nowhere: bool):
    """Run one sync of a contender in this process, and print what it cost."""
    import sdk

    configuration = {"base_url": url, "page_size": str(PAGE_SIZE)}
    if contender == "1 at a time":
        configuration["parallel_requests"] = "1"
    if contender == "floor":
        connector = floor(count)
    else:
        module = importlib.import_module(MODULES[contender])
        connector = module.connector
    if nowhere:
        rows = []
        module.op = SimpleNamespace(upsert=lambda table, row: rows.append(1), checkpoint=dict)
        sdk.Logging.LOG_LEVEL = sdk.Logging.Level.INFO
        before = time.process_time(), time.perf_counter()
        module.update(configuration, {})
        upserts, cpu = len(rows), time.process_time() - before[0]
        wall = time.perf_counter() - before[1]
    else:
        before = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            upserts = sdk.run(connector, Path(folder), configuration)
        cpu, wall = time.process_time(), time.perf_counter() - before
    if upserts < count:
        raise SystemExit(f"{contender} wrote {upserts} of {count} users")
    print(json.dumps({"cpu": cpu, "wall": wall, "memory": peak_memory()}))


def floor(count: int):
    """Return a connector that writes the same rows and checkpoints as the others, and asks no API."""
    from fivetran_connector_sdk import Connector
    from fivetran_connector_sdk import Operations as op

    import plain_loop

    def update(configuration: dict, state: dict):
        for start in range(0, count, PAGE_SIZE):
            for row in rows[start : start + PAGE_SIZE]:
                op.upsert("user", row)
            op.checkpoint({"last_updated_at": rows[start]["name"]})

    created = datetime(2023, 6, 1, 12, tzinfo=UTC)
    rows = [
        user | {"createdAt": created, "updatedAt": EPOCH + timedelta(seconds=number)}
        for number, user in enumerate(make_users(count))
    ]
    return Connector(update=update, schema=plain_loop.schema)


def peak_memory() -> float:
    """Return the most memory this process had, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# What is missing


def missing_users(contender: str, api) -> int:
    """Return how many users of an API two syncs leave out; during the second, nothing changes."""
    import http_server
    import sdk

    sdk.Logging.LOG_LEVEL = sdk.Logging.Level.WARNING
    reader = importlib.import_module(MODULES[contender])
    names, state = {}, {}
    reader.op = SimpleNamespace(
        upsert=lambda table, row: names.update({row["id"]: row["name"]}),
        checkpoint=lambda new: state.update(new),
    )
    with http_server.serve(api) as server:
        settings = {"base_url": server.url, "page_size": str(PAGE_SIZE), "parallel_requests": "1"}
        reader.update(settings, {})
        api.changes = 0
        api.now += timedelta(minutes=10)
        reader.update(settings, state)
    return sum(names.get(id) != user["name"] for id, user in api.users.items())


@contextmanager
def postgres_api(count: int):
    """Give an API over a table of PostgreSQL that sorts it by time alone, and in which nothing changes.

    The time has no index, and 2 to 40 users each share one: PostgreSQL returns these in an order that depends on limit
    plus offset.
    """
    import psycopg

    import postgres
    from memory_api import MemoryApi, envelope

    class PostgresApi(MemoryApi):
        def page(self, parameters: dict) -> dict:
            since = parameters.get("updated_since", "-infinity")
            limit, offset = int(parameters["limit"]), int(parameters["offset"])
            where = "from users where time >= %s"
            query = f"select id {where} order by time limit %s offset %s"
            users = [self.users[id] for (id,) in database.execute(query, (since, limit, offset))]
            (total,) = database.execute(f"select count(*) {where}", (since,)).fetchone()
            return envelope(users, total, offset, limit)

    api, dice = PostgresApi(), random.Random(1)
    while len(api.users) < count:
        ties = min(dice.randint(2, 40), count - len(api.users))
        api.add(ties, EPOCH + timedelta(seconds=len(api.users)))
    rows = [(user["id"], user["updatedAt"]) for user in api.users.values()]
    dice.shuffle(rows)
    with postgres.serve() as uri, psycopg.connect(uri, autocommit=True) as database:
        database.execute("create table users (id text, time timestamptz)")
        database.cursor().executemany("insert into users values (%s, %s)", rows)
        database.execute("analyze users")
        yield api


def missing_rows(contenders: list) -> dict:
    """Return what is missing in the tables of the contenders, in the order of these, by what happens to the list."""
    import demo

    def missing(changes: int) -> list:
        return [missing_users(name, demo.MovingApi(changes)) for name in contenders]

    with postgres_api(demo.USERS) as api:
        unstable_ties = [missing_users(name, api) for name in contenders]
    return {changes: missing(changes) for changes in CHANGES} | {"ties": unstable_ties}


# The comparison


def measure(contender: str, count: int, url: str, nowhere: bool) -> dict:
    """Run a contender as a process of its own and return its figures."""
    counts_url = f"{url.rsplit('/', 1)[0]}/counts"
    urlopen(counts_url).close()
    child = subprocess.run(
        [sys.executable, __file__, "run", contender, "--users", str(count), "--url", url]
        + ["--nowhere"] * nowhere,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if child.returncode:
        raise SystemExit(child.stdout + child.stderr)
    with urlopen(counts_url) as response:
        counts = {"requests": 0} | json.load(response)
    (figures,) = (line for line in child.stdout.splitlines() if line.startswith('{"cpu"'))
    return {**json.loads(figures), **counts}


def compare(count: int, delay: int, runs: int, contenders: list, nowhere: bool) -> dict:
    """Let the contenders take turns against an API with a delay in milliseconds. Returns each one's median figures."""
    api = subprocess.Popen(
        [sys.executable, __file__, "serve", "--users", str(count), "--delay", str(delay)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        url = f"http://127.0.0.1:{int(api.stdout.readline())}/users"
        measured = {contender: [] for contender in contenders}
        for _ in range(runs):
            for contender in contenders:
                measured[contender].append(measure(contender, count, url, nowhere))
    finally:
        api.kill()
        api.wait()
    return {
        contender: {
            name: statistics.median(figures[name] for figures in measured[contender])
            for name in measured[contender][0]
        }
        for contender in contenders
    }


def show(delay: int, medians: dict):
    """Print all figures at a delay, in full."""
    print(f"\nAn answer takes {delay} ms")
    print(f"{'':12}{'wall s':>9}{'/ floor':>9}{'CPU s':>9}{'peak MB':>9}{'requests':>10}")
    for contender, figures in medians.items():
        print(
            f"{contender:12}{figures['wall']:9.2f}{multiple(medians, contender):>9}"
            f"{figures['cpu']:9.2f}{figures['memory']:9.0f}{figures['requests']:10.0f}",
            flush=True,
        )


def multiple(medians: dict, contender: str) -> str:
    """Return the time of a contender as a multiple of the floor."""
    floor = medians.get("floor")
    return f"{medians[contender]['wall'] / floor['wall']:.2f}" if floor else ""


def show_summary(delays: dict, missing: dict, contenders: list):
    """Print the table of the README: what is missing, times in floors, and requests."""
    titles = ["missing: by time alone", *(f"{n} change" for n in CHANGES[1:])]
    titles += [f"time: {delay} ms" for delay in delays] + ["requests"]
    print("\n| | " + " | ".join(titles) + " |\n" + "| --- " * (len(titles) + 1) + "|")
    for number, name in enumerate(contenders):
        requests = list(delays.values())[-1][name]["requests"]
        cells = [missing["ties"][number], *(missing[n][number] for n in CHANGES[1:])]
        cells += [multiple(medians, name) for medians in delays.values()]
        cells += [f"{requests:.0f}"]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |")


def plot(delays: dict, missing: dict, contenders: list):
    """Draw what is missing, and the times, into .github/: once for light and once for dark pages."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11})
    mpl.rcParams["svg.hashsalt"] = "benchmark"  # the same figure is the same file
    for name, color in {"benchmark": "#1f2328", "benchmark-dark": "#f0f6fc"}.items():
        ink = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")
        with pyplot.rc_context(dict.fromkeys(ink, color)):
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
            for number, contender in reversed(list(enumerate(contenders))):
                style = STYLES[contender] | {"label": contender, "marker": "o"}
                left.plot(CHANGES, [missing[changes][number] for changes in CHANGES], **style)
                times = [float(multiple(medians, contender)) for medians in delays.values()]
                right.plot(list(delays), times, **style)
            left.set(title="Rows missing for good, of 5,000")
            left.set(xlabel="rows that change before a page", xticks=CHANGES)
            right.set(title="Time of a first sync", ylabel="times the writing alone")
            right.set(xlabel="ms an answer takes", xticks=list(delays), ylim=(0, None))
            for axes in (left, right):
                axes.set_facecolor("none")
                axes.spines[["top", "right"]].set_visible(False)
                axes.legend(frameon=False)
            path = PROJECT / ".github" / f"{name}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
            pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "command", nargs="?", choices=["compare", "serve", "run"], default="compare"
    )
    parser.add_argument("contender", nargs="?", choices=CONTENDERS)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--runs", type=int, default=3, help="of each contender and delay")
    parser.add_argument(
        "--delay", type=int, nargs="*", default=[0, 100, 400], help="milliseconds an answer takes"
    )
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=CONTENDERS[:4])
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument(
        "--nowhere", action="store_true", help="write nowhere: what reading alone costs"
    )
    parser.add_argument("--plot", action="store_true", help="draw the figures into .github/, too")
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.users, options.delay[0] / 1000)
    elif options.command == "run":
        run(options.contender, options.users, options.url, options.nowhere)
    else:
        contenders = [name for name in options.only if not (options.nowhere and name == "floor")]
        print(f"{options.users:,} users, pages of {PAGE_SIZE}, medians of {options.runs}")
        delays = {}
        for delay in options.delay:
            delays[delay] = compare(
                options.users, delay, options.runs, contenders, options.nowhere
            )
            show(delay, delays[delay])
        if not options.nowhere:
            contenders = [name for name in contenders if name != "floor"]
            missing = missing_rows(contenders)
            show_summary(delays, missing, contenders)
            if options.plot:
                plot(delays, missing, contenders)


if __name__ == "__main__":
    main()
