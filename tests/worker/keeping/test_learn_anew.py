"""The remedy that is printed where a version cannot be used: followed as it stands, the line begins again."""

import re
import shutil
from pathlib import Path

import pytest

from tests.worker.commanding import look, replies, told, trained
from tests.worker.keepers import ENTRIES, MakeKeeper, add, learn_all, opened
from worker.errors import ModelError
from worker.keeping.resync import Resync
from worker.line import CALIBRATING, LEARNING
from worker.snapshots import epoch_of
from worker.streams.ids import FROM_START
from worker.streams.line_streams import LineStreams

OTHER = "station-1#b"


def follow(remedy: str, streams: LineStreams, aside: Path) -> None:
    """Do as a text says: move a folder, and one command of redis-cli."""
    found = re.search(r"learn anew: move (\S+) away and ((?:[A-Z]+) \S+.*)", remedy)
    assert found is not None, remedy
    shutil.move(found[1], aside)
    streams.client.execute_command(*found[2].split())


def test_after_another_backbone_a_line_begins_again_under_a_higher_epoch_and_obeys_nothing_twice(
    make_keeper: MakeKeeper, streams: LineStreams, tmp_path: Path
) -> None:
    keeper = trained(make_keeper, streams)
    assert told(keeper, "rate", rate=0.2)[0]
    keeper.close()
    again = make_keeper(fingerprint="g")
    with pytest.raises(ModelError) as caught:
        again.acquire(OTHER, take_over="station-1")
    follow(str(caught.value), streams, tmp_path / "aside")
    opened(again, OTHER)
    look(again)
    assert (again.line.phase, again.line.learner.images_seen_, again.line.rate) == (LEARNING, 0, None)
    assert (len(replies(streams)), streams.state()["model"]) == (1, "")
    assert again.epoch == keeper.lease.highest_epoch + 1
    add(streams, *[f"{100 + number}-0" for number in range(6)])
    assert learn_all(again).line.phase == CALIBRATING
    assert epoch_of(streams.state()["model"]) == again.epoch
    assert told(again, "rate", rate=0.3) == (True, "false-positive rate 0.3 from the next calibration on")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_line_that_was_stopped_begins_again(
    make_keeper: MakeKeeper, streams: LineStreams, tmp_path: Path, restarted: bool
) -> None:
    add(streams, *ENTRIES[:4])
    learn_all(opened(make_keeper()))
    streams.client.delete(streams.images)
    streams.ensure_groups()
    add(streams, "3-0")
    stopped = make_keeper()
    stopped.acquire(OTHER, take_over="station-1")
    assert stopped.stopped
    follow(stopped.problem, streams, tmp_path / "aside")
    if restarted:
        stopped = make_keeper()
    else:
        Resync()(stopped, OTHER)
    streams.client.delete(streams.lease)
    again = opened(stopped, OTHER)
    assert (again.line.applied_through, streams.state()["problem"]) == (FROM_START, "")
    assert learn_all(again).line.applied_through == "3-0"
