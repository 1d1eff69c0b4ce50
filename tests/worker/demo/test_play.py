import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import msgpack
import pytest
import redis

from worker.demo import play
from worker.demo.parts import rendered_parts
from worker.demo.play import Player, Watch, images_of
from worker.demo.processes import Child, ChildEndedError, spawn
from worker.errors import WorkerError
from worker.message import Image, Result, encode_result
from worker.producer import Producer, connect


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A client, and a name of its own for the demo's line."""
    monkeypatch.setattr(play, "LINE", f"demo-{uuid.uuid4().hex[:12]}")
    client = connect(redis_url)
    yield client
    client.close()


def key(stream: str) -> str:
    return f"mhpc:{{{play.LINE}}}:{stream}"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """In the worker's place, a process that does nothing: the tests answer by themselves."""
    child = spawn("the worker", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")
    yield child
    child.stop()


def publish(client: redis.Redis, identity: str, phase: str = "scoring") -> None:
    result = Result(play.LINE, "1-0", identity, phase, "m", 1.0, 2.0, False, False, None, 3.0, None, None)
    client.xadd(key("scores"), {"result": encode_result(result)})


def test_results_dead_letters_and_the_phase_are_read_once(client: redis.Redis) -> None:
    watch = Watch(client)
    assert watch.poll() == []
    publish(client, "a")
    publish(client, "a")
    client.xadd(key("dead"), {"id": "b", "reason": "truncated", "error": "cut off"})
    client.hset(key("state"), "phase", "scoring")
    assert [result["id"] for result in watch.poll()] == ["a", "a"]
    assert watch.poll() == []
    assert set(watch.results) == {"a"}
    assert watch.repeated == 1
    assert watch.dead == {"b": "truncated: cut off"}
    assert watch.phase == "scoring"


def test_more_results_than_one_read_holds_are_all_read(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "READ", 3)
    for i in range(10):
        publish(client, str(i))
    assert len(Watch(client).poll()) == 10


def answering(client: redis.Redis) -> Callable[[], None]:
    """Answer every image from a thread, as the worker does; returns what ends it."""
    client.xgroup_create(key("images"), "mhpc", "0", mkstream=True)
    stop = threading.Event()

    def answer() -> None:
        last = b"0"
        while not stop.is_set():
            for entry, fields in cast(play.Entries, client.xrange(key("images"), min=b"(" + last)):
                for image in msgpack.unpackb(fields[b"batch"])["images"]:
                    publish(client, image["id"])
                last = entry
                client.xgroup_setid(key("images"), "mhpc", entry)
            time.sleep(0.01)

    thread = threading.Thread(target=answer)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return end


def test_all_parts_are_sent_and_their_results_seen(client: redis.Redis, child: Child) -> None:
    parts = rendered_parts(learn=20, calibrate=0, good=0, per_kind=0)
    watch, seen = Watch(client), [0]
    player = Player(Producer(client, play.LINE, max_ahead=2), watch, child)

    def count(new: list[play.Result]) -> None:
        seen[0] += len(new)

    end = answering(connect_again(client))
    try:
        player.play(images_of(parts), done=lambda: watch.answered(parts) == len(parts), seen=count)
    finally:
        end()
    assert seen == [20]
    assert set(watch.results) == {part.id for part in parts}


def connect_again(client: redis.Redis) -> redis.Redis:
    return redis.Redis(connection_pool=client.connection_pool)


def test_a_worker_that_dies_ends_the_play_with_the_end_of_its_log(client: redis.Redis, tmp_path: Path) -> None:
    child = spawn("the worker", [sys.executable, "-c", "raise SystemExit('out of luck')"], tmp_path / "log")
    player = Player(Producer(client, play.LINE), Watch(client), child)
    with pytest.raises(ChildEndedError, match="out of luck"):
        player.play([], done=lambda: False, seen=lambda new: None)


def test_silence_is_an_error_that_says_how_far_it_came(
    client: redis.Redis, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play, "STALL_SECONDS", 0.3)
    publish(client, "a", "learning")
    player = Player(Producer(client, play.LINE), Watch(client), child)
    with pytest.raises(WorkerError, match="nothing came from the worker for 0 s, in phase None, with 1 results"):
        player.play([], done=lambda: False, seen=lambda new: None)


def test_an_error_while_sending_ends_the_play(client: redis.Redis, child: Child) -> None:
    def broken() -> Iterator[Image]:
        yield Image("a", "png", b"")
        raise OSError("the disk is gone")

    player = Player(Producer(client, play.LINE), Watch(client), child)
    with pytest.raises(OSError, match="the disk is gone"):
        player.play(broken(), done=lambda: False, seen=lambda new: None)


def test_an_interrupt_stops_a_camera_that_waits_for_room(client: redis.Redis, child: Child) -> None:
    player = Player(Producer(client, play.LINE, max_ahead=1), Watch(client), child)

    def interrupted(new: list[play.Result]) -> None:
        raise KeyboardInterrupt

    endless = (Image(str(i), "png", b"") for i in iter(int, 1))
    with pytest.raises(KeyboardInterrupt):
        player.play(endless, done=lambda: False, seen=interrupted)
