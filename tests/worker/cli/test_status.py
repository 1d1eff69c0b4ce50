import io
import json
import signal
import subprocess
import sys
from typing import Any

import pytest
import redis
from rich.console import Console

from tests.conftest import PrivateRedis
from tests.worker.calling import Call
from tests.worker.terminal import Terminal
from tests.worker.test_results import publish
from worker import views
from worker.cli.status import Rates, status_table
from worker.streams.line_streams import LineStreams

KINDS = {"images": "stream", "scores": "stream", "dead": "stream", "state": "hash", "lease": "string"}


def row(client: redis.Redis, name: str, **changes: Any) -> dict[str, Any]:
    return {**views.line_status(client, name), **changes}


def drawn(*rows: dict[str, Any], **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(status_table(list(rows), **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


# -- what is broken ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KINDS)
def test_a_key_of_another_type_is_told_in_its_lines_row_and_hides_no_other(
    call: Call, config: Any, client: redis.Redis, line: str, key: str
) -> None:
    broken, well = f"{line}-broken", f"{line}-well"
    for name in (broken, well):
        LineStreams(client, name).ensure_groups()
        publish(client, name, "a")
        client.xadd(LineStreams(client, name).dead, {"reason": "failed"})
    name = f"mhpc:{{{broken}}}:{key}"
    client.delete(name)
    client.rpush(name, "something else")
    path = config(lines=f"[[lines]]\nname = '{broken}'\n[[lines]]\nname = '{well}'")
    ended = call("status", "--config", path, "--json")
    assert (ended.code, ended.err) == (0, "")
    first, second = (json.loads(text) for text in ended.out.splitlines())
    assert first["problem"].startswith(f"{name} holds something else than its name says")
    assert (first["results"], first["dead"]) == (key != "scores", key != "dead")
    assert (second["problem"], second["results"], second["dead"]) == (None, 1, 1)
    table = call("status", "--config", path)
    assert (table.code, table.err) == (0, "")
    told = " ".join(table.out.split())
    assert f"{broken}: {name} holds something else than its name says: whose is it? Rename it, or delete it" in told
    assert "problem" in told


def test_what_a_line_says_and_what_redis_says_of_its_keys_stand_together(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    epoch, *_ = streams.acquire("station-1#ab", 0)
    streams.show(epoch, {"problem": "the stream ends too early"})
    assert views.line_status(client, line)["problem"] == "the stream ends too early"
    client.set(streams.dead, "something else")
    problem = views.line_status(client, line)["problem"]
    assert problem.startswith(f"the stream ends too early; {streams.dead} holds something else")


@pytest.mark.parametrize(
    ("field", "value", "shown", "expected"),
    [
        ("quarantined", "1.5", "'1.5'", "a whole number"),
        ("threshold", "nan", "'nan'", "a number"),
        ("drift", "\x1b[2J", "'\\x1b[2J'", "a number"),
        ("rate_interval", "0.1 -inf", "'0.1 -inf'", "numbers"),
        ("phase", b"\xff\xfe", "'\\\\xff\\\\xfe'", "text in UTF-8"),
    ],
)
def test_a_value_that_no_worker_writes_is_its_lines_problem_and_hides_no_other(
    call: Call, config: Any, client: redis.Redis, line: str, field: str, value: Any, shown: str, expected: str
) -> None:
    odd, well = f"{line}-odd", f"{line}-well"
    for name in (odd, well):
        client.hset(LineStreams(client, name).state_key, mapping={"phase": "scoring", "progress": "3/7"})
    key = f"mhpc:{{{odd}}}:state"
    client.hset(key, field, value)
    path = config(lines=f"[[lines]]\nname = '{odd}'\n[[lines]]\nname = '{well}'")
    ended = call("status", "--config", path, "--json")
    assert (ended.code, ended.err) == (0, "")
    first, second = (json.loads(text, parse_constant=pytest.fail) for text in ended.out.splitlines())
    assert first["problem"].startswith(f"{field} in {key} is {shown}")
    assert first["problem"].endswith(f", expected {expected}; a worker writes it anew after HDEL {key} {field}")
    assert first[field] == (0 if field == "quarantined" else None)
    assert first["progress"] == "3/7"
    assert (second["phase"], second["problem"]) == ("scoring", None)
    table = call("status", "--config", path)
    assert (table.code, table.err, "\x1b" in table.out) == (0, "", False)
    assert f"HDEL {key}" in " ".join(table.out.split())


@pytest.mark.parametrize("field", ["phase", "progress"])
def test_a_text_with_a_terminals_commands_is_shown_as_text(
    call: Call, config: Any, client: redis.Redis, line: str, field: str
) -> None:
    client.hset(LineStreams(client, line).state_key, mapping={"phase": "learning", field: "\x1b]0;owned\x07"})
    ended = call("status", "--config", config())
    assert (ended.code, ended.err, "\x1b" in ended.out) == (0, "", False)
    assert "owned" in ended.out


# -- the table ---------------------------------------------------------------------------------------------------------


def test_with_all_that_it_can_say_a_row_fits_into_80_columns(client: redis.Redis, line: str) -> None:
    said = {
        "phase": "calibrating", "progress": "1000/1000", "outside_share": 0.1234, "threshold": 123.456, "drift": 1.25,
        "provisional": True, "lag": 99999, "dead": 10000, "quarantined": 1234, "keeper": "inspection-station-12",
    }  # fmt: skip
    lines = drawn(row(client, line, **said), per_second={line: 1234.5})
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[-2:] == ["/s", "keeper"]
    for cell in ("calibrating", "1000/1000 12% new", "123.5?", "1.25", "99999", "10000", "1234", "1234 "):
        assert cell in lines[1]


def test_a_name_with_a_terminals_commands_is_shown_as_text(private_redis: PrivateRedis, call: Call) -> None:
    client = redis.Redis(port=private_redis.port, protocol=2)
    client.xadd("mhpc:{red\x1b[2Jline}:images", {"batch": b""})  # anybody may who may add a key
    client.set("mhpc:{red\x1b[2Jline}:lease", "keeper\x1b[2J#ab")
    client.set("mhpc:{red\x1b[2Jline}:dead", "something else")
    ended = call("status", "--redis", private_redis.url)
    assert (ended.code, ended.err) == (0, "")
    assert "\x1b" not in ended.out
    for part in ("red", "keeper", "holds something else"):
        assert part in "".join(ended.out.split("\n"))


def test_images_in_a_second_are_told_from_one_look_to_the_next(client: redis.Redis, line: str) -> None:
    if "entries-added" not in client.xinfo_stream(_published(client, line)):
        pytest.skip("before Redis 7.0 nobody counts what was added to a stream")
    rates = Rates(client)
    rates.look([line])
    assert rates.per_second[line] == 0.0
    publish(client, line, "b", "c")
    rates.look([line])
    assert rates.per_second[line] > 0
    assert views.answered(client, line) == 3
    client.set(LineStreams(client, f"{line}-x").scores, "something else")
    assert views.answered(client, f"{line}-x") is None


def _published(client: redis.Redis, line: str) -> str:
    publish(client, line, "a")
    return LineStreams(client, line).scores


# -- live --------------------------------------------------------------------------------------------------------------


def test_on_a_terminal_it_is_live_until_q(private_redis: PrivateRedis) -> None:
    client = redis.Redis(port=private_redis.port, protocol=2)
    with Terminal("status", "--watch", "--redis", private_redis.url) as terminal:
        terminal.shows("no line has a stream yet")
        LineStreams(client, "press-3").ensure_groups()
        terminal.shows("press-3")
        private_redis.kill()
        terminal.shows("Redis is not reached, this is what was seen last: ")
        private_redis.start()
        LineStreams(client, "press-4").ensure_groups()
        terminal.shows("press-4")
        terminal.press("q")
        assert terminal.ended() == 0
        assert terminal.written().endswith("\x1b[?25h\x1b[?1049l")  # cursor and screen are as they were
        assert "Traceback" not in terminal.written()


def test_ctrl_c_ends_it_as_well(redis_url: str) -> None:
    with Terminal("status", "--watch", "--redis", redis_url) as terminal:
        terminal.shows("q ends")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.written()


def test_elsewhere_each_look_is_printed(private_redis: PrivateRedis) -> None:
    LineStreams(redis.Redis(port=private_redis.port, protocol=2), "press-3").ensure_groups()
    command = [sys.executable, "-m", "worker", "status", "--watch", "--json", "--redis", private_redis.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        names = [json.loads(process.stdout.readline())["line"] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert (names, process.wait(30), process.stderr.read()) == (["press-3"] * 2, 0, "")
