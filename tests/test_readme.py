"""What the README says that the code says too."""

from pydantic import SecretStr

import connector
import sdk

README = (sdk.PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_settings_is_what_the_connector_declares():
    table = "| Setting | Default | What it does, and what is allowed |\n| --- | --- | --- |\n"
    for name, field in connector.Settings.model_fields.items():
        default = "" if field.default in (None, SecretStr("")) else f"`{field.default}`".lower()
        default = "required" if field.is_required() else default
        table += f"| `{name}` | {default} | {field.description} |\n"
    assert f"\n\n{table}\n" in README


def test_no_line_is_wider_than_120():
    assert [line for line in README.splitlines() if len(line) > 120] == []
