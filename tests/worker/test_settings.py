import json
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from worker.configuration import load_settings
from worker.errors import ConfigurationError
from worker.settings import LINE_NAME, Settings, line_configs


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def refusal(config: Path | None, flags: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(config, flags)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_code == 2
    return text


def test_flags_go_before_environment_before_file_before_defaults(toml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toml("[http]\nhost = 'file'\nport = 1\n[learning]\nimages = 7\n[snapshots]\nkeep = 9")
    monkeypatch.setenv("MHPC_HTTP__PORT", "2")
    monkeypatch.setenv("MHPC_LEARNING__IMAGES", "8")
    settings = load_settings(config, {"http": {"port": 3}})
    assert (settings.http.port, settings.learning.images, settings.http.host) == (3, 8, "file")
    assert (settings.snapshots.keep, settings.calibration.images) == (9, 500)


def test_lists_and_lines_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHPC_LINES", json.dumps([{"name": "press-3"}]))
    monkeypatch.setenv("MHPC_MODEL__LAYERS", '["layer3"]')
    settings = load_settings(None)
    assert [line.name for line in settings.lines] == ["press-3"]
    assert settings.model.layers == ("layer3",)


def test_the_workers_name_is_the_hosts_unless_it_is_given() -> None:
    assert load_settings(None, {"worker": {"device": "cpu"}}).worker.name == socket.gethostname()
    assert load_settings(None, {"worker": {"name": "station-1"}}).worker.name == "station-1"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().http.port = 1


def test_a_line_overrides_key_by_key(toml: Any) -> None:
    config = toml(
        "[model]\nbank_size = 100\n[calibration]\nimages = 40\nfalse_positive_rate = 0.02\n"
        "[[lines]]\nname = 'a'\nbank_size = 50\ncalibration = { images = 30 }\nscoring = { top_k = 1 }\n"
        "[[lines]]\nname = 'b'\nlearning = { images = 5 }"
    )
    a, b = line_configs(load_settings(config))
    assert (a.bank_size, a.calibration.images, a.calibration.false_positive_rate) == (50, 30, 0.02)
    assert (a.scoring.top_k, a.scoring.heat_map, a.learning.images) == (1, True, 1000)
    assert (b.bank_size, b.calibration.images, b.scoring.top_k, b.learning.images) == (100, 40, 20, 5)


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ({}, "bundled"),
        ({"backbone": "resnet18"}, "pretrained"),
        ({"backbone": "resnet18", "weights": "random:1"}, "random:1"),
        ({"backbone": "package.module:function"}, None),
    ],
)
def test_weights_left_out_follow_from_the_backbone(model: dict[str, Any], source: str | None) -> None:
    assert load_settings(None, {"model": model}).model.weights_source == source


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[modle]\nbank_size = 1", ["modle: unknown key", "model"]),
        ("[model]\nbanksize = 1", ["model.banksize: unknown key", "bank_size"]),
        ("[[lines]]\nname = 'a'\n[lines.learning]\nimags = 3", ["lines.0.learning.imags: unknown key", "images"]),
        ("[[lines]]\nname = 'a'\nrate = 3", ["lines.0.rate: unknown key", "calibration"]),
        ("[[lines]]\nname = 'Press 3'", ["lines.0.name", "'Press 3'", "a-z 0-9"]),
        ("[[lines]]\nname = ''", ["lines.0.name", "a-z 0-9"]),
        (f"[[lines]]\nname = '{'a' * 64}'", ["lines.0.name", "63"]),
        ('[[lines]]\nname = "a\\n"', ["lines.0.name", "a-z 0-9"]),
        ("[[lines]]\nbank_size = 3", ["lines.0.name", "required"]),
        ("[lines]\nname = 'a'", ["lines: expected a list", "[[lines]]"]),
        ("[[lines]]\nname = 'a'\n[[lines]]\nname = 'a'", ["lines", "'a' stands twice"]),
        ("[redis]\nurl = 'http://127.0.0.1'", ["redis.url", "redis://", "rediss://", "unix://"]),
        ("[redis]\nurl = 'redis://:pa/ss@h'", ["redis.url", "percent-encode", "%2F"]),
        ("[redis]\nurl = 'redis://h?password=a@b'", ["redis.url", "percent-encode"]),
        ("[model]\nbackbone = 'a.b:c'\nweights = 'random:0'", ["model", "a.b:c", "leave them out"]),
        ("[model]\nbackbone = 'resnet18'\nweights = 'bundled'", ["model", '"tiny"', "resnet18"]),
        ("[model]\nmax_batch = 12", ["model.max_batch", "multiple of 8", "12"]),
        ("[model]\ninput_shape = [16, 64]", ["model.input_shape.0", "32", "16"]),
        ("[model]\nlayers = []", ["model.layers", "at least 1"]),
        ("[model]\npca_variance_ratio = 1.0", ["model.pca_variance_ratio", "less than 1", "1.0"]),
        ("[calibration]\nimages = 19", ["calibration.images", "20", "19"]),
        ("[calibration]\nfalse_positive_rate = 0", ["calibration.false_positive_rate", "greater than 0"]),
        ("[snapshots]\nkeep = 1", ["snapshots.keep", "2"]),
        ("[http]\nport = 70000", ["http.port", "65535", "70000"]),
        ("[http]\nport = 'x'", ["http.port", "integer", "'x'"]),
        ("http = 9108", ["http: expected a table", "9108"]),
        ("log_format = 'xml'", ["log_format", "'console'", "'xml'"]),
        ("[http\nport = 1", ["config.toml", "TOML", "line 1"]),
    ],
)
def test_what_cannot_be_used_is_named_with_its_key_and_the_remedy(toml: Any, text: str, parts: list[str]) -> None:
    told = refusal(toml(text))
    assert [part for part in ["config.toml", *parts] if part not in told] == []


def test_several_problems_are_all_told(toml: Any) -> None:
    told = refusal(toml("[http]\nport = -1\nhots = ''\n[snapshots]\nkeep = 0"))
    assert [key for key in ("http.port", "http.hots", "snapshots.keep") if f"config.toml: {key}: " not in told] == []


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[http]\nport = 7", encoding="utf-8-sig")
    assert load_settings(path).http.port == 7


def test_an_address_is_told_by_how_it_begins_and_not_by_its_password(toml: Any) -> None:
    assert "redis.url: has no ://, must start with redis://" in refusal(toml("[redis]\nurl = ':secret@10.0.0.1:6379'"))
    told = refusal(toml("[redis]\nurl = 'http://:secret@10.0.0.1'"))
    assert "redis.url: starts with http://, must start with redis://" in told
    assert "secret" not in told


def test_a_file_that_is_absent_is_named_with_the_remedy(tmp_path: Path) -> None:
    told = refusal(tmp_path / "absent.toml")
    assert "absent.toml" in told
    assert "config.example.toml" in told


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    assert "config.toml: not readable as TOML" in refusal(path)


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("MHPC_REDIS_URL", "redis://h", ["'redis_url' is unknown", "known here: calibration"]),
        ("MHPC_HTTP__PROT", "1", ["'prot' is unknown", "host, port"]),
        ("MHPC_LINES__0__NAME", "a", ["'0' is unknown", "JSON"]),
        ("MHPC_MODEL__WEIGHTS__X", "a", ["'x' is unknown", "nothing below it"]),
        ("mhpc_http__prot", "1", ["'prot' is unknown"]),
        ("MHPC_LINES", "press-3", ["JSON"]),
        ("MHPC_MODEL__LAYERS", "layer2,layer3", ["JSON"]),
        ("MHPC_HTTP__PORT", "x", ["http.port", "integer", "'x'"]),
        ("MHPC_LINES", '[{"name": "A"}]', ["lines.0.name", "a-z 0-9"]),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    toml: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, parts: list[str]
) -> None:
    monkeypatch.setenv(name, value)
    told = refusal(toml("[http]\nport = 1"))
    assert [part for part in [f"environment {name}", *parts] if part not in told] == []


@pytest.mark.parametrize(
    ("text", "environ", "flags", "sources"),
    [
        ("[model]\nbackbone = 'tiny'", {"BACKBONE": "resnet18", "WEIGHTS": "bundled"}, {}, ["BACKBONE", "WEIGHTS", ""]),
        ("[http]\nport = 1", {"BACKBONE": "resnet18", "WEIGHTS": "bundled"}, {}, ["BACKBONE", "WEIGHTS"]),
        ("[model]\nweights = 'bundled'", {"BACKBONE": "resnet18"}, {}, ["BACKBONE", ""]),
        ("[model]\nweights = 'bundled'", {"": '{"backbone": "resnet18"}'}, {}, ["MODEL", ""]),
        ("[redis]\npassword_file = 'f'", {}, {"redis": {"url": "redis://a:b@h"}}, ["command line", ""]),
        ("[model]\nbackbone = 'resnet18'\nweights = 'bundled'", {"BANK_SIZE": "9"}, {}, ["BANK_SIZE", ""]),
    ],
)
def test_values_that_do_not_go_together_are_laid_to_all_that_gave_their_table_one(
    toml: Any,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    environ: dict[str, str],
    flags: dict[str, Any],
    sources: list[str],
) -> None:
    variables = {key: f"MHPC_MODEL__{key}" if key else "MHPC_MODEL" for key in environ}
    for key, value in environ.items():
        monkeypatch.setenv(variables[key], value)
    config = toml(text)
    named = {"": str(config), "MODEL": "environment MHPC_MODEL", "command line": "command line"}
    expected = ", ".join(named.get(source) or f"environment {variables[source]}" for source in sources)
    assert refusal(config, flags).partition(": ")[0] == expected


@pytest.mark.parametrize("text", ["[redis]\nuri = 'h'", "[redis]\nusername = 3", "[http]\nport = 'x'"])
def test_a_key_of_the_file_is_not_laid_to_others_of_its_table(
    toml: Any, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MHPC_HTTP", '{"host": "127.0.0.1"}')
    config = toml(text)
    assert refusal(config, {"redis": {"url": "redis://h"}}).startswith(f"{config}: ")


def test_a_flag_that_cannot_be_used_is_laid_to_the_command_line(toml: Any) -> None:
    told = refusal(toml("[redis]\nurl = 'redis://h'"), {"redis": {"url": "127.0.0.1"}})
    assert told.startswith("command line: redis.url: has no ://, must start with redis://")


def test_a_password_is_in_no_repr_and_dump() -> None:
    settings = load_settings(None, {"redis": {"url": "redis://:hunter2@h"}})
    assert settings.redis.url.get_secret_value() == "redis://:hunter2@h"
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.redis)):
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "[redis]\nurl = 'http://:hunter2@h'",
        "[redis]\nurl = ['redis://:hunter2@h']",
        "redis = 'redis://:hunter2@h'",
        "redis = ['redis://:hunter2@h']",
        "[redis]\nuri = 'redis://:hunter2@h'",
        "[redis]\nurl = 'redis://:hunter2@h'\nport = 1",
        "[redis]\nurl = 'redis://:hunter2/x@h'",
        "url = 'redis://:hunter2@h'",
        "[redis]\nurl = redis://:hunter2@h",
    ],
)
def test_a_password_is_in_no_error(toml: Any, text: str) -> None:
    assert "hunter2" not in refusal(toml(text))


@pytest.mark.parametrize("value", ["redis://:hunter2@h", '"redis://:hunter2@h"', '{"urls": "redis://:hunter2@h"}'])
def test_a_password_in_the_environment_is_in_no_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MHPC_REDIS", value)
    assert "hunter2" not in refusal(None)


@pytest.mark.parametrize("name", ["a", "0", "press-3", "press_3", "a" * 63])
def test_names_that_fit_a_key_are_taken(name: str) -> None:
    assert LINE_NAME.match(name)
    assert load_settings(None, {"lines": [{"name": name}]}).lines[0].name == name


@pytest.mark.parametrize("name", ["", "-a", "_a", "A", "a b", "a}", "a:b", "ä", "a\n", "a" * 64])
def test_names_that_do_not_are_not(name: str) -> None:
    assert not LINE_NAME.match(name)
