"""Redis was restored, or begun anew: a line that was stopped for it, and the cursors into streams that are gone."""

from typing import Any

import msgpack
import pytest
import redis

from tests.worker.commanding import look, replies, told, trained
from tests.worker.keepers import ENTRIES, HOLDER, MakeKeeper, add, answer_all, file_of, learn_all, opened, pending, take
from worker.errors import StateError
from worker.keeping.keeper import Keeper
from worker.keeping.resync import Resync, lost_meanwhile
from worker.streams.control import encode_command, send
from worker.streams.line_streams import ANSWERING, LEARNING, LineStreams

OTHER = "station-1#b"
AHEAD = "9999999999999-0"  # an id by a clock that was far ahead


# -- a line that was stopped -------------------------------------------------------------------------------------------


def halted(keeper: Keeper) -> bool:
    keeper.acquire(OTHER, take_over="station-1")
    Resync()(keeper, OTHER)
    return keeper.stopped and not keeper.epoch


def stopped(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    """Of a line of which Redis has one entry less than was learned from and committed."""
    add(streams, *ENTRIES[:4])
    learn_all(opened(make_keeper()))
    streams.client.delete(streams.images)
    streams.ensure_groups()
    add(streams, *ENTRIES[:3])
    keeper = make_keeper()
    assert halted(keeper)
    return keeper


def test_newer_entries_do_not_start_a_line_that_was_stopped_whoever_looks(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = stopped(make_keeper, streams)
    told = streams.state()["problem"]
    add(streams, *ENTRIES[4:6])
    assert halted(keeper)
    again = make_keeper()
    assert halted(again)
    assert again.problem == streams.state()["problem"] == told
    streams.client.delete(streams.lease)
    send(streams, "resync", {}, "ann")
    Resync()(again, OTHER)
    assert (again.line.applied_through, streams.state()["problem"]) == ("6-0", "")
    assert not halted(keeper)  # another keeper was told to
    assert opened(make_keeper(), OTHER).epoch


@pytest.mark.parametrize("wrong", [{"v": 2}, {"args": {"dry_run": True}}, {"by": 7}])
def test_a_resync_that_is_refused_starts_no_line(
    make_keeper: MakeKeeper, streams: LineStreams, wrong: dict[str, Any]
) -> None:
    keeper = stopped(make_keeper, streams)
    asked = {"v": 1, "name": "resync", "args": {}, "by": "ann"} | wrong
    streams.client.xadd(streams.control, {"command": msgpack.packb(asked)})
    assert halted(keeper)
    send(streams, "resync", {}, "ann")
    assert not halted(keeper)
    (refused, _), (resynced, _) = replies(streams)
    assert (refused, resynced) == (False, True)


def test_a_redis_that_is_restored_starts_the_line(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:2])
    first = learn_all(opened(make_keeper(keep=2)))
    old = backup(streams)
    add(streams, *ENTRIES[2:8])
    learn_all(first)
    assert len(first.store.stems()) == 2  # what the older state names is pruned
    whole = backup(streams)
    restore(streams, old)
    keeper = make_keeper()
    assert halted(keeper)
    restore(streams, old)
    add(streams, ENTRIES[8])
    assert halted(keeper)  # still an older one, that says nothing of the stop
    restore(streams, whole)
    assert not halted(keeper)
    assert (opened(keeper, OTHER).line.applied_through, streams.state()["problem"]) == ("8-0", "")


def test_a_state_that_cannot_be_read_is_told_and_no_lease_is_taken(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = make_keeper()
    for field, value in (("epoch", "seven"), ("commands_through", b"\xff")):
        streams.client.hset(streams.state_key, field, value)
        for attempt in (lambda: keeper.acquire(OTHER), lambda: lost_meanwhile(keeper)):
            with pytest.raises(StateError, match=f"has {field} "):
                attempt()
        streams.client.delete(streams.state_key)
    assert not streams.client.exists(streams.lease)


def backup(streams: LineStreams) -> dict[str, bytes]:
    return {key: streams.client.dump(key) for key in (streams.images, streams.state_key)}


def restore(streams: LineStreams, kept: dict[str, bytes]) -> None:
    for key, value in kept.items():
        streams.client.restore(key, 0, value, replace=True)


def test_a_line_that_runs_stops_where_its_stream_was_begun_anew_by_a_slower_clock_until_resync(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    answer_all(streams)
    keeper.trim()
    streams.client.delete(streams.images)
    streams.ensure_groups()  # as the worker does at the first read
    keeper.trim()  # it is empty: nothing says that it is behind
    add(streams, "1-0", "2-0")
    with pytest.raises(redis.ResponseError, match="ends at 2-0, before 11-0 that was read"):
        keeper.trim()
    assert lost_meanwhile(keeper)
    keeper.lose("lost")
    keeper.acquire(HOLDER)
    assert keeper.stopped
    send(streams, "resync", {}, "ann")
    Resync()(keeper, HOLDER)
    assert keeper.epoch
    assert [entry.id for entry in take(streams, 10)] == ["1-0", "2-0"]
    keeper.trim()


def test_a_resync_sets_back_a_group_beyond_the_end(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    add(streams, *ENTRIES[:4])
    learn_all(opened(make_keeper()))
    streams.client.delete(streams.images, streams.lease)
    for group in (ANSWERING, LEARNING):
        streams.client.xgroup_create(streams.images, group, id=AHEAD, mkstream=True)
    add(streams, "3-0")
    keeper = make_keeper()
    assert halted(keeper)
    streams.client.delete(streams.lease)
    send(streams, "resync", {}, "ann")
    Resync()(keeper, OTHER)
    add(streams, "4-0")
    assert [entry.id for entry in take(streams, 10)] == ["3-0", "4-0"]
    assert (learn_all(keeper).line.applied_through, pending(streams)) == ("4-0", ["3-0", "4-0"])


# -- streams that were begun anew --------------------------------------------------------------------------------------


@pytest.fixture
def ahead(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    """Has obeyed a command and followed results while Redis' clock was ahead."""
    keeper = trained(make_keeper, streams)
    command = {"command": encode_command("rate", {"rate": 0.2}, "ann")}
    streams.client.xadd(streams.control, command, id=AHEAD)
    streams.client.xadd(streams.scores, {"result": b""}, id=AHEAD)
    look(keeper)
    assert (keeper.line.commands_through, keeper.line.scores_through) == (AHEAD, AHEAD)
    return keeper


@pytest.mark.parametrize("restarted", [False, True])
def test_streams_that_were_begun_anew_by_a_slower_clock_are_read_from_their_start(
    ahead: Keeper, make_keeper: MakeKeeper, streams: LineStreams, restarted: bool
) -> None:
    streams.client.delete(*streams.client.keys(f"mhpc:{{{streams.line}}}:*"))
    streams.ensure_groups()
    send(streams, "rate", {"rate": 0.3}, "ann")
    if not restarted:
        assert lost_meanwhile(ahead)
        ahead.lose("lost")
    keeper = opened(make_keeper() if restarted else ahead, OTHER)
    look(keeper)
    assert (replies(streams)[0][0], keeper.line.rate) == (True, 0.3)
    last = streams.client.xadd(streams.scores, {"result": b""}).decode()
    look(keeper)
    assert keeper.line.scores_through == last


def test_a_control_stream_that_alone_was_begun_anew_is_read_after_a_reconnect(
    ahead: Keeper, streams: LineStreams
) -> None:
    streams.client.delete(streams.control, streams.scores)
    assert lost_meanwhile(ahead) == ""
    assert told(ahead, "rate", rate=0.3)[0]
    assert ahead.line.rate == 0.3


def test_a_resync_is_obeyed_though_a_clock_was_ahead_before(
    ahead: Keeper, make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    streams.client.delete(streams.control, streams.images)
    streams.ensure_groups()
    add(streams, "1-0")
    keeper = make_keeper()
    assert halted(keeper)
    streams.client.delete(streams.lease)
    send(streams, "resync", {}, "ann")
    Resync()(keeper, OTHER)
    assert keeper.epoch
    assert replies(streams)[-1][0]


def test_commands_of_an_older_redis_are_not_obeyed_again(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    assert told(keeper, "rate", rate=0.2)[0]
    older = backup(streams) | {streams.control: streams.client.dump(streams.control)}
    for rate in (0.3, 0.4, 0.25):
        assert told(keeper, "rate", rate=rate)[0]
    for stem in keeper.store.stems()[:-1]:
        file_of(keeper, stem).unlink()
    restore(streams, older)
    streams.client.delete(streams.replies, streams.lease)
    again = opened(make_keeper(), OTHER)
    look(again)
    assert (again.line.rate, streams.client.xlen(streams.replies)) == (0.25, 0)
    assert told(again, "rate", rate=0.1)[0]


def test_a_command_that_was_refused_is_not_obeyed_by_the_next_keeper(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper, standby = trained(make_keeper, streams), make_keeper()
    assert standby.follow()
    assert told(keeper, "resume") == (False, "the line is not paused")
    look(opened(standby, OTHER))
    assert len(replies(streams)) == 1
