"""Compares the connector with two loops: what they lose of a list, and how long they take.

Run it by hand: `python tests/benchmark.py`. Times are in seconds, and multiples of the floor: the time that writing the
same rows takes with no API at all. Each run is a process of its own, against an API on loopback in another, and the
contenders take turns; what is printed are medians. `--plot` draws them, too. `--nowhere` writes nowhere, and shows what
reading alone costs.
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
from typing import ClassVar, NamedTuple
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
TIES = (40, 300)  # the most users that share a time: fewer, and more, than a page has
IN_FLIGHT = 8  # requests at a time, unless set otherwise
STYLES = {  # of the lines in the plot, two of which lie on one another
    "plain loop": {"color": "#c0392b", "lw": 2.5},
    "short loop": {"color": "#b7791f", "lw": 2.5, "linestyle": (0, (3, 2))},
    "connector": {"color": "#1f7a6f", "lw": 5, "zorder": 1.9},
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
        self.counts.update(requests=1, skipped=offset)
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
        module.op = operations(upsert=lambda table, row: rows.append(1))
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


def operations(**functions) -> SimpleNamespace:
    """Return what stands in for the SDK's operations: these functions, and others that do nothing."""
    names = ("upsert", "delete", "truncate", "checkpoint", "warning")
    return SimpleNamespace(**dict.fromkeys(names, lambda *arguments: None) | functions)


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


class Missing(NamedTuple):
    """How many users are not in a table, or in an old version, and whether a sync failed."""

    users: int
    failed: bool

    def __str__(self):
        return f"{self.users:,}, with an error" if self.failed else f"{self.users:,}"


def missing_users(contender: str, api, **settings: str) -> Missing:
    """Return what two syncs of the users of an API leave out; during the second, nothing changes."""
    import http_server
    import sdk

    sdk.Logging.LOG_LEVEL = sdk.Logging.Level.WARNING
    reader = importlib.import_module(MODULES[contender])
    names, state, failed = {}, {}, False
    reader.op = operations(
        upsert=lambda table, row: names.update({row["id"]: row["name"]}), checkpoint=state.update
    )
    with http_server.serve(api) as server:
        settings |= {"base_url": server.url, "page_size": str(PAGE_SIZE)}
        for _ in range(2):
            try:
                reader.update(settings, dict(state))
            except Exception:
                failed = True
            api.changes = 0
            api.now += timedelta(minutes=10)
    missing = sum(names.get(id) != user["name"] for id, user in api.users.items())
    return Missing(missing, failed)


@contextmanager
def postgres_api(count: int, most_ties: int):
    """Give an API over a table of PostgreSQL that sorts it by time alone, and in which nothing changes.

    The time has no index, and 2 to `most_ties` users share each: PostgreSQL returns these in an order that depends on
    limit plus offset.
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
        ties = min(dice.randint(2, most_ties), count - len(api.users))
        api.add(ties, EPOCH + timedelta(seconds=len(api.users)))
    rows = [(user["id"], user["updatedAt"]) for user in api.users.values()]
    dice.shuffle(rows)
    with postgres.serve() as uri, psycopg.connect(uri, autocommit=True) as database:
        database.execute("create table users (id text, time timestamptz)")
        database.cursor().executemany("insert into users values (%s, %s)", rows)
        database.execute("analyze users")
        yield api


def missing_of(contenders: list) -> dict:
    """Return what is missing in the tables of the contenders, in the order of these, by what happens to the list."""
    import demo

    def missing(changes: int) -> list:
        one_by_one = {"parallel_requests": "1"}  # so that the list changes the same way for all
        return [missing_users(name, demo.MovingApi(changes), **one_by_one) for name in contenders]

    def missing_of_ties(most: int) -> list:
        with postgres_api(demo.USERS, most) as api:
            return [missing_users(name, api) for name in contenders]

    changes = {("change", count): missing(count) for count in CHANGES}
    return changes | {("ties", most): missing_of_ties(most) for most in TIES}


# The comparison


def measure(contender: str, count: int, url: str, nowhere: bool) -> dict:
    """Run a contender as a process of its own and return its figures."""
    counts_url = f"{url.rsplit('/', 1)[0]}/counts"
    urlopen(counts_url).close()
    options = ["--users", str(count), "--url", url, *(["--nowhere"] if nowhere else [])]
    child = subprocess.run(
        [sys.executable, __file__, "run", contender, *options],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if child.returncode:
        raise SystemExit(child.stdout + child.stderr)
    with urlopen(counts_url) as response:
        counts = {"requests": 0, "skipped": 0} | json.load(response)
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


def show(delay: int, count: int, medians: dict, nowhere: bool):
    """Print all figures at a delay, in full."""
    titles = "wall s,/ floor,/ 8 at once,rows/s,CPU s,CPU us/row,/ plain,peak MB,requests,skipped"
    print(f"\nAn answer takes {delay} ms")
    print(f"{'':12}" + "".join(f"{title:>13}" for title in titles.split(",")))
    for contender, figures in medians.items():
        wall, cpu, requests = figures["wall"], figures["cpu"], figures["requests"]
        ideal = nowhere and contender == "connector" and requests * delay / 1000 / IN_FLIGHT
        plain = medians.get("plain loop")
        cells = [
            f"{wall:.2f}",
            multiple(medians, contender),
            f"{wall / ideal:.2f}" if ideal else "",
            f"{count / wall:,.0f}",
            f"{cpu:.2f}",
            f"{cpu / count * 1e6:.0f}",
            f"{cpu / plain['cpu']:.2f}" if plain else "",
            f"{figures['memory']:.0f}",
            f"{requests:.0f}",
            f"{figures['skipped']:,.0f}",
        ]
        print(f"{contender:12}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def multiple(medians: dict, contender: str) -> str:
    """Return the time of a contender as a multiple of the floor."""
    floor = medians.get("floor")
    return f"{medians[contender]['wall'] / floor['wall']:.2f}" if floor else ""


def show_summary(delays: dict, missing: dict, contenders: list):
    """Print the table of the README: what is missing; seconds, and multiples of the floor; requests; rows skipped."""
    titles = [f"missing: {count} {what}" for what, count in missing if count]
    titles += [f"s at {delay} ms (floors)" for delay in delays] + ["requests", "rows skipped"]
    print("\n| | " + " | ".join(titles) + " |\n" + "| --- " * (len(titles) + 1) + "|")
    for number, name in enumerate(contenders):
        last = list(delays.values())[-1][name]
        cells = [found[number] for (_, count), found in missing.items() if count]
        cells += [
            f"{medians[name]['wall']:.1f} ({multiple(medians, name)})"
            for medians in delays.values()
        ]
        cells += [f"{last['requests']:.0f}", f"{last['skipped']:,.0f}"]
        print(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    floors = ", ".join(f"{medians['floor']['wall']:.1f} s" for medians in delays.values())
    print(f"\nThe floor: {floors}")


def plot(delays: dict, missing: dict, contenders: list):
    """Draw what is missing, and the times, into .github/benchmark.svg."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11})
    mpl.rcParams["axes.titlesize"] = 12
    mpl.rcParams["svg.hashsalt"] = "benchmark"  # the same figure is the same file
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
    lost, of_ties, seconds = {}, {}, {}
    for number, name in enumerate(contenders):
        lost[name] = [missing["change", count][number].users for count in CHANGES]
        of_ties[name] = missing["ties", TIES[-1]][number]
        seconds[name] = [medians[name]["wall"] for medians in delays.values()]

    draw_lines(left, CHANGES, lost, "{:,}")
    left.set(title="Rows missing for good, of 5,000", xticks=CHANGES, ylim=(0, None))
    left.set(xlabel="rows that change before each page")
    draw_bars(middle, of_ties)
    middle.set(title=f"Missing if up to {TIES[-1]} share a time")
    middle.set(xlabel=f"{PAGE_SIZE} a page, PostgreSQL without an index", xticks=[0, 2500, 5000])
    draw_lines(right, list(delays), seconds, "{:.1f} s")
    right.set(title="Seconds of a first sync", xticks=list(delays), ylim=(0, None))
    right.set(xlabel="ms an answer takes")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.get_layout_engine().set(w_pad=0.2)
    path = PROJECT / ".github" / "benchmark.svg"
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)


def draw_lines(axes, x: list, values: dict, text: str):
    """Draw a line for each contender, with its last value behind it as a text."""
    labels = {}  # with the value and the color of each
    for name, y in values.items():
        axes.plot(x, y, **STYLES[name], marker="o", label=name, clip_on=False)
        labels[text.format(y[-1])] = y[-1], STYLES[name]["color"]
    height = max(map(max, values.values()))
    lowest = -height
    for label, (value, color) in sorted(labels.items(), key=lambda label: label[1]):
        lowest = max(value, lowest + 0.1 * height)  # above the last, where lines end near by
        axes.text(x[-1] * 1.04, lowest, label, color=color, fontweight="bold", va="center")
    axes.legend(frameon=False, loc="upper left")


def draw_bars(axes, values: dict):
    """Draw a bar for each contender, with its value behind it as a text."""
    for name, found in values.items():
        color = STYLES[name]["color"]
        label = f"{found.users:,}" + ("\n(error)" if found.failed else "")
        bar = axes.barh(name, found.users, color=color, height=0.5)
        axes.bar_label(bar, [label], padding=4, color=color, fontweight="bold")
    axes.set(xlim=(0, 6000))
    axes.invert_yaxis()


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
            show(delay, options.users, delays[delay], options.nowhere)
        if not options.nowhere:
            contenders = [name for name in contenders if name != "floor"]
            missing = missing_of(contenders)
            show_summary(delays, missing, contenders)
            if options.plot:
                plot(delays, missing, contenders)


if __name__ == "__main__":
    main()
