import json
import os
import socket
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import redis
from safetensors.torch import save_file

from mhpc.core.backbones import load_backbone
from tests.conftest import PrivateRedis
from tests.worker.calling import Call, Ended
from tests.worker.helpers import eventually
from tests.worker.test_results import publish
from worker.streams.line_streams import LineStreams

UNREACHABLE = "redis://:hunter2@127.0.0.1:1/0"


# -- what ends with one line and a code --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "check", "status", "tail"])
@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        ({"top": "[modle]\nbackbone = 'tiny'"}, 2, ["config.toml: modle: unknown key", "known here", "model"]),
        ({"lines": "[[lines]]\nname = 'Press 3'"}, 2, ["config.toml: lines.0.name", "'Press 3'", "a-z 0-9"]),
        ({"url": "localhost:6379"}, 2, ["config.toml: redis.url", "redis://"]),
        ({"url": UNREACHABLE}, 3, ["redis://127.0.0.1:1/0 is not reached", "start it", "redis.url"]),
    ],
    ids=["unknown key", "bad line name", "bad address", "unreachable"],
)
def test_every_command_ends_on_what_it_cannot_use(
    call: Call, config: Any, command: str, changes: dict[str, str], code: int, parts: list[str]
) -> None:
    ended = call(command, "--config", config(**changes))
    assert ended.code == code
    assert [part for part in parts if part not in ended.error] == []
    assert "hunter2" not in ended.err + ended.out


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("backbone = 'resnet18'\nweights = '/absent/w.safetensors'", ["/absent/w.safetensors", "safetensors"]),
        ("backbone = 'resnet19'", ["resnet19", "known: tiny", "resnet18"]),
        ("backbone = 'absent.module:function'", ["absent.module:function", "PYTHONPATH"]),
        ("backbone = 'resnet18'\nweights = 'random:0'\nlayers = ['layer9']", ["layer9", "layer3"]),
        ("weights = 'pretrained'", ["pretrained", "tiny", "bundled"]),
    ],
    ids=["absent weights", "unknown backbone", "no such function", "no such layer", "pretrained tiny"],
)
def test_a_model_that_cannot_be_used_ends_with_code_4(
    call: Call, config: Any, command: str, model: str, parts: list[str]
) -> None:
    ended = call(command, "--config", config(model=model))
    assert ended.code == 4
    assert [part for part in ["model", *parts] if part not in ended.error] == []


@pytest.mark.parametrize("command", ["run", "check"])
def test_pretrained_weights_that_cannot_be_had_end_with_code_4_and_the_way_out(
    call: Call, config: Any, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")  # nothing is reached from here
    ended = call(command, "--config", config(model="backbone = 'resnet18'"))
    assert ended.code == 4
    attempt, _, rest = ended.err.partition("\n")
    assert attempt.startswith("Downloading: ")
    error = Ended(ended.code, ended.out, rest).error
    for part in ("pretrained weights of resnet18", "weights = PATH", '"tiny"', '"bundled"'):
        assert part in error


@pytest.mark.parametrize("command", ["run", "check"])
def test_weights_of_another_backbone_end_on_one_line(call: Call, config: Any, command: str, tmp_path: Path) -> None:
    path = tmp_path / "resnet34.safetensors"
    save_file(load_backbone("resnet34", "random:0").state_dict(), path)
    ended = call(command, "--config", config(model=f"backbone = 'resnet18'\nweights = '{path}'"))
    assert ended.code == 4
    assert "resnet34.safetensors" in ended.error
    assert "do not fit" in ended.error


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_worker_without_lines_is_told_how_to_add_one(
    call: Call, tmp_path: Path, redis_url: str, command: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        f"[redis]\nurl = '{redis_url}'\n[model]\ninput_shape = [64, 64]\n[snapshots]\ndirectory = '{tmp_path}'"
    )
    ended = call(command, "--config", path)
    assert ended.code == 2
    assert "[[lines]]" in ended.error


def test_a_device_that_is_not_there_ends_with_code_5(call: Call, config: Any) -> None:
    ended = call("run", "--config", config(top="[worker]\ndevice = 'cuda:99'"))
    assert ended.code == 5
    assert "worker.device" in ended.error


def test_a_port_that_is_taken_ends_with_code_2(call: Call, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MHPC_HTTP__PORT", str(taken.getsockname()[1]))
        ended = call("run", "--config", config())
    assert ended.code == 2
    assert "http.port" in ended.error


def test_a_file_that_is_absent_is_named(call: Call, tmp_path: Path) -> None:
    ended = call("run", "--config", tmp_path / "absent.toml")
    assert ended.code == 2
    assert "absent.toml: no such file" in ended.error


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["run", "--nonsense"], ["nonsense"], ["tail", "--count=x"], ["tail", "--count=-1"]]
)
def test_a_usage_that_is_unknown_ends_with_code_2_and_its_name(call: Call, arguments: list[str]) -> None:
    ended = call(*arguments)
    assert ended.code == 2
    assert arguments[-1].partition("=")[0] in ended.err


def test_help_names_every_command(call: Call) -> None:
    ended = call("--help")
    assert ended.code == 0
    for command in ("run", "check", "produce", "tail", "status", "control", "dead", "snapshots", "demo"):
        assert f" {command} " in ended.out


def test_a_redis_that_goes_away_meanwhile_ends_with_code_3(call: Call, private_redis: PrivateRedis) -> None:
    client = redis.Redis(port=private_redis.port)
    client.xadd("mhpc:{press-3}:images", {"batch": b""})

    def kill() -> None:
        eventually(lambda: client.xlen("mhpc:{press-3}:control"))
        private_redis.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ended = call("control", "press-3", "pause", "--redis", private_redis.url)
    killer.join()
    assert ended.code == 3
    assert "the connection to Redis was lost: " in ended.error


@pytest.mark.parametrize("command", [["tail"], ["control", "pause"]])
def test_a_redis_that_refuses_was_reached_and_is_told_with_the_remedy(
    call: Call, config: Any, client: redis.Redis, line: str, command: list[str]
) -> None:
    for key in ("scores", "control"):
        client.set(f"mhpc:{{{line}}}:{key}", "something else")
    name, *rest = command
    ended = call(name, *([line] if rest else []), *rest, "--config", config())
    assert ended.code == 1
    for part in ("Redis", "WRONGTYPE", "which mhpc-worker check names", "Rename it, or delete it"):
        assert part in ended.error


@pytest.mark.parametrize("command", [["-m", "worker"], [str(Path(sys.executable).with_name("mhpc-worker"))]])
def test_the_console_script_and_the_module_end_the_same_way(command: list[str], config: Any) -> None:
    program = [sys.executable, *command] if command[0] == "-m" else command
    ended = subprocess.run(
        [*program, "run", "--config", config(url=UNREACHABLE)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3
    assert ended.stderr.startswith("error: Redis at redis://127.0.0.1:1/0 is not reached")
    assert entry_points(group="console_scripts")["mhpc-worker"].value == "worker.__main__:main"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "command", [["tail", "--from-start", "-n", "1"], ["tail", "--from-start", "--json"], ["status"]]
)
def test_an_output_that_takes_no_more_ends_a_command_by_one_line(
    command: list[str], config: Any, client: redis.Redis, line: str
) -> None:
    publish(client, line, "a")
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "worker", *command, "--config", config()], stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_an_id_is_shown_in_any_encoding(config: Any, client: redis.Redis, line: str) -> None:
    publish(client, line, "\u90e8\u54c1-1")
    command = [sys.executable, "-m", "worker", "tail", "--from-start", "-n", "1", "--config", str(config())]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert ended.stdout.endswith(b"\\u90e8\\u54c1-1\n")


# -- what people look at -----------------------------------------------------------------------------------------------


def test_check_prints_a_checklist(call: Call, config: Any, line: str) -> None:
    ended = call("check", "--config", config())
    assert (ended.code, ended.err) == (0, "")
    assert [text.split()[0] for text in ended.out.splitlines()] == ["ok"] * 9
    assert line in ended.out


def test_check_tells_every_failure_in_its_list_and_ends_by_the_first(call: Call, config: Any) -> None:
    ended = call("check", "--config", config(url=UNREACHABLE, model="weights = 'absent.safetensors'"))
    assert ended.code == 3
    assert [text.split()[0] for text in ended.out.splitlines()] == ["ok", "FAIL", "-", *["ok"] * 3, "FAIL", "-", "ok"]
    for part in ("is not reached", "absent.safetensors"):
        assert part in ended.out
    assert "is not reached" in ended.error


def test_the_flag_for_redis_goes_before_the_file(call: Call, config: Any, redis_url: str) -> None:
    assert call("status", "--config", config(url=UNREACHABLE), "--redis", redis_url).code == 0


def test_status_lists_the_lines_of_the_configuration(call: Call, config: Any, client: redis.Redis, line: str) -> None:
    LineStreams(client, line).ensure_groups()
    ended = call("status", "--config", config(), "--json")
    assert (ended.code, ended.err) == (0, "")
    row = json.loads(ended.out)
    assert (row["line"], row["phase"], row["pending"]) == (line, None, 0)
    table = call("status", "--config", config())
    assert table.code == 0
    assert [text.split()[0] for text in table.out.splitlines()] == ["line", line]


def test_status_without_a_configuration_lists_the_lines_that_redis_knows(
    call: Call, client: redis.Redis, redis_url: str, line: str
) -> None:
    names = [f"{line}-{i}" for i in range(2)]
    for name in names:
        LineStreams(client, name).ensure_groups()
    rows = [json.loads(text) for text in call("status", "--redis", redis_url, "--json").out.splitlines()]
    assert [row["line"] for row in rows if row["line"].startswith(line)] == names


def test_status_of_an_empty_server_says_so_and_as_json_nothing(call: Call, private_redis: Any) -> None:
    assert call("status", "--redis", private_redis.url) == (0, "no line has a stream yet\n", "")
    assert call("status", "--redis", private_redis.url, "--json") == (0, "", "")


def test_tail_follows_a_lines_results(call: Call, config: Any, client: redis.Redis, line: str) -> None:
    publish(client, line, "a", "b")
    ended = call("tail", "--config", config(), "--from-start", "--count", "2", "--json")
    assert (ended.code, ended.err) == (0, "")
    results = [json.loads(text) for text in ended.out.splitlines()]
    assert [result["id"] for result in results] == ["a", "b"]
    assert results[0]["map"] == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    text = call("tail", "--line", line, "--config", config(), "--from-start", "-n", "1").out
    assert text.split()[0] == "ok"
    assert text.endswith(" a\n")


def test_tail_asks_which_line_where_there_are_several(call: Call, config: Any) -> None:
    ended = call("tail", "--config", config(lines="[[lines]]\nname = 'a'\n[[lines]]\nname = 'b'"))
    assert ended.code == 2
    assert "--line with one of a, b" in ended.error


def test_the_status_table_fits_into_80_columns_and_cuts_nothing_off(
    call: Call, config: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    streams = LineStreams(client, line)
    streams.ensure_groups()
    epoch, *_ = streams.acquire("inspection-station-12#ab", 0)
    said = {
        "phase": "calibrating", "progress": "1000/1000", "outside_share": "0.1234", "threshold": "123.456",
        "provisional": "1", "drift": "12.345", "quarantined": "1234",
    }  # fmt: skip
    streams.commit(epoch, said)
    for number in range(3):
        client.xadd(streams.dead, {"entry": str(number)})
    ended = call("status", "--config", config())
    assert ended.code == 0
    head, *rows = ended.out.splitlines()
    assert head.split() == ["line", "phase", "progress", "threshold", "drift", "lag", "dead", "quar.", "keeper"]
    assert max(map(len, ended.out.splitlines())) <= 80
    for cell in ("calibrating", "1000/1000 12% new", "123.5?", "12.35", " 3 ", "1234"):
        assert cell in rows[0]
    columns = [head.index("phase"), head.index("keeper")]
    assert "".join(row[: columns[0]].strip() for row in rows) == line
    assert "".join(row[columns[1] :].strip() for row in rows) == "inspection-station-12"
