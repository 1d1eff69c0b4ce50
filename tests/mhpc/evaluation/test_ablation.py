from itertools import product
from pathlib import Path

import pytest

from mhpc.core.backbones import load_backbone
from mhpc.core.choices import PatchCoreAggregation, PatchCoreAlgorithm, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.mh_patch_core import MHPatchCore
from mhpc.evaluation.ablation import PROPOSED, Variation, ablate, by_auroc, distinct_notes, full_grid, grid, sampling
from mhpc.evaluation.evaluate import evaluate_model, split_category
from mhpc.evaluation.mvtec import read_category
from mhpc.evaluation.options import Protocol
from tests.mhpc.evaluation.parts import SIDE

ARGUMENTS = {"input_shape": (SIDE, SIDE), "bank_size": 100, "target_embed_dimension": 32}


def test_each_row_of_the_grid_changes_one_thing_of_the_proposed() -> None:
    rows = {row.name: row for row in grid()}
    assert len(rows) == 8
    changed = {name: {key for key in PROPOSED if row.arguments[key] is not PROPOSED[key]} for name, row in rows.items()}
    assert changed.pop("vanilla PatchCore") == set(PROPOSED)
    assert changed == {
        "online proposed": set(),
        "batch proposed": {"algorithm"},
        "online, PCA off": {"feature_reduction"},
        "online, greedy": {"aggregation"},
        "online, no aggregation": {"aggregation"},
        "online, Euclidean": {"distance"},
        "online, three passes": set(),
    }
    assert [name for name, row in rows.items() if row.passes == 3] == ["online, three passes"]


def test_the_full_grid_holds_every_combination_once() -> None:
    choices = (PatchCoreAlgorithm, PatchCoreAggregation, PatchCoreFeatureReduction, PatchCoreDistance)
    rows = full_grid()
    assert [tuple(row.arguments.values()) for row in rows] == list(product(*choices))
    assert len({row.name for row in rows}) == 24


def test_the_sampling_rows_are_all_a_tenth_a_hundredth_and_a_tenth_at_random() -> None:
    assert [row.name for row in sampling()] == ["100 %", "10 % greedy", "1 % greedy", "10 % random"]


def test_a_row_has_the_figures_of_the_model_by_itself(plates: Path) -> None:
    backbone, category, protocol = load_backbone("tiny", "bundled"), read_category(plates), Protocol(images=10)
    rows = [row for row in grid() if row.name in ("online, greedy", "online, three passes")] + sampling()[:3]
    outcomes = ablate(rows, [category], backbone, ARGUMENTS, protocol)
    assert [outcome.variation for outcome in outcomes] == rows
    for row, outcome in zip(rows, outcomes, strict=True):
        model = MHPatchCore(backbone, **{**ARGUMENTS, **row.arguments})
        split = split_category(category, (SIDE, SIDE), model.extract, protocol)
        figures, _ = evaluate_model(model, category, split, protocol, row.passes)
        for name in ("image_auroc", "aupro", "f1", "threshold", "bank_rows"):
            assert getattr(outcome.figures[0], name) == getattr(figures, name), (row.name, name)
    patches = 10 * 8 * 8
    assert [outcome.mean["bank_rows"] for outcome in outcomes[2:]] == [patches, patches // 10, patches // 100]


def test_the_bank_of_vanilla_has_as_many_rows_as_that_of_online_unless_a_share_is_given(few: Path) -> None:
    backbone, category, protocol = load_backbone("tiny", "bundled"), read_category(few), Protocol()
    rows = [row for row in grid() if row.name in ("vanilla PatchCore", "online proposed", "batch proposed")]

    def sizes(**more: float) -> list[int]:
        outcomes = ablate(rows, [category], backbone, ARGUMENTS | more, protocol)
        return [outcome.figures[0].bank_rows for outcome in outcomes]

    assert sizes() == [100, 100, 100]
    assert sizes(coreset_percentage=0.5) == [192, 100, 192]


def test_rows_are_sorted_by_their_auroc_and_flat_for_a_table(few: Path) -> None:
    backbone, category = load_backbone("tiny", "bundled"), read_category(few)
    outcomes = by_auroc(ablate(grid()[:3], [category], backbone, ARGUMENTS, Protocol()))
    aurocs = [outcome.mean["image_auroc"] for outcome in outcomes]
    assert aurocs == sorted(aurocs, reverse=True)
    row = outcomes[0].as_row()
    assert row["images_per_second"] == pytest.approx(1000 / row["ms_per_image"])
    assert row["categories"][0]["category"] == "few"
    assert row["algorithm"] in ("vanilla", "online")


def test_why_a_figure_is_missing_is_said_once_for_each_category(few: Path) -> None:
    backbone, category = load_backbone("tiny", "bundled"), read_category(few)
    outcomes = ablate(grid()[:2], [category], backbone, ARGUMENTS, Protocol())
    assert outcomes[0].mean["f1"] is None
    assert distinct_notes(outcomes) == ["few: no threshold: 6 pictures in train/good, 40 are needed to hold 20 out"]


def test_what_a_row_refuses_names_the_row(plates: Path) -> None:
    backbone = load_backbone("tiny", "bundled")
    with pytest.raises(ValueError, match=r'row "odd" on plates: .*bank_size'):
        ablate([Variation("odd", {"bank_size": 0})], [read_category(plates)], backbone, ARGUMENTS, Protocol(images=4))
