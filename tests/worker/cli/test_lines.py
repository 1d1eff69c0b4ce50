"""`mhpc-worker lines`: what is declared for a fleet."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from tests.conftest import PrivateRedis
from tests.worker.calling import Call, Ended
from tests.worker.cli.test_app_help import completed
from worker.fleet import declared
from worker.settings import LINES_KEY
from worker.snapshots import SnapshotStore
from worker.streams.line_streams import LineStreams

Lines = Callable[..., Ended]


@pytest.fixture
def server(private_redis: PrivateRedis) -> Any:
    """A server whose `mhpc:lines` is this test's alone."""
    return redis.Redis(port=private_redis.port, protocol=2)


@pytest.fixture
def lines(call: Call, private_redis: PrivateRedis) -> Lines:
    return lambda *arguments: call("lines", *arguments, "--redis", private_redis.url)


def test_a_line_is_declared_with_what_was_given_alone(lines: Lines, server: Any) -> None:
    ended = lines("add", "press-3")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "line press-3 is declared, workers with worker.fleet = true serve it within seconds\n"
    lines("add", "press-4", '{"scoring": {"top_k": 1}}', "--set", "learning.images=300", "--set", "scoring.top_k=2")
    assert server.hget(LINES_KEY, "press-3") == b"{}"
    assert json.loads(server.hget(LINES_KEY, "press-4")) == {"learning": {"images": 300}, "scoring": {"top_k": 2}}
    assert sorted(declared(server.hgetall(LINES_KEY))[0]) == ["press-3", "press-4"]  # as a worker reads it


def test_a_line_that_is_declared_gets_other_settings(lines: Lines, server: Any) -> None:
    lines("add", "press-3", "--set", "weight=2")
    assert lines("add", "press-3", "--set", "bank_size=50").out.startswith("line press-3 has other settings, ")
    assert server.hget(LINES_KEY, "press-3") == b'{"bank_size":50}'


def test_a_line_that_has_a_model_and_is_given_another_top_k_is_told_of(lines: Lines, server: Any) -> None:
    with_top_k = partial(lines, "add", "press-3", "--set")
    assert "top_k" not in with_top_k("scoring.top_k=5").out  # it has learned nothing yet
    server.hset(LineStreams(server, "press-3").state_key, "model", "0000000001-0000000002")
    assert "top_k" not in with_top_k("scoring.top_k=5").out
    told = with_top_k("scoring.top_k=7").out
    assert "line press-3: scoring.top_k was 5, and is 7: unless its version 0000000001-0000000002 was " in told
    assert json.loads(server.hget(LINES_KEY, "press-3")) == {"scoring": {"top_k": 7}}  # it may be what restores it
    assert "was 7, and is as the workers' own tables say: " in with_top_k("scoring.heat_map=false").out
    assert "top_k" not in with_top_k("weight=2").out
    server.hset(LINES_KEY, "press-3", "not usable")
    assert "was as the workers' own tables say, and is 5: " in with_top_k("scoring.top_k=5").out
    server.set(LineStreams(server, "press-4").state_key, "no hash")
    ended = lines("add", "press-4", "--set", "scoring.top_k=7")
    assert (ended.code, "top_k" in ended.out, server.hexists(LINES_KEY, "press-4")) == (0, False, True)


def test_a_line_whose_version_lies_here_is_told_of_the_top_k_that_was_calibrated_with(
    lines: Lines, server: Any, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[scoring]\ntop_k = 3\n[snapshots]\ndirectory = '{tmp_path}'\n")
    add = partial(lines, "add", "press-3", "--config", config)
    SnapshotStore(tmp_path, "press-3").write(stem := "0000000001-0000000002", {"a": torch.zeros(1)}, {"top_k": 5})
    server.hset(LineStreams(server, "press-3").state_key, "model", stem)
    told = f"line press-3: scoring.top_k is {{}}, its version {stem} was calibrated with 5: workers refuse it"
    assert told.format(3) in add().out  # by the workers' own table, though it was never declared otherwise
    assert told.format(7) in add("--set", "scoring.top_k=7").out
    assert told.format(7) in add("--set", "scoring.top_k=7").out  # declared so before
    assert "top_k" not in add("--set", "scoring.top_k=5").out
    (tmp_path / "press-3" / f"{stem}.safetensors").write_bytes(b"damaged")
    assert "scoring.top_k was 5, and is 7: unless its version" in add("--set", "scoring.top_k=7").out


def test_a_line_is_removed_and_what_it_learned_stays(lines: Lines, server: Any) -> None:
    lines("add", "press-3")
    LineStreams(server, "press-3").ensure_groups()
    ended = lines("remove", "press-3")
    assert (ended.code, ended.out) == (0, "line press-3 is declared no more; its streams and versions stay\n")
    assert server.exists(LINES_KEY) == 0
    assert server.exists("mhpc:{press-3}:images") == 1
    ended = lines("remove", "press-3")
    assert ended.code == 1
    assert "line 'press-3' is not declared; mhpc-worker lines list shows" in ended.error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["press-3", "--set", "learning.images=0"], "line press-3: learning.images: Input should be greater than 0"),
        (["press-3", "--set", "learning.images=many"], "learning.images: Input should be a valid integer"),
        (["press-3", "--set", "learning.imags=7"], "expected KEY=VALUE, KEY one of bank_size, calibration.false"),
        (["press-3", "--set", "weight"], "--set 'weight': expected KEY=VALUE"),
        (["press-3", '{"learning": {"imags": 7}}'], "learning.imags: unknown key; known here: converge, forgetting"),
        (["press-3", '{"learning": 7}'], "learning: "),
        (["press-3", '{"learning": 7}', "--set", "learning.images=7"], "learning is 7, expected an object"),
        (["press-3", '{"name": "press-4"}'], "it holds a name; expected a JSON object with keys of [[lines]]"),
        (["press-3", "[1]"], "JSON '[1]': expected an object"),
        (["press-3", "{"], "JSON '{': Expecting property name"),
        (["press-3", "[" * 100_000], "expected an object"),
        (["Press 3"], "1 to 63 of a-z 0-9 _ -"),
    ],
)
def test_what_cannot_be_used_is_refused_on_one_line(lines: Lines, server: Any, arguments: list[str], told: str) -> None:
    ended = lines("add", *arguments)
    assert ended.code == 2
    assert told in ended.error
    assert len(ended.error) < 500
    assert server.exists(LINES_KEY) == 0


def test_the_declared_lines_are_listed_with_their_keepers_and_what_is_wrong_with_them(
    lines: Lines, server: Any
) -> None:
    assert lines("list").out == "no line is declared; mhpc-worker lines add NAME declares one\n"
    lines("add", "press-3", "--set", "learning.images=300", "--set", "weight=2")
    lines("add", "press-4")
    assert LineStreams(server, "press-4").acquire("worker-0#ab12", 0)[0]
    server.hset(LINES_KEY, b"\x1b[31m", b'{"imags": 7}')
    listed = [json.loads(text) for text in lines("list", "--json").out.splitlines()]
    assert listed[1:] == [
        {"line": "press-3", "settings": {"weight": 2.0, "learning": {"images": 300}}, "keeper": None, "problem": ""},
        {"line": "press-4", "settings": {}, "keeper": "worker-0", "problem": ""},
    ]
    assert listed[0]["problem"].startswith("not usable: ")
    text = lines("list").out
    assert "weight=2.0 learning.images=300" in text
    assert "worker-0" in text
    assert "\x1b[31m" not in text


def test_a_redis_that_is_not_reached_and_a_key_of_another_type_end_on_one_line(
    call: Call, lines: Lines, server: Any
) -> None:
    assert call("lines", "list", "--redis", "redis://127.0.0.1:1/0").code == 3
    server.set(LINES_KEY, "in the way")
    for arguments in (["list"], ["add", "press-3"], ["remove", "press-3"]):
        ended = lines(*arguments)
        assert ended.code == 1
        assert "WRONGTYPE" in ended.error


def test_a_shell_completes_declared_lines_and_keys(lines: Lines, private_redis: PrivateRedis, tmp_path: Path) -> None:
    lines("add", "press-3")
    assert completed(f"mhpc-worker lines remove --redis {private_redis.url} pr") == ["press-3"]
    assert completed("mhpc-worker lines add press-9 --set learning.im") == ["learning.images="]
    assert completed("mhpc-worker lines remove --redis redis://127.0.0.1:1/0 pr") == []
