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


@pytest.mark.slow
def test_the_commands_a_user_types(base_url, tmp_path_factory):
    """Each looks its dependencies up on the network first, so they run at one time."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("debug", "script", "package")}
    for folder in folders.values():
        sdk.copy_project(folder, base_url=base_url)
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*command, times=1):
        for _ in range(times):
            run = subprocess.run(
                command,
                cwd=elsewhere,
                env=sdk.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=120,
            )
            assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    with ThreadPoolExecutor() as pool:
        script = pool.submit(run, sys.executable, folders["script"] / "connector.py", times=2)
        debug = pool.submit(run, sdk.fivetran(), "debug", folders["debug"])
        command = [sdk.fivetran(), "package", folders["package"], "--non-interactive"]
        package = pool.submit(run, *command)
    for done in (script, debug, package):
        done.result()

    # `fivetran debug` syncs every user, and leaves the requirements as they are
    assert sdk.table(folders["debug"]).keys() == expected_rows().keys()
    requirements = (folders["debug"] / "requirements.txt").read_text()
    assert requirements == (sdk.PROJECT / "requirements.txt").read_text()
    # `python connector.py` works from anywhere, and goes on where it stopped
    assert sdk.table(folders["script"]).keys() == expected_rows().keys()
    assert int(re.search(r"Upserts +\| (\d+)", script.result())[1]) < 20
    # the package holds a connector that can be imported, and no configuration
    (path,) = (folders["package"] / "files").glob("*.zip")
    with zipfile.ZipFile(path) as zipped:
        assert "configuration.json" not in zipped.namelist()
        zipped.extractall(elsewhere)
    spec = importlib.util.spec_from_file_location("packaged_connector", elsewhere / "connector.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.connector.update_method is module.update


def test_the_requirements_are_pinned_and_leave_out_what_fivetran_preinstalls():
    lines = (sdk.PROJECT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line.split("==")[0] for line in lines] == ["pydantic", "typing_extensions"]
