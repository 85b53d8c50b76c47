"""The worked example of the README, another list: its diff is applied to a copy, which then syncs for real."""

import ast
import re
import shutil
import subprocess
import sys
from datetime import datetime
from decimal import Decimal

import duckdb
import pytest

import sdk

SYNC = """
import json, sys
sys.path[:0] = ["tests", "."]
from datetime import timedelta
from pathlib import Path
import connector, http_server, sdk
from memory_api import EPOCH, MemoryApi

api = MemoryApi()
api.add(249, amount=12345679.91, line_items=[{"sku": "A-1", "quantity": 2}])
api.add(1, updated_at=EPOCH + timedelta(hours=1), amount=0.1, line_items=[], note="a new field")
answer = api.answer
api.answer = lambda request: (
    answer(request) if request.headers.get("X-Api-Key") == "s3cr3t" else (401, {}, "no key")
)
with http_server.serve(api) as server:
    api.before = [None, lambda: api.touch("1")]
    settings = {"base_url": server.url, "api_key": "s3cr3t"}
    sdk.run(connector.connector, Path("."), settings)
    sdk.run(connector.connector, Path("."), settings)
"""

# What the API of the orders calls its fields and how it answers: all that the tests need to know
NAMES = {
    'TABLE, ID, UPDATED_AT, CREATED_AT, ROWS = "user", "id", "updatedAt", "createdAt", "data"': (
        'TABLE, ID, UPDATED_AT, CREATED_AT, ROWS = "orders", "order_id", "modified_at", '
        '"created_at", "items"'
    ),
    '    "address": "STRING",\n    "company": "STRING",\n    "job": "STRING",\n': (
        '    "amount": {"type": "DECIMAL", "precision": 12, "scale": 2},\n    "line_items": "JSON",\n'
    ),
    '{ROWS: rows, "offset": offset, "limit": limit, "total": total}': (
        '{ROWS: rows, "meta": {"total": total}}'
    ),
    'return time.strftime("%Y-%m-%dT%H:%M:%SZ")': (
        'return (time + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00")'
    ),
    '"job": "Job"': '"amount": "1.00"',
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A copy of the project, adapted as the README says: the connector by its diff, the tests by the names."""
    folder = tmp_path_factory.mktemp("orders")
    shutil.copy(sdk.PROJECT / "connector.py", folder)
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    shutil.copytree(sdk.PROJECT / "tests", folder / "tests", ignore=ignored)
    readme = (sdk.PROJECT / "README.md").read_text(encoding="utf-8")
    (diff,) = re.findall("```diff\n(.*?)```", readme, re.DOTALL)
    changed = [line for line in diff.splitlines() if re.match(r"[+-](?!\+\+|--)", line)]
    assert 0 < len(changed) < 20
    (folder / "orders.diff").write_text(diff, encoding="utf-8", newline="\n")
    command = ["git", "apply", "--unsafe-paths", "orders.diff"]
    subprocess.run(command, cwd=folder, check=True)
    api = folder / "tests" / "memory_api.py"
    text = api.read_text(encoding="utf-8")
    for old, new in NAMES.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    api.write_text(text, encoding="utf-8")
    return folder


def run(folder, *arguments: str) -> str:
    child = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=sdk.environment(),
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stdout
    return child.stdout


def test_the_adapted_connector_syncs_orders_with_exact_amounts_and_line_items(adapted):
    output = run(adapted, "-c", SYNC)
    assert "into `orders`" in output
    assert "users" not in output
    with duckdb.connect(str(adapted / "files" / "warehouse.db")) as warehouse:
        found = warehouse.execute(
            "select order_id, amount, line_items::varchar, modified_at at time zone 'UTC' "
            "from tester.orders where order_id in ('2', '250') order by order_id"
        ).fetchall()
        assert warehouse.execute("select count(*) from tester.orders").fetchone() == (250,)
    assert found == [
        (
            "2",
            Decimal("12345679.91"),
            '[{"sku": "A-1", "quantity": 2}]',
            datetime(2024, 1, 1, 0, 0, 2),
        ),
        ("250", Decimal("0.10"), "[]", datetime(2024, 1, 1, 1)),
    ]


def test_no_message_of_the_adapted_connector_speaks_of_users(adapted):
    tree = ast.parse((adapted / "connector.py").read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [
        ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, documented)
    ]
    texts = [
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    assert [text for text in texts if "users" in text.lower() and text not in docstrings] == []


def test_the_tests_of_reading_pass_on_the_adapted_connector_and_api(adapted):
    names = ("test_sync.py", "test_moving_pages.py", "test_read_ahead.py")
    output = run(
        adapted,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *[f"tests/{name}" for name in names],
    )
    assert " passed" in output
