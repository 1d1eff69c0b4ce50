import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mhpc.sampler import (
    SAMPLERS,
    ApproximateGreedyCoresetSampler,
    GreedyCoresetSampler,
    IdentitySampler,
    RandomSampler,
    Sampler,
    make_sampler,
)
from tests.mhpc.test_farthest import Matrix, heavy_tailed, textbook

NAMES = ["identity", "random", "greedy_coreset", "approx_greedy_coreset"]


def textbook_approximate(x: Matrix, n: int, starts: list[int]) -> list[int]:
    """Farthest-first where a row's distance begins as the mean of those to the starting points."""
    d = np.linalg.norm(x[:, None] - x[starts], axis=2).mean(1)
    chosen: list[int] = []
    for _ in range(n):
        chosen.append(int(d.argmax()))
        d = np.minimum(d, np.linalg.norm(x - x[chosen[-1]], axis=1))
    return chosen


@pytest.mark.parametrize("percentage", [0, 1, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("kind", [RandomSampler, GreedyCoresetSampler, ApproximateGreedyCoresetSampler])
def test_a_percentage_outside_0_to_1_is_refused(kind: Any, percentage: float) -> None:
    with pytest.raises(ValueError, match=r"^Percentage value not in \(0, 1\)\.$"):
        kind(percentage)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension_to_project_features_to is 0, expected 1 or more"):
        GreedyCoresetSampler(0.5, dimension_to_project_features_to=0)
    with pytest.raises(ValueError, match="number_of_starting_points is 0, expected 1 or more"):
        ApproximateGreedyCoresetSampler(0.5, number_of_starting_points=0)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="sampler is 'gredy', expected one of identity, random, greedy_coreset"):
        make_sampler("gredy", 0.1)


def test_the_rows_come_back_unprojected_in_the_order_of_selection() -> None:
    x = heavy_tailed(300, 24)
    chosen = GreedyCoresetSampler(0.1, dimension_to_project_features_to=8, seed=3).run(x)
    projection = torch.randn(24, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 8**0.5
    np.testing.assert_array_equal(chosen, x[textbook(x @ projection.numpy(), 30)[0]])


def test_without_projection_the_rows_are_the_textbook_loops() -> None:
    x = heavy_tailed(300, 24)
    chosen = GreedyCoresetSampler(0.1).run(torch.from_numpy(x))
    np.testing.assert_array_equal(chosen, x[textbook(x, 30)[0]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.float32, torch.float64, torch.bfloat16])
def test_tensors_give_tensors_and_arrays_give_arrays_of_the_same_type(name: str, kind: Any) -> None:
    x = heavy_tailed(200, 140)
    features: Any = torch.from_numpy(x).to(kind) if isinstance(kind, torch.dtype) else x.astype(kind)
    before = features.clone() if isinstance(features, Tensor) else features.copy()
    sampler = make_sampler(name, 0.25)
    chosen = sampler.run(features)
    assert type(chosen) is type(features)
    assert chosen.dtype == features.dtype
    assert chosen.shape == (200 if name == "identity" else 50, 140)
    assert bool((features == before).all())
    assert bool((chosen == features[sampler.select(features).numpy()]).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8"])
def test_arrays_of_any_layout_are_taken_as_they_are(name: str, kind: str, tmp_path: Path) -> None:
    x = heavy_tailed(100, 5).astype(kind)
    np.save(tmp_path / "x.npy", x)
    of_records = np.zeros(100, [("x", kind, (5,)), ("flag", "i1")])
    of_records["x"] = x
    given = [x, x[::-1], x[:, ::-1], np.asfortranarray(x), of_records["x"]]
    given.append(np.load(tmp_path / "x.npy", mmap_mode="r")[::-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for features in given:
            expected = features[make_sampler(name, 0.3).select(np.array(features, kind[1:], order="C")).numpy()]
            chosen = make_sampler(name, 0.3).run(features)
            assert chosen.dtype == kind
            np.testing.assert_array_equal(chosen, expected)


def test_a_read_only_array_is_no_reason_to_warn() -> None:
    # torch warns of it once in a process: here it is a fresh one
    program = "import numpy as np; from mhpc.sampler import RandomSampler as R; x = np.random.rand(9, 2).astype('f4'); "
    program += "x.flags.writeable = False; assert len(R(0.5).run(x)) == 4"
    assert subprocess.run([sys.executable, "-W", "error", "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_selected_are_distinct_rows_by_their_indices(name: str) -> None:
    indices = make_sampler(name, 0.3).select(heavy_tailed(100, 5))
    assert indices.dtype == torch.int64
    assert indices.device.type == "cpu"
    assert len(indices.unique()) == len(indices)
    assert 0 <= int(indices.min()) <= int(indices.max()) < 100


@pytest.mark.parametrize("name", NAMES)
def test_every_run_selects_the_same_from_the_same_seed(name: str) -> None:
    x = heavy_tailed(400, 140)
    sampler = make_sampler(name, 0.1, seed=5)
    once = sampler.select(x)
    assert torch.equal(sampler.select(x), once)
    assert torch.equal(make_sampler(name, 0.1, seed=5).select(torch.from_numpy(x)), once)
    if name != "identity":
        assert not torch.equal(make_sampler(name, 0.1, seed=6).select(x), once)


@pytest.mark.parametrize("kind", [RandomSampler, GreedyCoresetSampler, ApproximateGreedyCoresetSampler])
def test_a_generator_is_drawn_from_run_after_run(kind: Any) -> None:
    x = heavy_tailed(400, 140)
    sampler = kind(0.1, generator=torch.Generator().manual_seed(1))
    first, second = sampler.select(x), sampler.select(x)
    assert not torch.equal(first, second)
    again = kind(0.1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.select(x), first)
    assert torch.equal(again.select(x), second)


def test_identity_returns_the_features_themselves() -> None:
    x = torch.from_numpy(heavy_tailed(20, 3))
    assert IdentitySampler().run(x) is x


def test_random_rows_are_drawn_evenly() -> None:
    x, counts = torch.zeros(20, 1), torch.zeros(20)
    sampler = RandomSampler(0.5, generator=torch.Generator().manual_seed(0))
    for _ in range(400):
        counts[sampler.select(x)] += 1
    assert counts.sum() == 400 * 10
    assert 150 < counts.min() <= counts.max() < 250  # 200 +- 10 expected


@pytest.mark.parametrize("starts", [1, 10, 500])
def test_the_approximate_coreset_is_its_textbook_loops(starts: int) -> None:
    x = heavy_tailed(400, 24)
    drawn = torch.randperm(400, generator=torch.Generator().manual_seed(2))[:starts].tolist()
    sampler = ApproximateGreedyCoresetSampler(0.2, number_of_starting_points=starts, seed=2)
    assert sampler.select(x).tolist() == textbook_approximate(x, 80, drawn)


def test_signatures_are_those_of_patchcore_inspection() -> None:
    samplers: list[Sampler] = [
        IdentitySampler(),
        RandomSampler(0.5),
        GreedyCoresetSampler(0.5, torch.device("cpu"), 128),
        ApproximateGreedyCoresetSampler(0.5, torch.device("cpu"), 10, 128),
    ]
    assert [type(s) for s in samplers] == [SAMPLERS[name] for name in NAMES]


@pytest.mark.parametrize("wide", [None, 24, 1000])
def test_rows_no_wider_than_the_projection_are_taken_as_they_are(wide: int | None) -> None:
    x = heavy_tailed(300, 24)
    chosen = GreedyCoresetSampler(0.1, dimension_to_project_features_to=wide).select(x)
    assert chosen.tolist() == textbook(x, 30)[0]


@pytest.mark.parametrize("kind", [GreedyCoresetSampler, ApproximateGreedyCoresetSampler])
def test_fewer_rows_are_kept_where_fewer_are_distinct(kind: Any) -> None:
    x = np.repeat(np.eye(4) * 8, 25, 0)
    assert sorted(map(tuple, kind(0.5).run(x))) == sorted(map(tuple, np.eye(4) * 8))


def test_gradients_do_not_hinder() -> None:
    x = torch.from_numpy(heavy_tailed(50, 3)).requires_grad_()
    assert len(GreedyCoresetSampler(0.5).run(x)) == 25


def test_no_progress_is_shown_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    GreedyCoresetSampler(0.5).run(heavy_tailed(50, 3))
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(("N", "percentage", "n"), [(7, 0.1, 1), (1231, 1000 / 1231, 1000), (10, 0.99, 9)])
def test_the_share_is_rounded_down_to_one_at_least(N: int, percentage: float, n: int) -> None:
    assert len(GreedyCoresetSampler(percentage).run(heavy_tailed(N, 3))) == n


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5,), (0, 3), (2, 3, 4)])
def test_features_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features has shape \[.*\], expected \[N, D\]"):
        make_sampler(name, 0.5).run(torch.zeros(shape))


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_no_finite_floats_are_refused(name: str) -> None:
    sampler: Any = make_sampler(name, 0.5)
    with pytest.raises(ValueError, match=r"features \[4, 2\] holds NaN or infinite values"):
        sampler.run(np.array([[0.0, np.nan]] * 4))
    with pytest.raises(ValueError, match=r"features is torch\.int64, expected a floating type"):
        sampler.run(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"features is a list, expected a tensor or an array \[N, D\]"):
        sampler.run([[0.0, 1.0]])


@pytest.mark.parametrize("features", [torch.ones(50, 4), torch.randn(1, 4)])
@pytest.mark.parametrize("sampler", [GreedyCoresetSampler, ApproximateGreedyCoresetSampler])
def test_of_rows_that_are_all_equal_one_is_kept(sampler: type[GreedyCoresetSampler], features: torch.Tensor) -> None:
    assert torch.equal(sampler(0.1).run(features), features[:1])
