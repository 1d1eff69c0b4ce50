import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.helpers import eventually
from tests.worker.keepers import MakeKeeper
from worker.errors import FencedError
from worker.keeping.lease import ASK_AGAIN_SECONDS, LAPSE_SECONDS, RENEW_SECONDS, Lease
from worker.streams.line_streams import LEASE_ENDS_MS, LineStreams


def test_a_lease_counts_as_held_until_shortly_before_it_ends_and_is_renewed_later_if_nobody_took_it(
    streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lease = Lease(streams)
    assert not lease.held
    epoch, *_ = lease.acquire("a#1", 0, "")
    now += LAPSE_SECONDS - 1
    assert lease.held
    lease.renew(epoch)  # renewed at the last moment
    assert not lease.lapsed
    now += LAPSE_SECONDS + 13
    assert LAPSE_SECONDS < LEASE_ENDS_MS / 1000
    assert not lease.held
    streams.client.delete(streams.lease)  # it has ended
    with capture_logs() as logs:
        lease.renew(epoch)
    assert [(entry["line"], entry["not_renewed_seconds"]) for entry in logs] == [(streams.line, 40)]
    assert lease.held
    assert streams.client.get(streams.lease) == b"a#1"
    assert streams.state()["epoch"] == "1"
    now += LAPSE_SECONDS - 1
    lease.renew(epoch)
    assert lease.lapsed  # under this epoch
    lease.acquire("a#1", 0, "")
    assert not lease.lapsed


def test_a_lease_that_lapsed_and_that_another_took_is_not_renewed(
    streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lease = Lease(streams)
    epoch, *_ = lease.acquire("a#1", 0, "")
    now += LAPSE_SECONDS + 13
    other = LineStreams(streams.client, streams.line)
    for ended in (lambda: streams.client.delete(streams.lease), lambda: other.release(epoch + 1)):
        ended()  # and be it that the other let it go again
        now += ASK_AGAIN_SECONDS
        with capture_logs() as logs:
            if not other.holder:
                assert other.acquire("b#1", 0)[0] == epoch + 1
            with pytest.raises(FencedError, match="no longer"):
                lease.renew(epoch)
        assert (logs, lease.held) == ([], False)
    assert streams.state()["holder"] == "b#1"


def test_a_lease_that_was_lost_or_refused_is_not_asked_for_at_every_turn(
    streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(epoch: int) -> None:
        asked.append(now)
        renew(epoch)

    now, asked, renew = 1000.0, list[float](), streams.renew
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(streams, "renew", counted)
    lease = Lease(streams)
    epoch, *_ = lease.acquire("a#1", 0, "")
    now += RENEW_SECONDS
    with monkeypatch.context() as refused:
        refused.setattr(streams, "lease", streams.images)
        streams.client.xadd(streams.images, {"batch": ""})
        for _ in range(300):
            with suppress(redis.ResponseError):
                lease.renew(epoch)
            now += 0.01
    assert 2 <= len(asked) <= 4
    streams.client.delete(streams.lease)
    LineStreams(streams.client, streams.line).acquire("b#1", 0)
    now += ASK_AGAIN_SECONDS
    asked.clear()
    for _ in range(300):
        with pytest.raises(FencedError, match="no longer"):  # whoever asked first, the line's own part finds it out
            lease.renew(epoch)
        now += 0.01
    assert len(asked) == 1
    streams.client.delete(streams.lease)
    epoch, *_ = lease.acquire("a#1", 0, "")
    lease.renew(epoch)


def test_a_clock_of_the_wall_that_jumps_an_hour_moves_no_lease(
    streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(streams)
    epoch, *_ = lease.acquire("a#1", 0, "")
    for hours in (1, -1):
        monkeypatch.setattr("time.time", lambda hours=hours: 1_700_000_000.0 + hours * 3600)
        lease.renew(epoch)


def test_the_first_attempt_alone_takes_over_what_its_name_has_left(streams: LineStreams) -> None:
    first, second = Lease(streams), Lease(streams)
    assert first.acquire("a#1", 0, "a")[0] == 1
    assert second.acquire("a#2", 0, "a")[0] == 2
    assert first.acquire("a#1", 0, "a")[:2] == (0, "a#2")


def test_an_epoch_is_above_those_that_this_process_held(streams: LineStreams) -> None:
    lease = Lease(streams)
    assert [lease.acquire("a#1", floor, "")[0] for floor in (4, 0)] == [5, 6]
    streams.client.delete(streams.state_key, streams.lease)  # wiped
    assert lease.acquire("a#1", 0, "")[0] == 7


def test_who_has_connected_anew_is_given_no_epoch_that_a_lost_master_may_have_given(streams: LineStreams) -> None:
    first, second, fresh = Lease(streams), Lease(streams), Lease(streams)
    assert first.acquire("a#1", 0, "")[0] == 1
    assert second.acquire("b#1", 0, "")[:2] == (0, "a#1")
    assert first.acquire("a#1", 0, "")[0] == 2
    streams.client.hset(streams.state_key, "epoch", 1)  # the replica that took over was not told of that
    streams.client.delete(streams.lease)
    second.doubt()
    assert second.acquire("b#1", 0, "")[0] > 1000
    streams.client.delete(streams.lease)
    fresh.doubt()  # it had no connection before
    epoch, *_ = fresh.acquire("c#1", 0, "")
    streams.client.delete(streams.lease)
    assert second.acquire("b#1", 0, "")[0] == epoch + 1  # once is enough


def test_who_waits_for_a_lease_tries_again_when_it_ends(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.keeping.keeper.ACQUIRE_SECONDS", 1000.0)
    waiting = make_keeper()
    streams.acquire("killed#1", 0)
    began = time.monotonic()
    streams.client.pexpire(streams.lease, 60_000)

    def kept() -> int:
        waiting.acquire("station-1#a")
        return waiting.epoch

    assert not kept()
    ends = waiting._acquire_at
    assert began + 60 < ends < time.monotonic() + 61
    streams.client.pexpire(streams.lease, 1)
    eventually(lambda: not streams.client.exists(streams.lease))
    for now, epoch in ((ends - 1, 0), (ends, 2)):
        monkeypatch.setattr("worker.keeping.keeper.time", SimpleNamespace(monotonic=lambda now=now: now))
        assert kept() == epoch
