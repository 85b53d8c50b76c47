"""Ways to run the connector with the SDK: in this process with its runner, or with the `fivetran` command."""

import atexit
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import duckdb
from fivetran_connector_sdk import Connector, Logging
from fivetran_connector_sdk_cli import core_adapter

PROJECT = Path(__file__).resolve().parent.parent
RECIPES = PROJECT / "tests" / "recipes"
sys.path.insert(0, str(PROJECT))
connector = importlib.import_module("connector")


def copy_project(folder: Path, **configuration: str) -> Path:
    """Copy what the SDK needs of the project to a folder, with these settings on top of the shipped ones."""
    for name in ("connector.py", "configuration.json", "requirements.txt", ".gitignore"):
        shutil.copy(PROJECT / name, folder)
    path = folder / "configuration.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | configuration), encoding="utf-8"
    )
    return folder


SECTION = re.compile(r"^TABLES = .*?(?=^# [^\n]+\n\n|\Z)", re.DOTALL | re.MULTILINE)


def adapted(folder: Path, recipe: str, replacements: dict | None = None) -> ModuleType:
    """Import a copy of connector.py with the section of a recipe, in which texts may be replaced.

    From `TABLES` on, a file of the folder recipes is what stands in the section "The API" from `TABLES` on.
    """
    section = SECTION.search((RECIPES / f"{recipe}.py").read_text(encoding="utf-8"))[0]
    for old, new in (replacements or {}).items():
        assert section.count(old) == 1, old
        section = section.replace(old, new)
    shipped = (PROJECT / "connector.py").read_text(encoding="utf-8")
    path = folder / "connector.py"
    code, count = SECTION.subn(lambda _: f"{section}\n\n", shipped)
    assert count == 1
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("adapted_connector", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # the SDK does not enter it in sys.modules either
    return module


def environment() -> dict:
    """The environment for the `fivetran` command: it calls pipreqs, which is installed beside it, by name."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONIOENCODING": "utf-8",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def fivetran() -> str:
    """The path of the `fivetran` command."""
    return shutil.which("fivetran", path=environment()["PATH"])


def run(connector: Connector, folder: Path, configuration: dict) -> int:
    """Run one sync with the SDK's runner, as `fivetran debug` does after its checks. Returns the number of upserts."""
    Logging.LOG_LEVEL = Logging.Level.INFO
    with mock.patch.object(atexit, "register"):  # the SDK would print more at exit, once per run
        return core_adapter.run(connector, str(folder), configuration, state(folder))["Upserts"]


def form_failure(connector: Connector, configuration: dict) -> str | None:
    """Run the tests of the setup form. Returns what the first one that fails says, None if all pass."""
    Logging.LOG_LEVEL = Logging.Level.INFO
    for test in connector.configuration_form_method().to_response().tests:
        result = connector.run_test(test.name, configuration)
        if result.failure is not None:
            return result.failure
    return None


def state(folder: Path) -> dict:
    path = folder / "files" / "state.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def table(folder: Path) -> dict:
    """The rows of tester.user by id: a dict each, its times as `datetime`s in UTC, without the SDK's own columns."""
    with duckdb.connect(str(folder / "files" / "warehouse.db"), read_only=True) as warehouse:
        found = warehouse.execute(
            "select * exclude (_fivetran_synced, _fivetran_deleted) "
            "replace (updated_at at time zone 'UTC' as updated_at, created_at at time zone 'UTC' as created_at) "
            "from tester.user"
        )
        names = [column[0] for column in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    return {row["id"]: row for row in rows}


def rows(folder: Path, columns: str, table: str) -> list:
    """Those columns of the rows of a table that are not marked as deleted."""
    with duckdb.connect(str(folder / "files" / "warehouse.db"), read_only=True) as warehouse:
        return warehouse.execute(
            f"select {columns} from tester.{table} where not _fivetran_deleted"
        ).fetchall()


def deleted(folder: Path, table: str = "user") -> set:
    """The ids of the rows of a table that are marked as deleted."""
    with duckdb.connect(str(folder / "files" / "warehouse.db"), read_only=True) as warehouse:
        found = warehouse.execute(f"select id from tester.{table} where _fivetran_deleted")
        return {id for (id,) in found.fetchall()}
