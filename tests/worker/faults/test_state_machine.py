"""Any order of {produce, answer, learn, snapshot, crash, take over, trim, relearn, wipe}: I1 to I4 hold after each."""

import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from tests.worker.commanding import told
from tests.worker.keepers import take
from worker.errors import FencedError
from worker.keeping.keeper import Keeper
from worker.line import LEARNING, Line
from worker.metrics import Metrics
from worker.settings import CalibrationSettings, LearningSettings, LineConfig, ScoringSettings, SnapshotSettings
from worker.snapshots import SnapshotStore, stem_of
from worker.streams.ids import entry_key
from worker.streams.line_streams import ANSWERING, REVIEW_CAPS, Answer, Entry, LineStreams
from worker.streams.line_streams import LEARNING as LEARNING_GROUP

IMAGES, P, D = 4, 16, 6  # an entry's
EXAMPLES = int(os.environ.get("FAULTS_ORDERS", "80"))  # of 30 steps each
SOME = st.integers(1, 5)


def integers(number: int) -> Tensor:
    """Features [IMAGES, P, D] of the entry of that number: integers, so that their sums are exact."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 8, (IMAGES, P, D), generator=generator).float()


def extract(_line: str, entry: Entry) -> Iterator[Tensor]:
    if not entry.lost:
        yield integers(entry_key(entry.id)[0])


class Machine(RuleBasedStateMachine):
    def __init__(self, client: Any, folder: Path) -> None:
        super().__init__()
        self.client, self.folder, self.name = client, folder, f"t-{uuid.uuid4().hex[:12]}"
        self.config = LineConfig(
            name=self.name, bank_size=60, learning=LearningSettings(images=100_000, converge=False),
            calibration=CalibrationSettings(images=50_000), scoring=ScoringSettings(top_k=3),
        )  # fmt: skip
        self.streams = LineStreams(client, self.name)
        self.sent: list[int] = []
        self.passed_over: set[int] = set()  # by relearn, or wiped away
        self.unanswerable: set[int] = set()  # wiped away
        self.answered: Counter[int] = Counter()
        self.last = self.relearned_behind = self.highest_epoch = self.processes = 0
        self.ever_quarantined = False
        self.uncommitted = ("", 0)  # the newest version that a fenced keeper wrote, and up to where it had learned
        self.former: Keeper | None = None
        self.holder = "station-1"
        self.start()

    def start(self) -> None:
        """Another process of the keeper's name."""
        self.streams.ensure_groups()
        self.processes += 1
        self.keeper = Keeper(
            lambda: Line(self.config, 0.99, torch.device("cpu")), LineStreams(self.client, self.name),
            SnapshotStore(self.folder, self.name), SnapshotSettings(directory=self.folder), "f", Metrics(),
        )  # fmt: skip
        state = self.streams.state()
        self.keeper.acquire(f"{self.holder}#{self.processes}", take_over=self.holder)
        assert self.keeper.epoch
        if "model" in state:  # it is that version, or none, whatever else is on disk
            assert self.keeper.line.applied_through == state["applied_through"]

    @rule(count=SOME)
    def produce(self, count: int) -> None:
        for _ in range(count):
            self.last += 1
            self.client.xadd(self.streams.images, {"batch": b""}, id=f"{self.last}-0")
            self.sent.append(self.last)

    @rule(count=SOME)
    def read_and_die(self, count: int) -> None:
        take(self.streams, count)

    @rule(count=SOME, twice=st.booleans())
    def answer(self, count: int, twice: bool) -> None:
        new = take(self.streams, count)
        entries = [*self.streams.own_pending("station-1", 100), *new]
        answers = [Answer(entry.id, [entry.id.encode()], []) for entry in entries]
        for _ in range(1 + twice):  # a reply that was lost, and what came of it is sent again
            self.streams.publish(answers, 10_000, 10_000, REVIEW_CAPS)

    @rule(count=SOME)
    def learn(self, count: int) -> None:
        self.keeper.learn(extract, count)

    @rule()
    def snapshot(self) -> None:
        self.keeper.snapshot()

    @rule()
    def crash(self) -> None:
        self.start()

    @rule()
    def take_over(self) -> None:
        self.former = self.keeper
        self.client.delete(self.streams.lease)
        self.holder = f"station-{self.processes + 1}"
        self.start()

    @precondition(lambda self: self.former is not None)
    @rule()
    def former_keeper_acts(self) -> None:
        former = self.former
        assert former is not None
        there = set(former.store.stems())
        for act in (lambda: former.learn(extract, 1), former.snapshot):
            with pytest.raises(FencedError):
                act()
            former.epoch = former.epoch or 1  # as if it had not noticed
        (stem,) = set(former.store.stems()) - there  # durable, although nobody commits it
        assert stem < stem_of(self.keeper.epoch, 0)  # older than whatever the present keeper writes
        self.uncommitted = max(self.uncommitted, (stem, entry_key(former.line.applied_through)[0]))
        self.former = None

    @rule()
    def trim(self) -> None:
        self.keeper.upkeep._trim_at = 0.0
        self.keeper.trim()

    @rule()
    def relearn(self) -> None:
        if told(self.keeper, "calibrate")[0]:
            before = self.applied()
            assert told(self.keeper, "relearn")[0]
            self.passed_over |= {number for number in self.sent if number > before}
            self.relearned_behind = self.last
        assert self.keeper.line.phase == LEARNING

    @rule()
    def wipe(self) -> None:
        state = self.streams.state()
        committed = state.get("model", ""), entry_key(state.get("applied_through", "0-0"))[0]
        newest, through = max(committed, self.uncommitted)  # which was committed, only Redis knew
        assert through >= committed[1]
        self.passed_over |= {number for number in self.sent if number > through}
        self.collect()
        self.unanswerable |= {number for number in self.sent if not self.answered[number]}
        self.client.delete(*self.client.keys(f"mhpc:{{{self.name}}}:*"))
        self.former = None  # what was fenced by Redis alone is forgotten with it
        self.highest_epoch = self.keeper.store.highest_epoch()
        self.start()
        assert self.applied() == through
        assert self.keeper.model > newest or not newest  # what was loaded has come back as a new version

    def applied(self) -> int:
        return entry_key(self.keeper.line.applied_through)[0]

    def collect(self) -> None:
        self.answered += Counter(
            entry_key(fields[b"result"].decode())[0] for _, fields in self.client.xrange(self.streams.scores)
        )

    @invariant()
    def statistics_are_of_the_distinct_accepted_entries(self) -> None:  # I1
        learned = [n for n in self.sent if n <= self.applied() and n not in self.passed_over]
        learner = self.keeper.line.learner
        assert learner.images_seen_ == IMAGES * len([n for n in learned if n > self.relearned_behind])
        self.ever_quarantined |= learner.images_quarantined_ > 0
        if learned and not self.ever_quarantined:
            rows = torch.cat([integers(number) for number in learned]).reshape(-1, D).double()
            assert learner.pca_.moments_.n == len(rows)
            torch.testing.assert_close(learner.pca_.moments_.mean.double(), rows.mean(0), rtol=1e-6, atol=1e-6)

    @invariant()
    def nothing_is_acknowledged_before_it_is_committed(self) -> None:  # I3
        committed = entry_key(self.streams.state().get("applied_through", "0-0"))
        pending = self.client.xpending_range(self.streams.images, LEARNING_GROUP, "-", "+", 10_000)
        held = {item["message_id"].decode() for item in pending}
        groups = {group["name"]: group for group in self.client.xinfo_groups(self.streams.images)}
        through = groups[LEARNING_GROUP.encode()]["last-delivered-id"].decode()
        let_go = [name.decode() for name, _ in self.client.xrange(self.streams.images, max=through)]
        assert [name for name in let_go if name not in held and entry_key(name) > committed] == []

    @invariant()
    def epochs_only_grow(self) -> None:  # I4
        epoch = int(self.streams.state()["epoch"])
        assert epoch >= self.highest_epoch
        self.highest_epoch = epoch

    def teardown(self) -> None:
        while self.streams.backlog(ANSWERING).pending or self.client.xreadgroup(
            ANSWERING, "station-1", {self.streams.images: ">"}, count=1
        ):
            self.answer(5, True)
        self.collect()
        assert {n: self.answered[n] for n in self.sent if n not in self.unanswerable} == {  # I2
            n: 1 for n in self.sent if n not in self.unanswerable
        }


def test_whatever_happens_in_whatever_order_the_invariants_hold(client: redis.Redis) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_state_machine_as_test(
            lambda: Machine(client, Path(folder)),  # type: ignore[arg-type]  # a factory is documented, too
            settings=settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None),
        )


def test_what_a_fenced_keeper_made_durable_is_kept_over_a_wipe_and_learned_once(
    client: redis.Redis, tmp_path: Path
) -> None:
    machine = Machine(client, tmp_path)
    machine.produce(3)
    machine.learn(2)
    machine.snapshot()
    machine.learn(1)
    machine.take_over()
    machine.former_keeper_acts()
    machine.crash()
    assert machine.applied() == 2  # as long as Redis tells what was committed
    machine.wipe()
    assert machine.applied() == 3
    machine.produce(2)
    machine.learn(5)
    machine.statistics_are_of_the_distinct_accepted_entries()
    assert machine.keeper.line.learner.images_seen_ == 5 * IMAGES


def test_what_a_fenced_keeper_made_durable_before_any_commit_is_not_used(client: redis.Redis, tmp_path: Path) -> None:
    machine = Machine(client, tmp_path)
    machine.produce(3)
    machine.learn(2)
    machine.take_over()
    machine.former_keeper_acts()
    machine.crash()
    assert machine.applied() == 0  # Redis says that nothing was committed
    for _ in range(2):  # those that are pending first
        machine.learn(5)
    machine.statistics_are_of_the_distinct_accepted_entries()
    assert machine.keeper.line.learner.images_seen_ == 3 * IMAGES
