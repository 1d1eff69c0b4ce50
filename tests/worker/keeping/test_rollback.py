"""What a rollback without a version takes: what stood before a person's last change, whatever came since."""

import pytest

from tests.worker.commanding import limit, put_up_for_review, score, told, trained
from tests.worker.keepers import MakeKeeper, add, learn_all, opened
from worker.keeping.keeper import Keeper
from worker.line import LEARNING, SCORING
from worker.snapshots import SnapshotStore
from worker.streams.line_streams import LineStreams


def test_a_relearn_is_taken_back_by_a_rollback_while_it_is_under_way_and_afterwards(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    good, expected, threshold = keeper.model, score(keeper), limit(keeper)
    for ended in (False, True):
        told(keeper, "relearn")
        relearned(keeper, ended)
        assert good in keeper.store.stems()
        assert len(keeper.store.stems()) == 3 + 1  # snapshots.keep, and one
        keeper = opened(make_keeper(), "station-1#b")  # a restart forgets nothing
        assert (ended, keeper.line.phase) in ((False, LEARNING), (True, SCORING))
        ok, text = told(keeper, "rollback")
        assert ok, text
        assert good in text
        assert (score(keeper), limit(keeper), keeper.line.phase) == (expected, threshold, SCORING)
        good = keeper.model


def relearned(keeper: Keeper, to_the_end: bool) -> None:
    """A relearn's versions, many more than are kept."""
    first = int(keeper.streams.last_id().partition("-")[0]) + 100
    for number in range(first, first + 11 if to_the_end else first + 5):
        add(keeper.streams, f"{number}-0")
        learn_all(keeper)
        keeper.snapshot()


def test_a_rollback_of_a_rollback_goes_back_again(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    old = score(keeper)
    told(keeper, "relearn")
    relearned(keeper, True)
    new = score(keeper)
    assert new != old
    for expected in (old, new, old):
        assert told(keeper, "rollback")[0]
        assert score(keeper) == expected
    told(keeper, "relearn")
    for phase in (SCORING, LEARNING, SCORING):  # the relearn is taken back, goes on after all, is taken back
        assert told(keeper, "rollback")[0]
        assert (keeper.line.phase, score(keeper)) == (phase, old)


@pytest.mark.parametrize("change", ["calibrate", "normal", "anomalous"])
def test_whatever_a_person_changed_is_taken_back_and_no_threshold_that_moved(
    make_keeper: MakeKeeper, streams: LineStreams, change: str
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    if change == "anomalous":
        told(keeper, "normal", entry="9-9", id="part")
    before, expected = keeper.model, score(keeper)
    args = {} if change == "calibrate" else {"entry": "9-9", "id": "part"}
    assert told(keeper, change, **args)[0]
    relearned(keeper, True)
    for rate in (0.1, 0.2, 0.3, 0.4):
        assert told(keeper, "rate", rate=rate)[0]
    ok, text = told(keeper, "rollback")
    assert (ok, before in text) == (True, True)
    assert score(keeper) == expected


def test_what_changed_nothing_is_nothing_to_go_back_to(make_keeper: MakeKeeper, streams: LineStreams) -> None:
    keeper = trained(make_keeper, streams)
    ok, text = told(keeper, "rollback")
    assert (ok, text.partition(";")[0]) == (False, "a version before the present one that scores is not there")
    put_up_for_review(keeper, why="quarantined")
    told(keeper, "rate", rate=0.1)
    told(keeper, "pause")
    told(keeper, "resume")
    told(keeper, "anomalous", entry="9-9", id="part")
    assert keeper.line.before == ""
    earlier = keeper.store.stems()[-2]
    assert earlier in told(keeper, "rollback")[1]


def test_versions_of_a_release_that_marked_no_change_are_loaded_and_gone_back_to_where_they_score(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    keeper = trained(make_keeper, streams)
    scored, expected = keeper.model, score(keeper)
    told(keeper, "relearn")
    assert isinstance(keeper.store, SnapshotStore)
    for stem in keeper.store.stems():
        _, tensors, metadata = keeper.store.load(stem)
        keeper.store.write(stem, tensors, {key: value for key, value in metadata.items() if key != "before"})
    again = opened(make_keeper(), "station-1#b")
    assert (again.line.phase, again.line.before) == (LEARNING, "")
    ok, text = told(again, "rollback")
    assert (ok, scored in text, score(again)) == (True, True, expected)
