import socket

import numpy as np
import pytest
import torch

from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN
from mhpc.training.pictures import KINDS, Crops, generate, photographs, series
from mhpc.training.textures import Texture, defects


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_picture_stays_in_range_and_differs_by_seed(kind: Texture) -> None:
    one, other = (kind(np.random.default_rng(seed), 64) for seed in (0, 1))
    for picture in (one, other):
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
    assert not np.array_equal(one, other)


def test_defects_are_laid_over_a_copy() -> None:
    picture = np.full((64, 64, 3), 0.5, np.float32)
    damaged = defects(np.random.default_rng(0), picture)
    assert (picture == 0.5).all()
    assert (damaged != 0.5).any()


def test_a_picture_depends_on_seed_and_index_alone() -> None:
    alone = generate(seed=3, index=7, side=64)
    in_series = series(8, seed=3, side=64)[7]
    assert np.array_equal(alone, np.asarray(in_series))
    assert not np.array_equal(alone, generate(seed=4, index=7, side=64))


def test_photographs_come_from_the_packages_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a photograph was asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    photos = photographs()
    assert len(photos) == 21
    assert all(photo.mode == "RGB" and max(photo.size) <= 768 for photo in photos)


def test_a_missing_photograph_is_an_error_and_not_another_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mhpc.training.pictures.PHOTOGRAPHS", {"skimage": ("data", "never.png")})
    with pytest.raises(FileNotFoundError, match=r"skimage was expected to carry data/never\.png"):
        photographs()


def test_a_batch_is_normalised_and_depends_on_seed_and_index_alone() -> None:
    crops = Crops(series(4, seed=0, side=64), [], side=32, seed=0)
    first = crops.batch(5, 6)
    crops.batch(6, 6)
    assert torch.equal(first, crops.batch(5, 6))
    assert not torch.equal(first, crops.batch(6, 6))
    pixels = first * IMAGENET_DEVIATION + IMAGENET_MEAN
    assert first.shape == (6, 3, 32, 32)
    assert pixels.min() >= -1e-5
    assert pixels.max() <= 1 + 1e-5
