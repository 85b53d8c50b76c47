"""What the README says that the code says too."""

import re

from pydantic import SecretStr

import connector
import sdk

README = (sdk.PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_settings_is_what_the_connector_declares():
    for name, field in connector.Settings.model_fields.items():
        default = "" if field.default in (None, SecretStr("")) else f"`{field.default}`".lower()
        default = "required" if field.is_required() else default
        assert f"| `{name}` | {field.title} | {default} | {field.metadata[-1]} |" in README
        assert f"- `{name}`: {field.description}" in re.sub(r"\s+", " ", README)
    assert len(re.findall(r"^\| `\w+` \| .* \| .* \| .* \|$", README, re.M)) == len(
        connector.Settings.model_fields
    )


def test_no_line_is_wider_than_120():
    assert [line for line in README.splitlines() if len(line) > 120] == []
