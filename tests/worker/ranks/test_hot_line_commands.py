"""What a command finds in a hot line, and what becomes of its ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.mhpc.core.ranks import in_ranks
from tests.worker.ranks.test_hot_line import BAD, config, entries, made_share
from worker.keeping.commands import Means, execute
from worker.ranks.crew import Crew, follow
from worker.ranks.hot_line import HotLine
from worker.snapshots import Snapshot
from worker.streams.control import Command
from worker.streams.ids import FROM_START


def led(play: Callable[[HotLine], dict[str, Any]]) -> dict[str, Any]:
    """What comes of a line that rank 0 leads; the others follow."""
    share = made_share()
    if dist.get_rank():
        follow(share)
        return {}
    crew = Crew(share, 60)
    found = play(HotLine(config(), 0.9, share.engine.device, crew))
    crew.end()
    return found


def commanded(line: HotLine) -> dict[str, Any]:
    """What a command finds in rank 0's learner, in the middle of learning."""
    some, rest = entries()[:6], entries()[6:12]
    line.apply_all(some, lambda *_: True)
    own, counts = line.learner.images_seen_, line.counts
    before = line.state()[0]
    line.gather()
    after = line.learner.state_dict()
    line.apply_all(rest, lambda *_: True)
    seen, numbers = line.counts, line.state()[0]["numbers"]
    return {"own": own, "counts": counts, "before": before, "after": after, "seen": seen, "numbers": numbers}


def test_a_command_finds_what_all_have_learned_and_the_ranks_go_on(tmp_path: Path) -> None:
    found = in_ranks(tmp_path, led, commanded)[0]
    assert found["own"] < sum(found["counts"]) == sum(int(n) for n in found["after"]["counts"][2:])
    for name, tensor in found["after"].items():
        assert torch.equal(tensor, found["before"][name]), name
    good = sum(int(image.id) not in BAD for _, images in entries()[:12] for image in images)
    assert sum(found["seen"]) == good
    assert torch.equal(found["numbers"], found["numbers"].unique())  # each picture has a number of its own


def unused(*args: str) -> Any:
    raise AssertionError(args)


def rolled_back(line: HotLine) -> dict[str, Any]:
    """What a hot line has, and what its ranks count, after a rollback to a version that was learning."""
    line.apply_all(entries()[:6], lambda *_: True)
    learning = Snapshot("0000000001-0000000003", *line.state())
    means = Means(unused, unused, unused, lambda _: learning, lambda: FROM_START, "0000000001-0000000004")
    line.gather()
    execute(line, Command("1-0", "rollback", {}, "test", ""), means)
    begun = line.progress[0]
    line.apply_all(entries()[6:12], lambda *_: True)
    firsts = [source.first for source in line.sources]
    counts = line.counts
    return {"begun": begun, "firsts": firsts, "counts": counts}


def test_after_a_rollback_to_learning_all_ranks_count_from_none(tmp_path: Path) -> None:
    found = in_ranks(tmp_path, led, rolled_back)[0]
    assert found["begun"] == 0
    assert found["firsts"][0] == 0
    assert sum(found["counts"]) == sum(int(image.id) not in BAD for _, images in entries()[6:12] for image in images)
