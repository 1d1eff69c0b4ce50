"""The plan's formulas, each against what it stands for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mhpc.core.backbones import load_backbone
from mhpc.core.learner import OnePassLearner
from mhpc.core.patch_features import PatchFeatures
from mhpc.core.whitening import ZSpace
from tests.worker.bench.helpers import figures
from worker.costs import BUNDLED, REDIS, read_costs
from worker.errors import ConfigurationError
from worker.plan import Workload, line_of, plan, redis_bytes, redis_seconds, snapshot_bytes
from worker.settings import LearningSettings, ModelSettings, SnapshotSettings, StreamSettings

WORK = Workload(
    lines=10_000, rate=50, image_bytes=80_000, backlog_seconds=600, results_kept=100_000, heat_map=True,
    bank_size=6000, feature_width=512, snapshots_kept=3, snapshot_every=30, learning_share=0.05, headroom=0.7,
    replicas=1, redis_bytes=32e9, worker_bytes=16e9, network_bits=10e9,
)  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Path]:
    """A file as bench writes it, with some keys changed; None takes one away."""

    def bench(with_lines: bool = True, **changed: Any) -> Path:
        told = {**figures(with_lines).as_json(), **changed}
        path = tmp_path / "bench.json"
        path.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
        return path

    return bench


# -- what is reckoned --------------------------------------------------------------------------------------------------


def test_every_line_has_a_place_and_no_shard_more_than_it_bears() -> None:
    for lines in (1, 2, 7, 8, 9, 100, 10_000, 1_000_000):
        made = plan(replace(WORK, lines=lines), BUNDLED, REDIS)
        assert (made.shards - 1) * made.bounds.lines < lines <= made.shards * made.shard_lines
        assert made.shard_lines <= made.bounds.lines
        assert made.redis_bytes <= WORK.redis_bytes
        assert made.worker_bytes <= WORK.worker_bytes
        assert made.shard_out <= WORK.headroom * WORK.network_bits / 8
        assert made.shard_lines * made.line.redis_cpu <= WORK.headroom


def test_workers_bear_their_lines_with_one_gone_as_soon_as_they_are_a_few() -> None:
    made = plan(WORK, BUNDLED, REDIS)
    busy = made.shard_lines * made.line.devices
    assert busy / made.shard_workers <= WORK.headroom
    assert busy / (made.shard_workers - 1) <= 1
    assert plan(replace(WORK, lines=1, rate=0.1), BUNDLED, REDIS).shard_workers == 2


def test_what_is_asked_for_twice_takes_twice_as_much() -> None:
    one, two = (plan(replace(WORK, lines=lines), BUNDLED, REDIS) for lines in (80_000, 160_000))
    for name in ("shards", "workers", "redis_servers", "network_in", "snapshot_store", "redis_disk"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name), rel=1e-3), name


def test_the_thing_that_gives_out_first_decides() -> None:
    def least(**changed: Any) -> str:
        bounds = vars(plan(replace(WORK, **changed), BUNDLED, REDIS).bounds)
        return min(bounds, key=bounds.__getitem__)

    assert least() == "memory"
    assert least(backlog_seconds=10, results_kept=1000) == "cpu"
    assert least(network_bits=1e9, backlog_seconds=10, results_kept=1000) == "network"
    assert least(rate=0.01, worker_bytes=4e9) == "workers"


def test_an_image_is_charged_for_answers_replicas_and_the_share_that_is_learned() -> None:
    alone = redis_seconds(replace(WORK, learning_share=0, replicas=0), REDIS)
    assert alone == pytest.approx(REDIS.answer_entry + 80_000 * REDIS.answer_byte)
    learned = redis_seconds(replace(WORK, learning_share=1, replicas=0), REDIS) - alone
    assert learned == pytest.approx(REDIS.learn_entry + 80_000 * REDIS.learn_byte)
    copied = redis_seconds(replace(WORK, learning_share=0, replicas=2), REDIS) - alone
    assert copied == pytest.approx(2 * (REDIS.replica_entry + 80_000 * REDIS.replica_byte))


def test_redis_holds_what_waits_results_and_flagged_parts_at_their_most() -> None:
    empty = redis_bytes(replace(WORK, backlog_seconds=0, results_kept=0), REDIS, 1000)
    waiting = REDIS.waiting_bytes + 80_000 * REDIS.waiting_per_byte
    assert empty == StreamSettings().review_max * waiting + REDIS.line_bytes
    assert redis_bytes(replace(WORK, results_kept=0), REDIS, 1000) - empty == pytest.approx(50 * 600 * waiting)
    assert redis_bytes(replace(WORK, backlog_seconds=0), REDIS, 1000) - empty == 100_000 * 1000
    large = replace(WORK, backlog_seconds=0, results_kept=0, image_bytes=5e6)
    assert redis_bytes(large, REDIS, 1000) == StreamSettings().review_bytes + REDIS.line_bytes


def test_a_heat_map_is_paid_for_in_memory_and_network() -> None:
    with_map, without = (line_of(replace(WORK, heat_map=wanted), BUNDLED, REDIS) for wanted in (True, False))
    assert with_map.redis_in - without.redis_in == pytest.approx(50 * 784 * REDIS.patch_bytes)
    assert with_map.redis_bytes - without.redis_bytes == pytest.approx(100_000 * 784 * REDIS.patch_bytes)


def test_snapshots_are_made_by_seconds_or_by_images_whichever_comes_first() -> None:
    every = SnapshotSettings().every_images
    assert line_of(replace(WORK, rate=1), BUNDLED, REDIS).snapshot_seconds == 30
    assert line_of(replace(WORK, rate=100), BUNDLED, REDIS).snapshot_seconds == every / 100


def test_what_a_line_has_to_learn_beyond_its_keepers_speed_waits() -> None:
    slow = plan(replace(WORK, rate=10), BUNDLED, REDIS)
    assert slow.learning_limit == pytest.approx(0.7 * BUNDLED.learning)
    assert slow.learning_wait == 0
    images = LearningSettings().images
    fast = plan(WORK, BUNDLED, REDIS)
    seconds = images / fast.learning_limit
    assert fast.learning_wait == pytest.approx(seconds * (50 - fast.learning_limit))


# -- against the real thing --------------------------------------------------------------------------------------------


def test_a_versions_size_is_that_of_what_was_learned() -> None:
    learner = OnePassLearner(bank_size=400, space=ZSpace(pca_variance_ratio=0.9))
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        learner.partial_fit(torch.randn(4, 100, 64, generator=generator))
    state = learner.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    means = 8 * LearningSettings().images + 4 * 64 * LearningSettings().images
    pictures = len(state["numbers"]) * (4 * 64 + 8)
    reckoned = snapshot_bytes(len(state["anchors"]), 64, state["images"].shape[1]) - means + pictures
    assert size == pytest.approx(reckoned, rel=0.05)


def test_the_bundled_backbone_has_the_shape_that_is_reckoned_with() -> None:
    model = ModelSettings()
    features = PatchFeatures(load_backbone("tiny", "bundled"), model.layers, device="cpu")
    maps, grid = features(torch.zeros(1, 3, *model.input_shape))
    assert (maps.shape[-1], grid[0] * grid[1], model.bank_size) == (BUNDLED.width, BUNDLED.patches, BUNDLED.bank)


# -- costs -------------------------------------------------------------------------------------------------------------


def test_costs_are_what_bench_has_measured(bench: Callable[..., Path]) -> None:
    costs, told = read_costs(bench()), figures()
    assert (costs.scoring, costs.learning, costs.width, costs.patches) == (120, 60, 384, 784)
    assert costs.line_measured
    assert costs.line_bytes == pytest.approx((told.lines[0].resident_bytes - told.scoring.resident_bytes) / 7)
    assert costs.base_bytes + costs.line_bytes == pytest.approx(told.scoring.resident_bytes)


def test_a_lines_memory_that_was_not_measured_is_the_defaults_in_proportion(bench: Callable[..., Path]) -> None:
    costs = read_costs(bench(with_lines=False))
    assert not costs.line_measured
    proportion = 6000 * (384 + 100) / (BUNDLED.bank * (BUNDLED.width + BUNDLED.components))
    assert costs.line_bytes == pytest.approx(BUNDLED.line_bytes * proportion)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"forward": None}, "lacks 'forward'"),
        ({"lines": None}, "lacks 'lines'"),
        ({"scoring": 3}, "expected a file of figures"),
        ({"scoring": {**figures().as_json()["scoring"], "images_per_second": 0}}, "scoring is 0"),
        ({"learning": {**figures().as_json()["learning"], "images_per_second": "fast"}}, "learning is 'fast'"),
        ({"forward": {**figures().as_json()["forward"], "patches": float("nan")}}, "patches is nan"),
        ({"lines": [{"lines": 8}]}, "lacks 'resident_bytes'"),
        ({"lines": [{"lines": 8, "resident_bytes": "2 GB"}]}, "expected a file of figures"),
    ],
)
def test_a_file_that_bench_did_not_write_is_refused(bench: Callable[..., Path], changed: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as told:
        read_costs(bench(**changed))
    assert "mhpc-worker bench --json" in str(told.value)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"forward": NaN}'])
def test_what_is_no_document_of_figures_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"expected a file of figures"):
        read_costs(path)


def test_a_worker_may_be_slower_than_an_image_a_second(bench: Callable[..., Path]) -> None:
    assert read_costs(bench(learning={**figures().as_json()["learning"], "images_per_second": 0.2})).learning == 0.2


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rate": 5000}, "CPU takes at --headroom 0.7; lower --rate"),
        ({"backlog_seconds": 1e6}, "memory holds .* raise --redis-gb, or lower --backlog-seconds"),
        ({"network_bits": 1e6, "rate": 1}, "network carries .* raise --network-gbit"),
        ({"worker_bytes": 9e8}, "holds no bank of 6000 anchors .* raise --worker-gb"),
    ],
)
def test_a_line_that_fits_nowhere_is_refused_with_the_remedy(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        plan(replace(WORK, **changed), BUNDLED, REDIS)
