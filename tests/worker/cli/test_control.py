import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from tests.worker.calling import Call
from tests.worker.commanding import look
from tests.worker.helpers import eventually, patches
from tests.worker.keepers import MakeKeeper, opened
from worker.keeping.keeper import Keeper
from worker.keeping.looking import Look
from worker.runtime.logs import configure_logs
from worker.streams.control import Reply, encode_reply, read_commands
from worker.streams.line_streams import LineStreams


@contextmanager
def keeping(make_keeper: MakeKeeper) -> Iterator[Keeper]:
    """A keeper that obeys, on a thread of its own; what it logs goes to stderr, as a worker's does."""
    configure_logs("json")
    keeper, ended = opened(make_keeper()), threading.Event()

    def obey() -> None:
        looks = Look(keeper)
        while not ended.wait(0.01):
            looks._at = 0.0
            look(keeper, lambda _: patches(1), looks)

    thread = threading.Thread(target=obey)
    thread.start()
    try:
        yield keeper
    finally:
        ended.set()
        thread.join(30)


def test_control_prints_the_keepers_answer_and_ends_by_it(
    call: Call, config: Any, make_keeper: MakeKeeper, line: str
) -> None:
    with keeping(make_keeper) as keeper:

        def control(*arguments: str) -> tuple[int, str]:
            ended = call("control", line, *arguments, "--config", config())
            return ended.code, ended.out.strip()

        code, text = control("pause")
        assert (code, text.partition(",")[0]) == (0, "paused in phase learning: parts are answered as before")
        assert keeper.line.paused
        assert control("pause") == (1, "the line is paused already")
        code, text = control("resume", "--json")
        assert (code, json.loads(text)["ok"]) == (0, True)
        code, text = control("normal", "1-0", "part 7")
        assert (code, text.partition(":")[0]) == (1, "review does not hold part 'part 7' of entry 1-0")
        assert control("rate", "0.02") == (0, "false-positive rate 0.02 from the next calibration on")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["explode"], ["command 'explode' is unknown", "relearn, calibrate, pause"]),
        (["normal", "1-0"], ["normal takes ENTRY ID, came: 1-0"]),
        (["pause", "now"], ["pause takes nothing, came: now"]),
        (["rate", "often"], ["rate is 'often', expected a number"]),
        (["rate", "2"], ["rate is 2, expected a number above 0 and below 1"]),
        (["relearn", "0"], ["forgetting is 0, expected"]),
        (["release", "b000.jpg", "1764150000000-0"], ["ENTRY is 'b000.jpg', expected an id such as 1764150000000-0"]),
    ],
)
def test_control_refuses_what_is_no_command_and_sends_nothing(
    call: Call, config: Any, client: redis.Redis, line: str, arguments: list[str], parts: list[str]
) -> None:
    ended = call("control", line, *arguments, "--config", config())
    assert ended.code == 2
    assert [part for part in parts if part not in ended.error] == []
    assert client.xlen(LineStreams(client, line).control) == 0


def test_control_says_who_should_have_answered(call: Call, config: Any, client: redis.Redis, line: str) -> None:
    ended = call("control", line, "pause", "--timeout", "0.2", "--config", config())
    assert ended.code == 1
    assert "no answer within 0.2 s; it has no keeper: start a worker" in ended.out
    key = f"mhpc:{{{line}}}:control"
    assert (
        f"waits in {key}; XDEL {key} {read_commands(LineStreams(client, line), '0-0')[0].entry} takes it back"
        in ended.out
    )
    LineStreams(client, line).acquire("station-9#ab", 0)
    assert "its keeper is station-9" in call("control", line, "pause", "--timeout", "0.2", "--config", config()).out


def test_control_says_that_a_line_is_stopped_and_what_is_wrong_where_its_last_keeper_said_so(
    call: Call, config: Any, client: redis.Redis, line: str
) -> None:
    streams = LineStreams(client, line)

    def told(name: str) -> str:
        return call("control", line, name, "--timeout", "0.2", "--config", config()).out

    client.hset(streams.state_key, mapping={"problem": "no snapshot: no space left"})
    assert "it has no keeper: start a worker; the last one said: no snapshot: no space left. The co" in told("pause")
    why = f"the stream ends at 5-0; mhpc-worker control {line} resync"
    client.hset(streams.state_key, mapping={"problem": why, "stopped": why})
    assert f"no answer within 0.2 s; it is stopped: {why}. The command waits" in told("pause")
    streams.acquire("station-9#ab", 0)  # as the lease of who stopped it: it runs out by itself
    assert f"it is stopped: {why}" in told("pause")
    client.delete(streams.lease)
    assert "it has no keeper: start a worker" in told("resync")  # whoever runs obeys that one


@pytest.mark.parametrize("command", [["control", "LINE", "pause"], ["snapshots", "rollback", "1-1"]])
def test_a_user_without_a_name_asks_by_number(
    call: Call, config: Any, client: redis.Redis, line: str, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1_234_567)
    arguments = [line if part == "LINE" else part for part in command]
    ended = call(*arguments, "--timeout", "0.2", "--config", config())
    assert (ended.code, ended.err) == (1, "")
    (sent,) = read_commands(LineStreams(client, line), "0-0")
    assert sent.by == "uid 1234567"


def test_who_no_longer_waits_is_told_that_the_command_was_sent(redis_url: str, client: redis.Redis, line: str) -> None:
    client.xadd(LineStreams(client, line).images, {"batch": b""})
    command = [sys.executable, "-m", "worker", "control", line, "pause", "--redis", redis_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: client.xlen(LineStreams(client, line).control))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")
    assert out.startswith("interrupted, but the command ")
    assert out.endswith(f" sent: a keeper obeys what waits in mhpc:{{{line}}}:control\n")


def test_a_replys_text_cannot_write_to_the_terminal(call: Call, config: Any, client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)

    def answer() -> None:
        (command,) = eventually(lambda: read_commands(streams, "0-0"))
        client.xadd(streams.replies, {"reply": encode_reply(command, Reply(True, "\x1b]0;owned\x07"))})

    keeper = threading.Thread(target=answer)
    keeper.start()
    ended = call("control", line, "pause", "--config", config())
    keeper.join()
    assert (ended.code, ended.out) == (0, "'\\x1b]0;owned\\x07'\n")


def test_a_line_that_nobody_knows_is_named_with_its_redis(
    call: Call, config: Any, client: redis.Redis, line: str
) -> None:
    for command in (["dead", "list", "-l", "press-99"], ["control", "press-99", "pause"]):
        ended = call(*command, "--config", config())
        assert ended.code == 2
        assert "line press-99 is not at redis://127.0.0.1:" in ended.error
    assert client.exists("mhpc:{press-99}:control") == 0
    client.xadd("mhpc:{press-99}:images", {"batch": b""})
    try:
        assert call("dead", "list", "-l", "press-99", "--config", config()).code == 0
    finally:
        client.delete("mhpc:{press-99}:images")
