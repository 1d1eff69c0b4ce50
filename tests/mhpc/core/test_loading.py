from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mhpc.core.loading import BATCH, batches, joined_truth

SIDE = 32


def images(B: int) -> Tensor:
    return torch.arange(B)[:, None, None, None].expand(B, 3, SIDE, SIDE).float()


def test_a_tensor_is_taken_in_parts_of_whole_steps() -> None:
    parts = list(batches(images(2 * BATCH + 3)))
    assert [len(part.images) for part in parts] == [BATCH, BATCH, 3]
    assert torch.equal(torch.cat([part.images for part in parts]), images(2 * BATCH + 3))
    assert BATCH % 8 == 0


def test_large_batches_of_a_loader_are_parted_with_their_truth() -> None:
    B = BATCH + 5
    batch = {"image": images(B), "is_anomaly": torch.arange(B) % 2, "mask": torch.zeros(B, 1, SIDE, SIDE)}
    parts = list(batches([batch]))
    assert joined_truth("is_anomaly", [part.labels for part in parts]) == [i % 2 for i in range(B)]
    assert [len(part.masks or []) for part in parts] == [BATCH, 5]


def test_a_loader_of_a_tensor_dataset_gives_its_first_tensor() -> None:
    dataset = TensorDataset(images(5), torch.arange(5))
    assert torch.equal(torch.cat([part.images for part in batches(DataLoader(dataset, batch_size=2))]), images(5))


@pytest.mark.parametrize("labels", [[0, 1], (False, True), torch.tensor([0, 1]), np.array([0, 1])])
@pytest.mark.parametrize("masks", [np.zeros((2, SIDE, SIDE)), [torch.zeros(1, SIDE, SIDE)] * 2, None])
def test_truth_may_be_tensors_arrays_or_lists(labels: Any, masks: Any) -> None:
    (part,) = batches([{"image": images(2), "is_anomaly": labels, "mask": masks}])
    assert part.labels == [0, 1]
    assert (part.masks is None) == (masks is None)
    assert all(isinstance(mask, Tensor) for mask in part.masks or [])


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"is_anomaly": [1, 0]}, r'"is_anomaly" has 2 labels for 3 images'),
        ({"is_anomaly": 1}, r'"is_anomaly" has 1 labels for 3 images'),
        (
            {"mask": torch.zeros(3, 10, 10)},
            r'"mask" has shape \[3, 10, 10\] .*expected \[3, 32, 32\] or \[3, 1, 32, 32\]',
        ),
        ({"mask": torch.zeros(2, 1, SIDE, SIDE)}, r'"mask" has shape \[2, 1, 32, 32\] for images \[3, 3, 32, 32\]'),
    ],
)
def test_truth_that_does_not_fit_its_images_is_refused(truth: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(batches([{"image": images(3), **truth}]))


def test_truth_that_some_batches_lack_is_refused() -> None:
    with pytest.raises(ValueError, match='1 of 2 batches carry "is_anomaly", expected all or none'):
        joined_truth("is_anomaly", [[0, 1], None])


@pytest.mark.parametrize("batch", [3, "a.png", [], [1, 2], {"picture": images(1)}, {"image": "a.png"}])
def test_another_kind_of_batch_is_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"a batch is a \w+, expected \[B, 3, H, W\]"):
        list(batches([batch]))
