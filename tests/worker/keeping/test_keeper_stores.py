"""Keepers over an object store: one learns, another loads; a store that is full, slow or away; who comes too late."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.worker.faulty import Faults, flip, objects
from tests.worker.helpers import eventually
from tests.worker.keepers import ENTRIES, HOLDER, add, assert_same, extract, pending
from worker.errors import StoreError
from worker.keeping.keeper import Keeper
from worker.line import SCORING, Line
from worker.metrics import Metrics
from worker.settings import CalibrationSettings, LearningSettings, LineConfig, ScoringSettings, SnapshotSettings
from worker.snapshots import stem_of
from worker.storage.object_store import ObjectStore
from worker.streams.line_streams import LineStreams
from worker.views import line_status

Make = Callable[..., Keeper]


@pytest.fixture
def url() -> str:
    return f"faulty://{uuid.uuid4().hex}/models"


@pytest.fixture
def make(
    url: str, streams: LineStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> Iterator[Make]:
    """A process on a machine of its own; each call is another one."""
    for name in (
        "keeping.keeper.ACQUIRE_SECONDS",
        "keeping.keeper.SOON_SECONDS",
        "keeping.schedule.RETRY_SECONDS",
        "keeping.loading.AGAIN_SECONDS",
    ):
        monkeypatch.setattr(f"worker.{name}", 0.0)
    monkeypatch.setattr("worker.keeping.keeper.CLOSE_SECONDS", 0.05)
    config = LineConfig(
        name=streams.line,
        bank_size=60,
        learning=LearningSettings(images=24),
        calibration=CalibrationSettings(images=20, false_positive_rate=0.05),
        scoring=ScoringSettings(top_k=3),
    )

    def make(cache: str = "") -> Keeper:
        settings = SnapshotSettings(directory=url, every_images=8, every_seconds=1000, timeout_seconds=20)
        store = ObjectStore(url, streams.line, tmp_path / (cache or uuid.uuid4().hex))
        return Keeper(
            lambda: Line(config, 0.99, torch.device("cpu")),
            LineStreams(streams.client, streams.line),
            store,
            settings,
            "f",
            Metrics(),
        )

    yield make
    faults.reset()  # nothing hangs behind this test


def kept(keeper: Keeper, holder: str = HOLDER) -> Keeper:
    def acquired() -> int:
        keeper.acquire(holder, take_over=holder.partition("#")[0])
        return keeper.epoch

    assert eventually(acquired)
    return keeper


def saved(keeper: Keeper) -> None:
    """Turn until what was learned is committed."""
    before = keeper.model

    def turned() -> bool:
        if keeper.snapshot_due:
            keeper.snapshot()
        return keeper.model != before

    eventually(turned)


def settled(keeper: Keeper) -> None:
    """Turn until what is on its way is committed, or refused."""

    def turned() -> bool:
        if keeper.snapshot_due:
            keeper.snapshot()
        return not keeper.saving.stem

    eventually(turned)


def learned(keeper: Keeper, entries: int = 2) -> Keeper:
    """Learn so many entries and commit them."""
    while entries := entries - keeper.learn(extract, entries):
        if keeper.snapshot_due:
            keeper.snapshot()
    saved(keeper)
    return keeper


def test_what_one_learned_another_loads_and_goes_on_from(
    make: Make, streams: LineStreams, unbroken: Line, url: str, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper, follower = kept(make()), make()
    assert eventually(follower.follow)
    assert follower.model == ""
    for _ in range(3):
        learned(keeper)
    assert streams.state()["model"] == keeper.model == stem_of(1, 3)
    assert pending(streams) == []
    faults.open.clear()
    assert not follower.follow()  # it goes on, and does not wait
    faults.open.set()
    assert eventually(follower.follow)
    assert (follower.model, follower.line.serving.model) == (keeper.model, keeper.model)
    assert_same(follower.line, keeper.line)
    keeper.close()
    kept(follower, "station-2#b")
    while follower.line.phase != SCORING:
        follower.learn(extract, 2)
        if follower.snapshot_due:
            follower.snapshot()
    settled(follower)
    assert follower.line.serving.phase == SCORING
    assert_same(follower.line, unbroken)
    eventually(lambda: len(ObjectStore(url, streams.line, Path("/nowhere")).stems()) == 3)  # pruned on the way


def test_nothing_is_acknowledged_and_nothing_learned_before_the_version_is_in_the_store(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper = kept(make())
    assert keeper.learn(extract, 2) == 2
    faults.open.clear()
    began = time.monotonic()
    keeper.snapshot()
    assert time.monotonic() - began < 5
    assert (pending(streams), streams.state()["model"]) == (ENTRIES[:2], "")
    assert keeper.learn(extract, 2) == 0
    assert not keeper.snapshot_due  # nothing to be done yet
    faults.open.set()
    saved(keeper)
    assert (pending(streams), streams.state()["model"]) == ([], stem_of(1, 1))


def test_a_full_store_is_told_and_the_version_before_answers_until_there_is_room(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper = learned(kept(make()))
    faults.full = True
    assert keeper.learn(extract, 2) == 2
    keeper.snapshot()
    settled(keeper)
    assert (streams.state()["model"], keeper.model) == (stem_of(1, 1), stem_of(1, 1))
    assert pending(streams) == ENTRIES[2:4]
    assert "No space left in the bucket" in streams.state()["problem"]
    faults.full = False
    saved(keeper)
    assert (pending(streams), streams.state()["problem"]) == ([], "")
    assert streams.state()["model"] > stem_of(1, 1)


def test_a_slow_store_is_given_up_told_and_tried_again_under_another_name(
    make: Make, streams: LineStreams, faults: Faults, url: str
) -> None:
    add(streams, *ENTRIES)
    keeper = kept(make())
    keeper.learn(extract, 2)
    faults.open.clear()
    keeper.snapshot()
    assert 0 < keeper.saving._overdue_at - time.monotonic() <= keeper.saving.seconds
    keeper.saving.seconds, keeper.saving._overdue_at = 0.05, 0.0  # its time is up
    assert keeper.snapshot_due
    keeper.snapshot()
    told = f"snapshot {stem_of(1, 1)} is not written: {url}/{streams.line} has not taken it for 0.05 s"
    assert told in streams.state()["problem"]
    keeper.snapshot()  # no second one beside the one that hangs
    assert "still has not taken the version before" in streams.state()["problem"]
    assert keeper.learn(extract, 2) == 2  # as with a full disk, up to twice every_images
    assert pending(streams) == ENTRIES[:4]
    keeper.saving.seconds = 20
    faults.open.set()
    saved(keeper)
    assert streams.state()["model"] > stem_of(1, 1)
    assert pending(streams) == []
    eventually(
        lambda: f"{stem_of(1, 1)}.json" in objects(keeper.store.place)
    )  # it arrived after all, and serves nobody
    assert keeper.model == streams.state()["model"]


def test_who_answers_goes_on_by_the_version_before_while_the_store_is_away_or_slow(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper, follower = learned(kept(make())), make()
    assert eventually(follower.follow)
    follower.loading.seconds = 0.05
    learned(keeper)
    faults.away = True
    assert not follower.follow()
    eventually(lambda: not follower.follow() and "nobody answers at faulty://" in follower.problem)
    assert line_status(streams.client, streams.line)["problem"] is None  # somebody keeps it
    streams.client.delete(streams.lease)
    eventually(
        lambda: not follower.follow() and line_status(streams.client, streams.line)["problem"] == follower.problem
    )
    assert (follower.model, follower.line.applied_through) == (stem_of(1, 1), "2-0")
    faults.away = False
    faults.open.clear()
    eventually(lambda: not follower.follow() and "has not given a version for 0.05 s" in follower.problem)
    assert f"version {stem_of(1, 2)} is not loaded yet, {stem_of(1, 1)} answers" in follower.problem
    follower.acquire("station-2#b")  # who cannot load it must not keep it
    assert follower.epoch == 0
    follower.loading.seconds = 20
    faults.open.set()
    assert eventually(follower.follow)
    assert (follower.model, follower.line.applied_through) == (stem_of(1, 2), "4-0")


def test_who_starts_without_the_store_answers_by_what_its_machine_has_of_the_committed_version(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper = learned(kept(make(cache="own")))
    faults.away = True
    again, other = make(cache="own"), make()
    assert eventually(again.follow)
    assert again.model == keeper.model
    assert_same(again.line, keeper.line)
    with pytest.raises(StoreError, match="nobody answers"):
        eventually(other.follow)
    assert not other.loaded
    streams.commit(keeper.epoch, {"applied_through": "99-0"})  # another version of that name: learned anew since
    with pytest.raises(StoreError, match="nobody answers"):
        eventually(make(cache="own").follow)


def test_a_flipped_bit_sets_the_version_aside_and_the_one_before_serves(
    make: Make, streams: LineStreams, url: str
) -> None:
    add(streams, *ENTRIES)
    keeper = learned(learned(kept(make())))
    flip(f"{url}/{streams.line}", f"{stem_of(1, 2)}-")
    keeper.close()
    again = kept(make(), "station-2#b")
    settled(again)  # which it is already where the store was quick
    assert again.line.applied_through == "2-0"
    assert streams.state()["model"] == again.model == stem_of(2, 1)
    assert f"{stem_of(1, 2)}.bad" in objects(url)
