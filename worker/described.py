"""The configuration for people: its JSON schema, docs/configure.md, and what holds now. Imports no torch."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from worker.settings import RedisSettings, Settings
from worker.streams.address import shown

HIDDEN = "(secret)"
HEAD = """# Configuration

Every key with its default, made from the settings' own schema by `mhpc-worker config docs`; a test holds it to them.
[config.example.toml](../config.example.toml) is the same as a file to copy. `mhpc-worker config show` prints what holds
and where it comes from, `mhpc-worker config schema` the JSON schema, for editors that complete and check TOML by one.

Defaults < TOML file (`--config`) < environment < flags. In the environment a key is `MHPC_TABLE__KEY`, lists and tables
are JSON: `MHPC_HTTP__PORT=9109`, `MHPC_MODEL__LAYERS='["layer2", "layer3"]'`. Unknown keys are errors, and so are
unknown names that begin with `MHPC_`. SIGHUP has a worker read its lines anew; of what else changed it says that a
restart takes it over.
"""

Schema = dict[str, Any]


def schema() -> Schema:
    """The settings' JSON schema; the default address is shown as it is, since it holds no password."""
    found = Settings.model_json_schema()
    url = RedisSettings().url.get_secret_value()
    found["properties"]["redis"]["default"]["url"] = url
    found["$defs"]["RedisSettings"]["properties"]["url"]["default"] = url
    return found


# -- docs/configure.md -------------------------------------------------------------------------------------------------


def as_markdown() -> str:
    """The page docs/configure.md."""
    whole = schema()
    tables = [(name, _definition(whole, about)) for name, about in whole["properties"].items()]
    loose = {name: about for name, about in whole["properties"].items() if name == "log_format"}
    parts = [HEAD, _section("Outside any table", {"properties": loose}, whole)]
    parts += [_section(f"[{name}]", about, whole) for name, about in tables if about and name != "lines"]
    parts += [_section("[[lines]]", whole["$defs"]["LineSettings"], whole)]
    return "\n".join(parts)


def _definition(whole: Schema, about: Schema) -> Schema:
    found: Schema = whole["$defs"].get(about.get("$ref", "").rpartition("/")[2], {})
    return found


def _section(title: str, table: Schema, whole: Schema) -> str:
    rows = [
        f"| `{key}` | {_default(about)} | {_expected(about, whole)} | {about['description']} |"
        for key, about in table["properties"].items()
    ]
    about = [table["description"], ""] if "description" in table else []
    head = ["| key | default | expected | what it is for |", "| --- | --- | --- | --- |"]
    return "\n".join([f"## {title}", "", *about, *head, *rows, ""])


def _default(about: Schema) -> str:
    default = about.get("default")
    return "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"


def _expected(about: Schema, whole: Schema) -> str:
    """Type and bounds in words."""
    if "anyOf" in about:
        return _expected(about["anyOf"][0], whole)
    if "$ref" in about:
        return "table"
    if "enum" in about:
        return ", ".join(f'`"{value}"`' for value in about["enum"])
    if "prefixItems" in about:
        return f"list of {len(about['prefixItems'])}: {_expected(about['prefixItems'][0], whole)}"
    if about["type"] == "array":
        return f"list of {'tables' if '$ref' in about['items'] else 'texts'}"
    kinds = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "object": "table"}
    kind = kinds.get(about["type"], "path" if about.get("format") == "path" else "text")
    return " ".join([kind, *_bounds(about)])


def _bounds(about: Schema) -> Iterator[str]:
    words = {
        "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}",
        "multipleOf": "in steps of {}", "maxLength": "of at most {} characters",
    }  # fmt: skip
    return (text.format(about[word]) for word, text in words.items() if word in about)


# -- what holds --------------------------------------------------------------------------------------------------------


def as_json(settings: Settings) -> dict[str, Any]:
    """All keys with their values; secrets are not in it."""
    return {name: _plain(getattr(settings, name)) for name in type(settings).model_fields}


def as_toml(settings: Settings, source: Callable[[str, str], str]) -> str:
    """All keys as a TOML file; secrets are not in it.

    Args:
        source: where a key comes from, by its table ("" for none) and name; asked for what is no default.
    """
    defaults = Settings.model_construct()  # Settings() would look into the environment
    tables = [(name, getattr(settings, name)) for name in Settings.model_fields]
    lines = [_line("log_format", settings, defaults, "", source)]
    for name, table in tables:
        if isinstance(table, BaseModel):
            default = getattr(defaults, name)
            lines += ["", f"[{name}]"]
            lines += [_line(key, table, default, name, source) for key in type(table).model_fields]
    for line in settings.lines:
        given = _plain(line, given_only=True)
        lines += ["", "[[lines]]", *(f"{key} = {_toml(value)}" for key, value in given.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, table: BaseModel, default: BaseModel, name: str, source: Callable[[str, str], str]) -> str:
    value = _value(table, key)
    text = f"# {key} is not set" if value is None else f"{key} = {_toml(value)}"
    return text if getattr(table, key) == getattr(default, key) else f"{text:<33} # {source(name, key)}"


def _value(table: BaseModel, key: str, given_only: bool = False) -> Any:
    """As JSON has it. The address of Redis is the one secret of which a part is shown: by its key, since any other
    may look like an address."""
    value = getattr(table, key)
    if isinstance(table, RedisSettings) and key == "url":
        return shown(value.get_secret_value())
    return _plain(value, given_only)


def _plain(value: Any, given_only: bool = False) -> Any:
    """As JSON has it; of secrets nothing."""
    if isinstance(value, BaseModel):
        names = [key for key in type(value).model_fields if not given_only or key in value.model_fields_set]
        return {key: _value(value, key, given_only) for key in names}
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, given_only) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _toml(value: Any) -> str:
    """TOML writes texts, numbers and lists as JSON does; tables within a line have = for :."""
    if value and isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
