"""What a keeper does for its line now and then: entries that others took away, consumers that are dead."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.helpers import eventually
from tests.worker.streams.acting import HOLDER, add, answer, deliver, pending, publish
from worker.errors import FencedError
from worker.streams.line_streams import ANSWERING, LEARNING, LineStreams
from worker.streams.reads import wait_and_read
from worker.streams.upkeep import delete_idle_consumers, unread_lost


def counts_additions(streams: LineStreams) -> bool:
    """Whether the server says how many entries were ever added: from 7.0 on."""
    return "entries-added" in streams.client.xinfo_stream(streams.images)


def numbered(first: int, last: int) -> list[str]:
    return [f"{i}-0" for i in range(first, last)]


def answered(streams: LineStreams, count: int = 100) -> list[str]:
    entries = deliver(streams, count=count)
    publish(streams, *[answer(entry, b"r") for entry in entries])
    return entries


# -- entries that others took away -------------------------------------------------------------------------------------


def trimmed_to_four(streams: LineStreams) -> int:
    return int(streams.client.xtrim(streams.images, maxlen=4, approximate=False))


def pushed_out_by_a_producer(streams: LineStreams) -> int:
    before = streams.client.xlen(streams.images)
    streams.client.xadd(streams.images, {"batch": "new"}, maxlen=4, approximate=False)
    return int(before) + 1 - 4


def deleted_from_the_middle(streams: LineStreams) -> int:
    return int(streams.client.xdel(streams.images, "3-0", "5-0"))


def deleted_at_the_end(streams: LineStreams) -> int:
    return int(streams.client.xdel(streams.images, "9-0", "8-0"))


def all_trimmed(streams: LineStreams) -> int:
    return int(streams.client.xtrim(streams.images, maxlen=0, approximate=False))


@pytest.mark.parametrize(
    "take_away",
    [trimmed_to_four, pushed_out_by_a_producer, deleted_from_the_middle, deleted_at_the_end, all_trimmed],
)
def test_entries_that_were_seen_unread_and_are_taken_away_count_once(
    streams: LineStreams, epoch: int, take_away: Callable[[LineStreams], int]
) -> None:
    add(streams, *numbered(1, 10))
    assert unread_lost(streams, epoch) == 0
    added_since = take_away is pushed_out_by_a_producer
    taken = take_away(streams)
    assert taken > 0
    assert unread_lost(streams, epoch) == (taken if counts_additions(streams) else taken - added_since)
    assert unread_lost(streams, epoch) == 0
    answered(streams)
    assert unread_lost(streams, epoch) == 0


def test_entries_that_no_look_saw_count_where_the_server_counts_additions(streams: LineStreams, epoch: int) -> None:
    assert unread_lost(streams, epoch) == 0
    add(streams, *numbered(1, 10))
    trimmed_to_four(streams)
    answered(streams)
    assert unread_lost(streams, epoch) == (5 if counts_additions(streams) else 0)
    assert unread_lost(streams, epoch) == 0


def test_what_is_answered_and_trimmed_by_the_keeper_or_by_others_never_counts(streams: LineStreams, epoch: int) -> None:
    for first in (1, 11, 21):
        add(streams, *numbered(first, first + 10))
        assert unread_lost(streams, epoch) == 0
        answered(streams, count=4)
        assert unread_lost(streams, epoch) == 0
        answered(streams)
        if first == 11:
            trimmed_to_four(streams)
        assert unread_lost(streams, epoch) == 0
        streams.trim(epoch, [ANSWERING])
        assert unread_lost(streams, epoch) == 0
    assert streams.client.xlen(streams.images) == 0


def test_what_was_trimmed_while_pending_gets_its_dead_letter_and_does_not_count(
    streams: LineStreams, epoch: int
) -> None:
    add(streams, *numbered(1, 10))
    unread_lost(streams, epoch)
    deliver(streams, count=2)
    streams.client.xtrim(streams.images, maxlen=0, approximate=False)
    assert unread_lost(streams, epoch) == 7
    lost = streams.own_pending("station-1", 10)
    assert [entry.lost for entry in lost] == [True, True]
    publish(streams, *[answer(entry.id) for entry in lost])
    assert unread_lost(streams, epoch) == 0


def test_a_claim_that_finds_its_entries_trimmed_does_not_count_them_either(streams: LineStreams, epoch: int) -> None:
    add(streams, *numbered(1, 5))
    deliver(streams, "dead")
    assert unread_lost(streams, epoch) == 0
    all_trimmed(streams)
    _, lost = streams.claim("station-1", 0, 100)
    publish(streams, *[answer(entry.id) for entry in streams.own_pending("station-1", 10)])
    assert lost == (4 if counts_additions(streams) else 0)
    assert pending(streams, ANSWERING) == []
    assert unread_lost(streams, epoch) == 0


def test_amid_the_stream_nothing_is_told_and_later_all_of_it(streams: LineStreams, epoch: int) -> None:
    add(streams, *numbered(1, 10))
    unread_lost(streams, epoch)
    deliver(streams, count=2)
    streams.client.xdel(streams.images, "5-0", "6-0", "7-0")
    assert unread_lost(streams, epoch) == 0
    publish(streams, answer("1-0", b"r"), answer("2-0", b"r"))
    streams.trim(epoch, [ANSWERING])
    assert unread_lost(streams, epoch) == 3


def test_what_others_acknowledge_or_drop_with_its_consumer_counts(streams: LineStreams, epoch: int) -> None:
    add(streams, *numbered(1, 6))
    unread_lost(streams, epoch)
    deliver(streams, "other", count=3)
    deliver(streams)
    streams.client.xack(streams.images, ANSWERING, "5-0")
    streams.client.xgroup_delconsumer(streams.images, ANSWERING, "other")
    assert unread_lost(streams, epoch) == 4


def test_the_next_keeper_goes_on_from_there(streams: LineStreams, epoch: int) -> None:
    add(streams, *numbered(1, 10))
    unread_lost(streams, epoch)
    trimmed_to_four(streams)
    assert unread_lost(streams, epoch) == 5
    next_epoch, *_ = streams.acquire("station-2#bb", 0, take_over=HOLDER.partition("#")[0])
    with pytest.raises(FencedError):
        unread_lost(streams, epoch)
    assert unread_lost(streams, next_epoch) == 0
    streams.client.xdel(streams.images, "7-0")
    assert unread_lost(streams, next_epoch) == 1
    assert streams.state()["lost"] == "6"


def test_a_group_that_was_made_anew_makes_nothing_up(streams: LineStreams, epoch: int) -> None:
    add(streams, *numbered(1, 10))
    answered(streams, count=6)
    deliver(streams, count=1)
    streams.client.xgroup_destroy(streams.images, ANSWERING)
    assert unread_lost(streams, epoch) == 0
    streams.ensure_groups()  # from the start: nothing was trimmed
    assert unread_lost(streams, epoch) == 0
    assert len(answered(streams)) == 9
    assert unread_lost(streams, epoch) == 0
    add(streams, *numbered(20, 30))
    unread_lost(streams, epoch)
    streams.client.xdel(streams.images, "25-0")
    answered(streams)
    assert unread_lost(streams, epoch) == counts_additions(streams)


def test_a_stream_that_was_deleted_and_begun_anew_makes_nothing_up(streams: LineStreams, epoch: int) -> None:
    add(streams, *numbered(1, 10))
    answered(streams)
    unread_lost(streams, epoch)
    streams.client.delete(streams.images)
    streams.ensure_groups()
    add(streams, *numbered(20, 24))
    for _ in range(2):
        assert unread_lost(streams, epoch) == 0
        answered(streams)
    assert unread_lost(streams, epoch) == 0


def test_ids_of_64_bits_are_told_apart(streams: LineStreams, epoch: int) -> None:
    highest = 2**64 - 1
    add(streams, f"5-{highest - 2}", f"5-{highest - 1}")
    assert deliver(streams, count=1) == [f"5-{highest - 2}"]
    publish(streams, answer(f"5-{highest - 2}", b"r"))
    streams.trim(epoch, [ANSWERING])
    unread_lost(streams, epoch)
    all_trimmed(streams)
    assert unread_lost(streams, epoch) == 1


# -- dead consumers ----------------------------------------------------------------------------------------------------


def consumers(streams: LineStreams) -> set[str]:
    infos: list[dict[str, Any]] = streams.client.xinfo_consumers(streams.images, ANSWERING)
    return {info["name"].decode() for info in infos}


def was_awake(streams: LineStreams, consumer: str, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the entry and is done with it as others are deleted: in one moment of the server, however slow."""
    fenced = streams._fenced

    def read_and_fenced(**given: Any) -> Any:
        pipe = streams.client.pipeline()
        pipe.xreadgroup(ANSWERING, consumer, {streams.images: ">"}, count=1)
        pipe.xack(streams.images, ANSWERING, entry)
        fenced(**given, client=pipe)
        return pipe.execute()[-1]

    monkeypatch.setattr(streams, "_fenced", read_and_fenced)


def test_only_consumers_that_are_idle_and_have_nothing_pending_are_deleted(
    streams: LineStreams, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(streams, *numbered(1, 4))
    for name in ("done", "busy"):
        deliver(streams, name, count=1)
    publish(streams, answer("1-0", b"r"))
    streams.read_learning(epoch, 10)
    time.sleep(0.3)
    assert delete_idle_consumers(streams, epoch) == []
    was_awake(streams, "awake", "3-0", monkeypatch)
    assert delete_idle_consumers(streams, epoch, idle_ms=250) == ["done"]
    assert consumers(streams) == {"busy", "awake"}
    assert pending(streams, ANSWERING) == ["2-0"]
    assert pending(streams, LEARNING) == numbered(1, 4)


def test_a_consumer_that_was_deleted_while_it_waited_reads_on(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-0")
    answered(streams)
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.append(wait_and_read(streams.client, [streams], "station-1", 1, 20_000))
    )
    waiting.start()
    eventually(lambda: streams.client.info("clients")["blocked_clients"])
    time.sleep(0.01)
    assert delete_idle_consumers(streams, epoch, idle_ms=0) == ["station-1"]
    add(streams, "2-0")
    waiting.join(20)
    assert [entry.id for entry in found[0][streams.line]] == ["2-0"]
    assert pending(streams, ANSWERING) == ["2-0"]


def test_who_lost_the_lease_deletes_no_consumer(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-0")
    answered(streams)
    time.sleep(0.01)
    streams.acquire("station-2#bb", 0, take_over=HOLDER.partition("#")[0])
    with pytest.raises(FencedError):
        delete_idle_consumers(streams, epoch, idle_ms=0)
    assert consumers(streams) == {"station-1"}
