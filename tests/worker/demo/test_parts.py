import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from worker.demo.parts import KINDS, SIZE, Mask, encode_jpeg, render, rendered_parts


@pytest.mark.parametrize("kind", ["good", *KINDS])
def test_the_same_seed_gives_the_same_part(kind: str) -> None:
    (first, mask), (second, same_mask) = render(kind, 3), render(kind, 3)
    other, _ = render(kind, 4)
    assert np.array_equal(first, second)
    assert (mask is None) == (same_mask is None) == (kind == "good")
    assert mask is None or same_mask is None or np.array_equal(mask, same_mask)
    assert not np.array_equal(first, other)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8


def contrast(kind: str, seed: int) -> tuple[NDArray[np.float64], Mask]:
    """How far the part is from the same part without the defect, grey levels [SIZE, SIZE], and the mask."""
    (part, mask), (good, no_mask) = render(kind, seed), render("good", seed)
    assert no_mask is None
    assert mask is not None
    return np.abs(part.astype(int) - good.astype(int)).mean(axis=2), mask


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_lies_inside_its_mask_and_a_person_sees_it(kind: str) -> None:
    for seed in range(25):
        difference, mask = contrast(kind, seed)
        around = ndimage.binary_dilation(mask, iterations=4)  # the lens spreads an edge
        assert 20 < mask.sum() < 0.03 * SIZE * SIZE
        assert difference[mask].max() > 15  # of 255
        assert difference[~around].max() <= 2  # below the sensor's noise


def test_defects_vary_in_size_and_contrast() -> None:
    for kind in ("dent", "scratch"):
        drawn = [contrast(kind, seed) for seed in range(25)]
        sizes, depths = [mask.sum() for _, mask in drawn], [difference.max() for difference, _ in drawn]
        assert max(sizes) > 2 * min(sizes)
        assert max(depths) > 1.5 * min(depths)


def test_the_series_has_the_asked_for_parts_and_unique_ids() -> None:
    parts = rendered_parts(learn=5, calibrate=3, good=4, per_kind=2, seed=1)
    assert [part.split for part in parts] == ["learn"] * 5 + ["calibrate"] * 3 + ["test"] * 10
    assert {part.kind for part in parts[:8]} == {"good"}
    assert sorted(str(part.kind) for part in parts[8:]) == sorted(["good"] * 4 + [*KINDS] * 2)
    assert len({part.id for part in parts}) == len(parts)


def test_a_part_reads_as_a_jpeg_and_knows_its_mask() -> None:
    parts = rendered_parts(learn=1, calibrate=0, good=0, per_kind=1)
    good, *defective = parts
    with Image.open(io.BytesIO(good.read())) as picture:
        assert (picture.format, picture.size) == ("JPEG", (SIZE, SIZE))
    assert good.read_mask() is None
    assert good.defective is False
    assert good.read() == good.read()
    for part in defective:
        mask = part.read_mask()
        assert part.defective is True
        assert mask is not None
        assert mask.any()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'rust'; expected 'good' or one of missing_hole, dent, scratch"):
        render("rust", 0)


def test_a_jpeg_is_small_enough_for_many_to_wait() -> None:
    assert len(encode_jpeg(render("good", 0)[0])) < 40_000
