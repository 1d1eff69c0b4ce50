"""`mhpc-worker console` as a process."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from tests.worker.calling import Call
from tests.worker.helpers import eventually
from worker.streams.line_streams import LineStreams

TOKEN = "ann-has-this-token"  # noqa: S105 - of these tests alone


@contextmanager
def console(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    command = [sys.executable, "-m", "worker", "console", *arguments, "--port", "0"]
    output = folder / "console.out"
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    try:
        eventually(lambda: b"\n" in output.read_bytes() or process.poll() is not None)
        yield process, output
    finally:
        process.kill()
        process.wait()


def test_it_prints_a_link_that_logs_in_and_ends_on_a_signal(tmp_path: Path, redis_url: str) -> None:
    with console(tmp_path, "--redis", redis_url) as (process, output):
        found = re.search(rb"Console: (http://127.0.0.1:\d+/)(\?token=\S+)\n", output.read_bytes())
        assert found
        url, query = found[1].decode(), found[2].decode()
        assert httpx.get(url, timeout=60).status_code == 200
        with httpx.Client(follow_redirects=True, timeout=60) as browser:
            assert 'id="who"' in browser.get(url + query).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_with_tokens_of_its_own_it_prints_none(tmp_path: Path, redis_url: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann {TOKEN}\n")
    with console(tmp_path, "--redis", redis_url, MHPC_CONSOLE__TOKENS_FILE=str(tokens)) as (process, output):
        url = output.read_text().split()[1]
        assert "token" not in url
        lines = httpx.get(url, params={"token": TOKEN}, timeout=60)
        assert lines.status_code == 303
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert TOKEN not in output.read_text()


def test_it_ends_at_once_and_quietly_while_somebody_looks(tmp_path: Path, redis_url: str) -> None:
    with console(tmp_path, "--redis", redis_url) as (process, output):
        url = output.read_text().partition("?")[0].split()[1]
        with httpx.stream("GET", f"{url}events", timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: fleet"
            process.send_signal(signal.SIGTERM)
            for _ in lines:
                pass
        assert process.wait(30) == 0
        assert output.read_text().count("\n") == 2, "no error"


def test_who_waits_for_an_answer_is_told_when_it_stops_and_who_asked_is_in_the_log(
    tmp_path: Path, redis_url: str, client: redis.Redis, line: str
) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann {TOKEN}\n")
    with (
        console(tmp_path, "--redis", redis_url, MHPC_CONSOLE__TOKENS_FILE=str(tokens)) as (process, output),
        ThreadPoolExecutor(1) as pool,
    ):
        url = output.read_text().split()[1]
        asking = pool.submit(
            httpx.post,
            f"{url}lines/{line}/commands",
            json={"name": "pause"},
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )
        eventually(lambda: client.xlen(streams.control) == 1)
        assert '"by": "ann", "event": "asking"' in output.read_text(), "known before it was sent, whatever comes then"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, "units allow no more"
        assert asking.result().json() == {
            "ok": False,
            "text": f"stopping, so not waited for. The command waits in {streams.control}; XDEL {streams.control} "
            f"{streams.client.xrange(streams.control)[0][0].decode()} takes it back",
            "by": "ann",
        }
        assert re.search('"by": "ann".*not waited for.*"event": "asked"', output.read_text())


@pytest.mark.parametrize(
    ("redis_table", "told"),
    [
        ({"PASSWORD_FILE": "/no/such/file"}, "redis.password_file /no/such/file cannot be read"),
        ({"URL": "redis://127.0.0.1:port/0"}, "is not an address"),
    ],
)
def test_a_redis_table_that_cannot_be_used_ends_in_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, redis_table: dict[str, str], told: str
) -> None:
    for name, value in redis_table.items():
        monkeypatch.setenv(f"MHPC_REDIS__{name}", value)
    ended = call("console", "--port", "0")
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert ended.err.count("\n") == 1


def test_it_starts_while_redis_is_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with console(tmp_path, "--redis", f"redis://:secret@127.0.0.1:{port}/0") as (_, output):
        answer = httpx.get(output.read_text().partition("?")[0].split()[1], timeout=60)
        assert answer.status_code == 503
        assert "is not reached" in answer.text
        assert "secret" not in answer.text


def test_a_port_that_is_taken_ends_in_one_line(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = call("console", "--port", str(taken.getsockname()[1]))
    assert ended.code == 2
    assert "choose another console.port" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("tokens", ['{"ann": "short"}', '{"<b>": "long-enough-as-it-is"}', "[1]", "5"])
def test_tokens_that_cannot_be_used_end_in_one_line(call: Call, monkeypatch: pytest.MonkeyPatch, tokens: str) -> None:
    monkeypatch.setenv("MHPC_CONSOLE__TOKENS", tokens)
    ended = call("console", "--port", "0")
    assert ended.code == 2
    assert "console.tokens" in ended.err
    assert "long-enough" not in ended.err
