"""Four ranks learn a line; what they make of it is held against one process's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mhpc.linalg import nearest
from tests.mhpc.core.ranks import in_ranks
from tests.worker.helpers import encoded, picture, small_settings
from worker.engine import Engine, pick_device
from worker.failpoints import armed
from worker.learners import new_learner
from worker.line import CALIBRATING, LEARNING, SCORING, Line
from worker.message import Image
from worker.metrics import Metrics
from worker.ranks.crew import Crew, follow
from worker.ranks.hot_line import HotLine
from worker.ranks.share import Share
from worker.settings import LineConfig, Settings, line_configs

BAD, REPEATED = {5, 17, 40}, {9, 23}  # of the images, by their number
IMAGES, LEARNED, CALIBRATED = 150, 80, 40
SIZES = [1, 4, 1, 12, 3]  # of entries, in turn

Entries = list[tuple[str, list[Image]]]


def settings() -> Settings:
    return small_settings(
        "hot",
        learning={"images": LEARNED, "converge": False, "moments_share": 1.0},
        calibration={"images": CALIBRATED, "false_positive_rate": 0.05},
    )


def config() -> LineConfig:
    return line_configs(settings())[0]


def entries() -> Entries:
    """Entries of different sizes; some images cannot be decoded."""
    made: Entries = []
    number = 0
    while number < IMAGES:
        numbers = range(number, min(IMAGES, number + SIZES[len(made) % len(SIZES)]))
        data = [b"\x89PNG cut" if n in BAD else encoded(picture(n)) for n in numbers]
        images = [Image(str(n), "png", x, None, None, None) for n, x in zip(numbers, data, strict=True)]
        made.append((f"{number + 1}-0", images))
        number = numbers.stop
    return made


def made_share() -> Share:
    given = settings()
    engine = Engine(given.model, pick_device("cpu"), Metrics())
    return Share(
        engine, given.limits, lambda: new_learner(config(), 0.9, engine.device, dist.get_rank()), dist.get_rank()
    )


def learned_by_ranks(stop: int, together: int) -> dict[str, Any]:
    """On rank 0, the line as it is in the end; after `stop` rounds all ranks begin anew from a snapshot, as after a
    kill, with what came since in vain."""
    share = made_share()
    if dist.get_rank():
        follow(share)
        return {}
    crew, all_entries = Crew(share, 60), entries()
    line, phases, taken = HotLine(config(), 0.9, share.engine.device, crew), [LEARNING], []

    def first(which: int, place: int) -> bool:
        return int(rest[which][1][place].id) not in REPEATED

    for start in range(0, len(all_entries), together):
        rest = all_entries[start : start + together]
        taken += line.apply_all(rest, first)
        if line.phase != phases[-1]:
            phases.append(line.phase)
        if start // together == stop:
            tensors, metadata = line.state()
            line.apply_all(all_entries[start + together :][:3], first=lambda *_: True)
            again = HotLine(config(), 0.9, share.engine.device, crew)
            again.restore(tensors, metadata)
            line = again
    tensors, metadata = line.state()
    crew.end()
    counts = {name: metadata[name] for name in ("images_learned", "images_quarantined", "images_calibrated", "rows")}
    return {
        **tensors,
        **counts,
        "phases": phases,
        "taken": [tuple(t[:3]) for t in taken],
        "through": line.applied_through,
    }


@pytest.fixture(scope="module")
def alone() -> Line:
    """The same by one process."""
    share_of = settings()
    engine = Engine(share_of.model, pick_device("cpu"), Metrics())
    line = Line(config(), 0.9, engine.device)
    for entry, images in entries():
        numbers = [int(image.id) for image in images if int(image.id) not in BAD | REPEATED]
        if line.learns:
            line.apply(entry, engine.batches(engine.prepare(picture(n)) for n in numbers))
    return line


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same by four ranks."""
    whole, *others = in_ranks(tmp_path_factory.mktemp("ranks"), learned_by_ranks, 100, 4)
    assert others == [{}] * 3
    return whole


def test_the_ranks_learn_and_calibrate_as_one_process_does(found: dict[str, Any], alone: Line) -> None:
    tensors, metadata = alone.state()
    assert found["phases"][-1] == alone.phase == SCORING
    assert found["through"] == alone.applied_through
    assert found["images_learned"] + found["images_quarantined"] == metadata["images_learned"] >= LEARNED
    assert found["images_calibrated"] == metadata["images_calibrated"] >= CALIBRATED
    assert int(found["mass"].sum()) == found["rows"]
    if not found["images_quarantined"]:
        assert found["rows"] == metadata["rows"]
        assert (found["scatter"] - tensors["scatter"]).norm() / tensors["scatter"].norm() < 1e-5
        torch.testing.assert_close(found["mean"], tensors["mean"], rtol=1e-5, atol=1e-5)
    radii = [covering(each, tensors) for each in (found["anchors"], tensors["anchors"])]
    print(f"covering radius: four ranks {radii[0]:.3f}, one process {radii[1]:.3f}")  # noqa: T201 - a figure, for -s
    assert radii[0] <= 1.05 * radii[1]
    model = new_learner(config(), 0.9, torch.device("cpu"))
    model.load_state_dict({name: value for name, value in found.items() if isinstance(value, Tensor)})
    learned = found["images_learned"] + found["images_quarantined"]
    expected = model.score(features(learned, learned + found["images_calibrated"]))
    torch.testing.assert_close(found["calibration_scores"].float(), expected, rtol=1e-4, atol=1e-5)  # in their order


def test_ranks_that_were_killed_end_where_those_do_that_were_not(found: dict[str, Any], tmp_path: Path) -> None:
    killed = in_ranks(tmp_path, learned_by_ranks, 2, 4)[0]
    assert killed.keys() == found.keys()
    for name, value in killed.items():
        assert torch.equal(value, found[name]) if isinstance(value, Tensor) else value == found[name], name


def test_other_ranks_and_a_worker_alone_go_on_from_what_is_merged(tmp_path: Path) -> None:
    tensors, metadata = in_ranks(tmp_path, snapshot)[0]
    line = Line(config(), 0.9, torch.device("cpu"))
    line.restore(tensors, metadata)
    assert sum(line.counts) == metadata["images_learned"] + metadata["images_quarantined"] > 0
    assert int(tensors["mass"].sum()) == metadata["rows"] == line.learner.pca_.n_samples_seen_
    (two,) = {tuple(found) for found in in_ranks(tmp_path, restored_by, tensors, metadata, ranks=2)[:1]}
    assert two == (metadata["rows"], 0)


def snapshot() -> tuple[dict[str, Tensor], dict[str, Any]]:
    share = made_share()
    if dist.get_rank():
        follow(share)
        return {}, {}
    crew = Crew(share, 60)
    line = HotLine(config(), 0.9, share.engine.device, crew)
    line.apply_all(entries()[:9], lambda *_: True)
    tensors, metadata = line.state()
    crew.end()
    return tensors, {**metadata, "sources": [tuple(source) for source in metadata["sources"]]}


def restored_by(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> list[int]:
    """Rows that rank 0 knows, and images elsewhere."""
    share = made_share()
    if dist.get_rank():
        follow(share)
        return []
    crew = Crew(share, 60)
    line = HotLine(config(), 0.9, share.engine.device, crew)
    line.restore(tensors, metadata)
    crew.end()
    return [line.learner.rows_seen_, sum(line.elsewhere)]


def features(first: int, last: int) -> Tensor:
    """Of the images that can be used [B, P, D], in their order, from one to another."""
    engine = Engine(settings().model, pick_device("cpu"), Metrics())
    good = [n for n in range(IMAGES) if n not in BAD | REPEATED][first:last]
    return torch.cat(list(engine.batches(engine.prepare(picture(n)) for n in good)))


def covering(anchors: Tensor, by: dict[str, Tensor]) -> float:
    """The largest distance of the patches of what was learned to these anchors, in the Z-space of one process."""
    x = features(0, LEARNED).flatten(0, 1)
    z, bank = ((rows - by["whitening_mean"]) @ by["whitening_projection"].T for rows in (x, anchors))
    return float(nearest(z, bank)[0].max())


def test_entries_are_taken_in_their_order_and_a_phase_ends_between_two(found: dict[str, Any]) -> None:
    """Whatever is applied at once."""
    sizes = [sum(int(image.id) not in BAD | REPEATED for image in images) for _, images in entries()]
    seen = 0
    for (learned, quarantined, calibrated), size in zip(found["taken"], sizes, strict=False):
        assert (learned + quarantined, calibrated) == ((size, 0) if seen < LEARNED else (0, size))
        seen += size
    assert seen >= LEARNED + CALIBRATED
    assert found["phases"] in ([LEARNING, CALIBRATING, SCORING], [LEARNING, SCORING])


def fails_on_a_rank(failpoint: str) -> str:
    """What rank 0 is told of a rank that cannot do its part, be it itself; all go on afterwards."""
    import worker.ranks.share as module

    vars(module)["failpoint"] = armed(failpoint)
    share = made_share()
    if dist.get_rank():
        follow(share)
        return ""
    crew = Crew(share, 60)
    line, told = HotLine(config(), 0.9, share.engine.device, crew), ""
    try:
        line.apply_all(entries()[:9], lambda *_: True)
    except RuntimeError as error:
        told = str(error)
    line = HotLine(config(), 0.9, share.engine.device, crew)  # loaded again, as the keeper does
    line.apply_all(entries()[:9], lambda *_: True)
    assert int(line.state()[0]["mass"].sum()) == 64 * sum(line.counts[:2])
    assert sum(line.counts[:2]) == sum(int(image.id) not in BAD for _, images in entries()[:9] for image in images)
    crew.end()
    return told


@pytest.mark.parametrize(
    ("failpoint", "told"),
    [
        ("rank=learn-2:error", "rank 2: RuntimeError"),
        ("rank=learn-2:oom", "rank 2: OutOfMemoryError"),
        ("rank=learn-0:oom", "rank 0: OutOfMemoryError"),  # replies of others are still to be read
    ],
)
def test_what_fails_on_a_rank_is_told_and_counts_for_nothing(failpoint: str, told: str, tmp_path: Path) -> None:
    assert told in in_ranks(tmp_path, fails_on_a_rank, failpoint)[0]
