import json
from typing import Any

import msgpack
import pytest
import redis

from tests.worker.calling import Call
from tests.worker.terminal import Terminal
from tests.worker.test_results import RESULT, publish
from worker.message import encode_result
from worker.streams.line_streams import LineStreams


def add(client: Any, line: str, **changes: Any) -> None:
    value = encode_result(type(RESULT)(**{**vars(RESULT), **changes}))
    client.xadd(LineStreams(client, line).scores, {"result": value})


def test_anomalies_are_shown_alone_if_asked(call: Call, config: Any, client: redis.Redis, line: str) -> None:
    for identity, verdict in (("a", True), ("b", False), ("c", None), ("d", True)):
        add(client, line, id=identity, anomalous=verdict)
    ended = call("tail", "--config", config(), "--from-start", "--anomalies", "-n", "2", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert [json.loads(text)["id"] for text in ended.out.splitlines()] == ["a", "d"]


@pytest.mark.parametrize(
    "fields", [{"other": b"x"}, {"result": b"\xc1"}, {"result": b"\x05"}, {"result": b"\x81\xa1v\x01"}]
)
def test_what_is_no_result_is_told_and_left_out(
    call: Call, config: Any, client: redis.Redis, line: str, fields: dict[str, bytes]
) -> None:
    entry = client.xadd(LineStreams(client, line).scores, fields)  # type: ignore[arg-type]  # redis-py's own is wider
    add(client, line, id="b", map=None)
    ended = call("tail", "--config", config(), "--from-start", "-n", "1", "--json")
    assert (ended.code, json.loads(ended.out)["id"]) == (0, "b")
    assert isinstance(entry, bytes)
    assert ended.err.startswith(f"left out: entry {entry.decode()} of mhpc:{{{line}}}:scores is no result: ")
    assert ended.err.count("\n") == 1


def test_a_broken_map_leaves_its_result_out_and_no_other(
    call: Call, config: Any, client: redis.Redis, line: str
) -> None:
    packed = msgpack.unpackb(encode_result(RESULT))
    packed["map"]["data"] = b"\x00"
    client.xadd(LineStreams(client, line).scores, {"result": msgpack.packb(packed)})
    publish(client, line, "well")
    ended = call("tail", "--config", config(), "--from-start", "-n", "1")
    assert ended.out.endswith(" well\n")
    assert "is no result: ValueError" in ended.err


def test_verdicts_have_a_colour_on_a_terminal_and_none_elsewhere(
    call: Call, config: Any, client: redis.Redis, line: str
) -> None:
    add(client, line, id="bad", anomalous=True)
    add(client, line, id="good")
    arguments = ("tail", "--config", str(config()), "--from-start", "-n", "2")
    assert "\x1b" not in call(*arguments).out
    with Terminal(*arguments) as terminal:
        assert terminal.ended() == 0
        bad, good = terminal.written().splitlines()
    assert bad.startswith("\x1b[31m\x1b[1mANOMALOUS\x1b[0m ")
    assert good.startswith("\x1b[32m")
    assert max(map(len, call(*arguments).out.splitlines())) <= 80


def test_a_name_that_no_line_can_have_is_refused(call: Call, config: Any) -> None:
    ended = call("tail", "--config", config(), "--line", "Not A Line")
    assert ended.code == 2
    assert "1 to 63 of a-z 0-9 _ -" in ended.error
