"""config.example.toml is what people copy: it must load, and say what holds when a key is left out."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from worker.configuration import load_settings
from worker.settings import LineSettings, Settings, line_configs

EXAMPLE = Path(__file__).parents[1] / "config.example.toml"
EXAMPLES_OWN = {"redis.url", "worker.name", "lines"}  # addresses and names are every plant's own


@pytest.fixture(autouse=True)
def _no_outer_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MHPC_")]:
        monkeypatch.delenv(name)


def leaves(model: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every key of a configuration, dotted, with its value."""
    found: dict[str, Any] = {}
    for key in type(model).model_fields:
        value = getattr(model, key)
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, BaseModel) else {prefix + key: value}
    return found


def written() -> set[str]:
    tables = tomllib.loads(EXAMPLE.read_text())
    nested = {f"{name}.{key}" for name, table in tables.items() if isinstance(table, dict) for key in table}
    return nested | {name for name, value in tables.items() if not isinstance(value, dict)}


def uncommented() -> str:
    return re.sub(r"^# (\[\[|\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)


def test_it_loads_with_one_line() -> None:
    assert [line.name for line in load_settings(EXAMPLE).lines] == ["press-3"]


def test_no_key_is_missing() -> None:
    assert written() == set(leaves(Settings()))


def test_every_value_is_the_default() -> None:
    settings = load_settings(EXAMPLE)
    assert settings.model.weights == settings.model.weights_source == Settings().model.weights_source
    own = {*EXAMPLES_OWN, "model.weights"}
    expected = {key: value for key, value in leaves(Settings()).items() if key not in own}
    assert {key: value for key, value in leaves(settings).items() if key not in own} == expected


def test_what_is_commented_out_loads_too_and_shows_every_override(tmp_path: Path) -> None:
    whole = tmp_path / "config.toml"
    whole.write_text(uncommented())
    settings = load_settings(whole)
    assert [line.name for line in line_configs(settings)] == ["press-3", "press-4"]
    assert set(tomllib.loads(uncommented())["lines"][1]) == set(LineSettings.model_fields)


def test_every_key_is_explained() -> None:
    keys = [text for text in EXAMPLE.read_text().splitlines() if re.match(r"\w+ = ", text)]
    assert len(keys) > 25
    assert [text for text in keys if "#" not in text] == []
