"""For real, with nothing mocked: the playground, the SDK, DuckDB, and the commands a user types."""

import importlib.util
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

import connector
import playground
import sdk


@pytest.fixture(scope="module")
def base_url():
    with playground.serve() as url:
        yield url


def expected_rows() -> dict:
    """The playground's users as they should stand in the table."""
    rows = {}
    for user in playground.users():
        row = {name: user[name] for name in ("id", "name", "email", "address", "company", "job")}
        for column, field in (("updated_at", "updatedAt"), ("created_at", "createdAt")):
            row[column] = datetime.strptime(user[field], "%Y-%m-%dT%H:%M:%SZ")
        rows[user["id"]] = row
    return rows


def test_every_user_lands_in_duckdb_and_the_next_sync_reads_only_what_changed(base_url, tmp_path):
    configuration = {"base_url": base_url, "page_size": "100"}
    users = playground.users()
    assert sdk.run(connector.connector, tmp_path, configuration) == len(users) == 200
    assert sdk.table(tmp_path) == expected_rows()

    edge = sum(user["updatedAt"] >= sdk.state(tmp_path)["last_updated_at"] for user in users)
    assert sdk.run(connector.connector, tmp_path, configuration) == edge

    users[3].update(name="Changed", updatedAt=playground.now())
    users.append(users[4] | {"id": "new", "updatedAt": playground.now()})
    assert sdk.run(connector.connector, tmp_path, configuration) == edge + 2
    assert sdk.table(tmp_path) == expected_rows()


@pytest.fixture(scope="module")
def commands(base_url, tmp_path_factory):
    """What the commands a user types print, and the folders they ran in.

    Each looks its dependencies up on the network first, so they run at one time.
    """
    folders = {name: tmp_path_factory.mktemp(name) for name in ("debug", "script", "package")}
    for folder in folders.values():
        sdk.copy_project(folder, base_url=base_url)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = [sys.executable, str(folders["script"] / "connector.py")]

    def run(*commands):
        return [
            subprocess.run(
                command,
                cwd=elsewhere,
                env=sdk.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=120,
            )
            for command in commands
        ]

    with ThreadPoolExecutor() as pool:
        runs = {
            "debug": pool.submit(run, [sdk.fivetran(), "debug", str(folders["debug"])]),
            "script": pool.submit(run, script, script),
            "package": pool.submit(
                run, [sdk.fivetran(), "package", str(folders["package"]), "--non-interactive"]
            ),
        }
        return {name: (folders[name], future.result()) for name, future in runs.items()}


def test_fivetran_debug_syncs_every_user_and_leaves_the_requirements_as_they_are(commands):
    folder, (run,) = commands["debug"]
    assert run.returncode == 0, run.stdout + run.stderr
    assert sdk.table(folder).keys() == expected_rows().keys()
    assert (folder / "requirements.txt").read_text() == (
        sdk.PROJECT / "requirements.txt"
    ).read_text()


def test_python_connector_py_works_from_anywhere_and_goes_on_where_it_stopped(commands):
    folder, (first, second) = commands["script"]
    assert first.returncode == second.returncode == 0, first.stdout + second.stdout
    upserts = [int(re.search(r"Upserts +\| (\d+)", run.stdout)[1]) for run in (first, second)]
    assert upserts[0] == len(playground.users())
    assert upserts[1] < 20
    assert sdk.table(folder).keys() == expected_rows().keys()


def test_the_package_holds_a_connector_that_can_be_imported_and_no_configuration(
    commands, tmp_path
):
    folder, (run,) = commands["package"]
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = (folder / "files").glob("*.zip")
    with zipfile.ZipFile(path) as package:
        assert "configuration.json" not in package.namelist()
        package.extractall(tmp_path)
    spec = importlib.util.spec_from_file_location("packaged_connector", tmp_path / "connector.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert module.connector.update_method is module.update


def test_the_requirements_are_pinned_and_leave_out_what_fivetran_preinstalls():
    lines = (sdk.PROJECT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line.split("==")[0] for line in lines] == ["pydantic", "typing_extensions"]
