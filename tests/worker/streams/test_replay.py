"""What a dead letter holds is put back once, whoever asks and however often."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from tests.conftest import PrivateRedis
from tests.worker.helpers import LosesReplies
from tests.worker.streams.acting import add, answer, deliver, letters, publish
from worker.dead import Replay
from worker.dead import letters as dead_letters
from worker.settings import RedisSettings
from worker.streams.client import connect, script
from worker.streams.line_streams import DeadLetter, LineStreams


@pytest.fixture
def letter(streams: LineStreams) -> str:
    """A letter of a whole entry that is gone from the stream; its payload is `junk`."""
    add(streams, "1-0")
    deliver(streams)
    publish(streams, answer("1-0", dead=[DeadLetter("", "not_msgpack", "no", b"junk")]))
    streams.client.xdel(streams.images, "1-0")
    return next(dead_letters(streams)).name


def replayed(streams: LineStreams, letter: str, client: redis.Redis | None = None) -> str:
    run = streams.client.register_script(script("replay"))
    entry: bytes = run(keys=[streams.images, streams.dead], args=[letter, b"junk"], client=client or streams.client)
    return entry.decode()


def batches(streams: LineStreams) -> list[bytes]:
    return [fields[b"batch"] for _, fields in streams.client.xrange(streams.images)]


def test_a_letter_that_is_replayed_twice_is_added_once(streams: LineStreams, letter: str) -> None:
    assert replayed(streams, letter) == streams.last_id()
    assert replayed(streams, letter) == ""
    assert (batches(streams), letters(streams)) == ([b"junk"], [])


def test_of_many_who_replay_a_letter_at_once_one_adds_it(streams: LineStreams, letter: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: replayed(streams, letter), range(64)))
    assert sorted(added)[-2:] == ["", streams.last_id()]
    assert (batches(streams), letters(streams)) == ([b"junk"], [])


def test_after_a_lost_reply_a_letter_can_be_replayed_again_and_is_added_once(streams: LineStreams, letter: str) -> None:
    port = streams.client.connection_pool.connection_kwargs["port"]
    way = LosesReplies(port, lambda command: b"EVALSHA" in command and way.lost == 0)
    client = connect(RedisSettings(url=SecretStr(f"redis://127.0.0.1:{way.port}/0")))
    streams.client.script_load(script("replay"))
    with pytest.raises(redis.ConnectionError):
        replayed(streams, letter, client)
    assert way.lost == 1
    assert replayed(streams, letter, client) == ""
    assert (batches(streams), letters(streams)) == ([b"junk"], [])
    way.close()


def test_an_add_that_fails_leaves_the_letter(streams: LineStreams, letter: str) -> None:
    held = letters(streams)
    streams.client.delete(streams.images)
    streams.client.set(streams.images, "of another type")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        replayed(streams, letter)
    assert letters(streams) == held
    streams.client.delete(streams.images)
    assert replayed(streams, letter)


def test_a_server_that_takes_no_more_leaves_the_letter(streams: LineStreams, private_redis: PrivateRedis) -> None:
    full = LineStreams(redis.Redis.from_url(private_redis.url, protocol=2), streams.line)
    letter = full.client.xadd(full.dead, {"reason": "not_msgpack", "payload": b"junk"}).decode()
    full.client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match=r"OOM|maxmemory"):
        replayed(full, letter)
    full.client.config_set("maxmemory", 0)
    assert full.client.xlen(full.dead) == 1
    assert full.client.xlen(full.images) == 0


def test_what_is_replayed_is_read_as_a_new_entry(streams: LineStreams, letter: str) -> None:
    (found,) = dead_letters(streams)
    text = Replay(streams, 1000)(found)
    assert text == f"is entry {streams.last_id()}, from the letter's bytes"
    assert deliver(streams) == [streams.last_id()]
    assert Replay(streams, 1000)(found) == ""


@pytest.mark.parametrize("owner", ["1-0", "9-0"])
def test_the_claim_on_an_id_goes_with_the_image_and_that_of_another_stands(streams: LineStreams, owner: str) -> None:
    add(streams, "1-0")
    deliver(streams)
    assert streams.is_first("a", owner, 2, 10)
    publish(streams, answer("1-0", dead=[DeadLetter("a", "failed", "no", b"\xff\xd8\xff")]))
    assert Replay(streams, 1000)(next(dead_letters(streams)))
    assert streams.is_first("a", streams.last_id(), 0, 10) == (owner == "1-0")
    assert streams.is_first("a", owner, 2, 10) == (owner == "9-0")


def test_every_script_is_packaged() -> None:
    folder = Path(__file__).parents[3] / "worker" / "streams"
    for path in folder.glob("*.lua"):
        assert script(path.stem) == path.read_text()
