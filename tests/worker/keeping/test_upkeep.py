import pytest

from tests.worker.keepers import MakeKeeper, answer_all, opened
from worker.streams.ids import LAST
from worker.streams.line_streams import ANSWERING, LEARNING, LineStreams


def test_entries_that_a_stranger_took_away_unread_are_counted_once(
    make_keeper: MakeKeeper, streams: LineStreams, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = make_keeper()
    keeper.acquire("station-1#a")

    def lost() -> float:
        return keeper.metrics.registry.get_sample_value("mhpc_entries_lost_total", {"line": streams.line}) or 0.0

    for number in range(1, 10):
        streams.client.xadd(streams.images, {"batch": b""}, id=f"{number}-0")
    keeper.trim()
    assert lost() == 0
    streams.client.xtrim(streams.images, maxlen=4, approximate=False)
    for _ in range(3):
        keeper.trim()
    assert lost() == 5
    answer_all(streams)
    keeper.trim()
    assert lost() == 5


def test_what_is_trimmed_is_what_the_groups_in_use_are_done_with(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = make_keeper()
    keeper.acquire("station-1#a")
    for number in range(1, 4):
        streams.client.xadd(streams.images, {"batch": b""}, id=f"{number}-0")
    answer_all(streams)
    keeper.upkeep(streams, keeper.epoch, [ANSWERING, LEARNING])
    assert streams.client.xlen(streams.images) == 3
    keeper.upkeep(streams, keeper.epoch, [ANSWERING])
    assert streams.client.xlen(streams.images) == 0


def test_that_a_producer_has_used_up_the_ids_is_told_until_the_stream_is_begun_anew(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = opened(make_keeper())
    streams.client.xadd(streams.images, {"batch": b""}, id=LAST)
    keeper.trim()
    assert keeper.upkeep.problem == ""  # it may be read yet
    answer_all(streams)
    for _ in range(3):
        keeper.trim()
        assert f"DEL {streams.images}" in keeper.upkeep.problem
        assert streams.state()["problem"] == keeper.upkeep.problem
        keeper.save_change()  # a commit says that there is no problem
    streams.client.delete(streams.images)
    streams.ensure_groups()
    keeper.trim()
    assert (streams.state()["problem"], keeper.upkeep.problem) == ("", "")
