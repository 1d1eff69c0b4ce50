import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.worker.calling import Call
from worker.configuration import load_settings
from worker.explained import EXPLAINED
from worker.settings import LineSettings, Settings

ROOT = Path(__file__).parents[3]


def tables() -> dict[str, type[BaseModel]]:
    """The classes of all tables, by name."""
    kinds = [field.annotation for field in Settings.model_fields.values()]
    found: list[type[BaseModel]] = [Settings, LineSettings]
    found += [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return {kind.__name__: kind for kind in found}


def test_every_key_is_explained_and_nothing_else_is() -> None:
    settings_own = {"log_format", "lines"}  # its other keys are tables, which explain themselves
    keys = {name: settings_own if kind is Settings else {"", *kind.model_fields} for name, kind in tables().items()}
    assert {name: set(texts) for name, texts in EXPLAINED.items()} == keys


def test_the_page_that_explains_the_configuration_is_current(call: Call) -> None:
    ended = call("config", "docs")
    assert (ended.code, ended.err) == (0, "")
    assert (ROOT / "docs" / "configure.md").read_text() == ended.out, "mhpc-worker config docs > docs/configure.md"
    for kind in tables().values():
        for key in kind.model_fields if kind is not Settings else ("log_format",):
            assert f"| `{key}` |" in ended.out


def test_the_schema_is_json_and_says_what_holds_and_what_it_is_for(call: Call) -> None:
    schema = json.loads(call("config", "schema").out)
    port = schema["$defs"]["HttpSettings"]["properties"]["port"]
    assert (port["default"], port["minimum"], port["maximum"]) == (9108, 0, 65535)
    assert "any free one" in port["description"]
    assert schema["$defs"]["RedisSettings"]["properties"]["url"]["default"] == "redis://127.0.0.1:6379/0"
    assert schema["additionalProperties"] is False


def test_what_holds_is_shown_with_where_it_comes_from(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[http]\nport = 9200\nhost = '127.0.0.1'\n[learning]\nimages = 7\n[[lines]]\nname = 'press-3'\n")
    monkeypatch.setenv("MHPC_LEARNING__IMAGES", "9")
    ended = call("config", "show", "--config", path, "--redis", "redis://10.0.0.5:1/0")
    assert (ended.code, ended.err) == (0, "")
    lines = dict(text.split(" = ", 1) for text in ended.out.splitlines() if " = " in text)
    assert lines["url"].split() == ['"redis://10.0.0.5:1/0"', "#", "--redis"]
    assert f"port = 9200{' ' * 22} # {path}" in ended.out
    assert f"images = 9{' ' * 23} # MHPC_LEARNING__IMAGES" in ended.out
    assert 'host = "127.0.0.1"\n' in ended.out  # a default, whoever says it
    assert 'name = "press-3"' in ended.out


def test_what_is_shown_is_a_configuration_that_means_the_same(call: Call, tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text(
        "[worker]\nname = 'Prüfstand \\ \"1\" 😀'\n[model]\nlayers = ['layer3']\n[[lines]]\nname = 'a'\nbank_size = 9\n"
        "learning = { images = 5 }\n[[lines]]\nname = 'b'\n"
    )
    second.write_text(call("config", "show", "--config", first).out)
    before, after = load_settings(first, environ={}), load_settings(second, environ={})
    assert (after.lines, after.worker, after.model) == (before.lines, before.worker, before.model)
    assert json.loads(call("config", "show", "--config", first, "--json").out)["worker"]["name"] == after.worker.name
    assert set(tomllib.loads(second.read_text())) == set(Settings.model_fields)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_secrets_are_not_shown(call: Call, tmp_path: Path, form: list[str]) -> None:
    path = tmp_path / "config.toml"
    secrets = ["hunter2", "swordfish", "tokens-are-long-enough", "https://tokens-look-like/addresses"]
    path.write_text(
        f"[redis]\nurl = 'redis+sentinel://anna:{secrets[0]}@h:1/m/0?sentinel_password={secrets[1]}'\n"
        f"[console]\ntokens = {{ anna = '{secrets[2]}', bert = '{secrets[3]}' }}\n"
    )
    ended = call("config", "show", "--config", path, *form)
    assert ended.code == 0
    assert "redis+sentinel://h:1/m/0" in ended.out
    assert ended.out.count("(secret)") == 2
    assert [secret for secret in secrets if secret in ended.out + ended.err] == []


@pytest.mark.parametrize("command", ["show", "schema", "docs"])
def test_what_is_unknown_ends_on_one_line(call: Call, config: Any, command: str) -> None:
    ended = call("config", command, "--nonsense")
    assert ended.code == 2
    assert "No such option: --nonsense; see " in ended.error
    assert ended.error.endswith(f"config {command} --help\n")


def test_a_file_that_is_wrong_is_told_and_not_shown(call: Call, config: Any) -> None:
    ended = call("config", "show", "--config", config(top="[modle]\nbackbone = 'tiny'"))
    assert ended.code == 2
    assert "modle: unknown key" in ended.error
    assert ended.out == ""
