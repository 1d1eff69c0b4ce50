import inspect
import signal
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.calling import Call
from tests.worker.faults.proxy import Proxy
from tests.worker.helpers import encoded, eventually, picture
from tests.worker.terminal import Terminal
from worker.cli.produce import produce
from worker.producer import MAX_AHEAD
from worker.settings import LINES_KEY
from worker.streams.line_streams import LineStreams


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two pictures, and a file that only has a picture's name."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(picture(0)))
    (folder / "more" / "b.png").write_bytes(encoded(picture(1)))
    (folder / "bad.png").write_bytes(b"not a picture")
    return folder


def sent(client: Any, line: str) -> list[list[str]]:
    """The ids in each entry of a line."""
    entries = client.xrange(LineStreams(client, line).images)
    return [[image["id"] for image in msgpack.unpackb(fields[b"batch"])["images"]] for _, fields in entries]


def test_a_folder_is_played_into_a_line_with_its_paths_as_ids(
    call: Call, config: Any, client: redis.Redis, line: str, pictures: Path
) -> None:
    ended = call("produce", pictures, "--config", config())
    assert (ended.code, ended.out) == (0, "")
    assert "left out bad.png: 13 bytes that are none of BMP" in ended.err
    assert ended.err.endswith(f"2 pictures sent to line {line}\n")
    assert sent(client, line) == [["a.png", "more/b.png"]]


def test_in_a_loop_each_round_has_fresh_ids_until_it_is_interrupted(
    config: Any, client: redis.Redis, line: str, pictures: Path
) -> None:
    with Terminal("produce", str(pictures), "--config", str(config()), "--loop", "--batch", "1") as terminal:
        eventually(lambda: client.xlen(LineStreams(client, line).images) == MAX_AHEAD)  # nobody answers: it waits
        terminal.shows(f"{MAX_AHEAD}/?")  # and it has heard of the last one
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 0
        said = terminal.written()
    ids = [identity for entry in sent(client, line) for identity in entry]
    assert ids[:6] == ["a.png", "more/b.png", "a.png#2", "more/b.png#2", "a.png#3", "more/b.png#3"]
    assert len(set(ids)) == len(ids)
    assert f"{len(ids)} pictures sent to line {line}" in said
    assert said.count("left out") == 1


def test_who_interrupts_an_entry_on_its_way_is_told_what_nobody_knows(
    config: Any, client: redis.Redis, line: str, pictures: Path
) -> None:
    proxy = Proxy(client.connection_pool.connection_kwargs["port"])
    options = ("-c", str(config(url=proxy.url)), "--batch", "1", "--rate", "0.3", "--max-ahead", "0")
    try:
        with Terminal("produce", str(pictures), *options) as terminal:
            terminal.shows("1/3")
            proxy.delay(60)
            eventually(lambda: client.xlen(LineStreams(client, line).images) == 2)
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.ended() == 1
            said = terminal.written()
    finally:
        proxy.close()
    assert f"1 pictures sent to line {line}" in said
    assert "error: interrupted while more/b.png went out; nobody knows whether they arrived" in said


def test_a_user_with_xadd_alone_plays_with_no_limit_of_entries_ahead(
    call: Call, config: Any, private_redis: PrivateRedis, line: str, pictures: Path
) -> None:
    admin = redis.Redis(port=private_redis.port, protocol=2)
    images = LineStreams(admin, line).images
    admin.acl_setuser("camera", enabled=True, passwords=["+secret"], keys=[images], commands=["+xadd"])
    arguments = ("produce", pictures, "--config", config(url=private_redis.url.replace("//", "//camera:secret@")))
    ended = call(*arguments)
    assert ended.code == 1
    assert "error: Redis does not let this user see how far line" in ended.err
    assert "mhpc-worker produce: --max-ahead 0" in ended.err
    assert call(*arguments, "--max-ahead", "0").code == 0
    assert sent(admin, line) == [["a.png", "more/b.png"]]


def test_who_plays_into_a_line_that_nobody_reads_is_told_each_time(
    call: Call, config: Any, private_redis: PrivateRedis, pictures: Path
) -> None:
    admin = redis.Redis(port=private_redis.port, protocol=2)
    arguments = ("produce", pictures, "--line", "zz", "--max-ahead", "0", "--config", config(url=private_redis.url))
    for _ in range(2):  # by the second time the line has a stream
        ended = call(*arguments)
        assert (ended.code, ended.err.count("line zz is neither configured here nor declared at redis://127")) == (0, 1)
    for tell in (
        lambda: admin.hset(LINES_KEY, "zz", "{}"),
        lambda: LineStreams(admin, "zz").acquire("station-9#ab", 0),
    ):
        tell()
        ended = call(*arguments)
        assert (ended.code, "neither configured" in ended.err) == (0, False)
        admin.flushdb()
    admin.acl_setuser("camera", enabled=True, passwords=["+secret"], keys=["mhpc:{zz}:images"], commands=["+xadd"])
    ended = call(*arguments[:-1], config(url=private_redis.url.replace("//", "//camera:secret@")))
    assert (ended.code, "neither configured" in ended.err) == (0, False)


def test_the_entries_that_may_wait_are_a_producers_unless_said() -> None:
    assert inspect.signature(produce).parameters["max_ahead"].default == MAX_AHEAD


@pytest.mark.parametrize(
    ("folder", "part"), [("absent", "absent: no such folder"), (".", "no pictures in it; expected files that end in")]
)
def test_a_folder_without_pictures_ends_on_one_line(
    call: Call, config: Any, client: redis.Redis, line: str, tmp_path: Path, folder: str, part: str
) -> None:
    ended = call("produce", tmp_path / folder, "--config", config())
    assert (ended.code, part in ended.error) == (2, True)
    assert client.xlen(LineStreams(client, line).images) == 0
