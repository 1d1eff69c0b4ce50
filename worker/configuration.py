"""Reading the configuration: defaults < TOML < environment (`MHPC_...`, nested by `__`) < flags. Imports no torch."""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings.exceptions import SettingsError

from worker.errors import ConfigurationError
from worker.settings import ENV_PREFIX, LineSettings, Settings

EXPECTED = {"model_type": "expected a table of keys", "tuple_type": "expected a list; of tables: [[lines]]"}


def load_settings(
    config: Path | None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Read the configuration.

    Raises:
        ConfigurationError: a file that cannot be read, an unknown key or environment name, or a value of the wrong
            kind; one line that names each key, what came and what is expected.
    """
    toml = _read_toml(config) if config else {}
    _refuse_unknown_environment(environ)
    layers: dict[str, Any] = {"_toml": toml, "_flags": dict(flags or {})}
    try:
        return Settings(**layers)
    except ValidationError as error:
        problems, given = error.errors(include_url=False), list(_layers(config, toml, layers["_flags"], environ))
        told = (f"{_source(each, given) or config or 'configuration'}: {_told(each)}" for each in problems)
        raise ConfigurationError("; ".join(told)) from None
    except SettingsError as error:  # its text names the section, not the variable
        section = str(error).split('"')[1]
        names = [name for name in environ if name.upper().startswith((ENV_PREFIX + section).upper())]
        raise ConfigurationError(
            f"environment {', '.join(sorted(names))}: lists and tables are given as JSON, such as "
            'MHPC_MODEL__LAYERS=\'["layer2", "layer3"]\''
        ) from None


def line_settings(name: str, value: str | bytes, source: str) -> LineSettings:
    """A line's settings from JSON, as a table of [[lines]] without its name.

    Raises:
        ConfigurationError: what cannot be used; one line that begins with `source`.
    """
    try:
        given = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{source}: not JSON: {error}; expected an object, such as {{}}") from None
    if not isinstance(given, dict) or "name" in given:
        what = "it holds a name" if isinstance(given, dict) else f"it is {given!r:.80}"
        raise ConfigurationError(f"{source}: {what}; expected a JSON object with keys of [[lines]] but the name")
    try:
        return LineSettings.model_validate({**given, "name": name})
    except ValidationError as error:
        told = "; ".join(_told(each, ("lines",)) for each in error.errors(include_url=False))
        raise ConfigurationError(f"{source}: {told}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; copy config.example.toml and name it by --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: not readable as TOML: {error}") from None


def _refuse_unknown_environment(environ: Mapping[str, str]) -> None:
    """pydantic-settings ignores unknown names at the top level and indices into lists; a typo must not go unseen."""
    for name in sorted(environ):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        table: Any = Settings
        for part in name[len(ENV_PREFIX) :].lower().split("__"):
            fields = table.model_fields if isinstance(table, type) and issubclass(table, BaseModel) else {}
            if part not in fields:
                known = ", ".join(sorted(fields)) or "nothing below it (give a list as JSON)"
                raise ConfigurationError(f"environment {name}: {part!r} is unknown; known here: {known}")
            table = fields[part].annotation


def _told(problem: ErrorDetails, above: tuple[str, ...] = ()) -> str:
    """The key, what is expected and what came, on one line; `above` leads to the table that keys are told from."""
    loc, kind, came = problem["loc"], problem["type"], problem["input"]
    key = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"{key}: unknown key; known here: {', '.join(_keys_beside((*above, *loc)))}"
    text = EXPECTED.get(kind, problem["msg"].removeprefix("Value error, "))
    address = {"redis", "tokens"} & set(loc) or loc[:2] == ("snapshots", "directory")  # it may carry a password
    secret = address or isinstance(came, dict)
    return f"{key}: {text}" if secret else f"{key}: {text} (came: {came!r})"


def _layers(
    config: Path | None, toml: dict[str, Any], flags: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """Where settings come from and what each source says, the topmost first; a variable is a source of its own."""
    yield "command line", flags
    names = [name for name in environ if name.upper().startswith(ENV_PREFIX)]
    for name in sorted(names, key=lambda name: (-name.count("__"), name)):  # a key's goes before its table's
        path = name[len(ENV_PREFIX) :].lower().split("__")
        try:
            value = json.loads(environ[name])
        except (ValueError, RecursionError):  # a text
            value = environ[name]
        for part in reversed(path):
            value = {part: value}
        yield f"environment {name}", value
    yield str(config), toml


def _source(problem: ErrorDetails, layers: list[tuple[str, Any]]) -> str:
    """The topmost layer that has the value at fault, or else the table that it belongs to; "" where none has. Where
    values of a table do not go together, it may be any of those that have one in it: all are named."""
    loc = problem["loc"]
    together = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    for depth in range(len(loc), 0, -1):
        if having := [name for name, values in layers if _has(values, loc[:depth])]:
            return ", ".join(having) if together else having[0]
    return ""


def _has(values: Any, loc: tuple[int | str, ...]) -> bool:
    try:
        for part in loc:
            values = values[part]
    except (LookupError, TypeError):
        return False
    return True


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    table: Any = Settings
    for part in loc[:-1]:
        if isinstance(part, int):
            table = LineSettings
        else:
            annotation = table.model_fields[part].annotation
            arms = [arm for arm in getattr(annotation, "__args__", ()) if isinstance(arm, type)]
            table = next((a for a in [annotation, *arms] if isinstance(a, type) and issubclass(a, BaseModel)), table)
    return sorted(table.model_fields)
