"""What loaders give: images, and the truth that comes with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

BATCH = 32  # images that are taken through the backbone together: whole steps of learning, bounded memory

Batch: TypeAlias = Tensor | Mapping[str, Any] | Sequence[Any]
Loader: TypeAlias = Tensor | Iterable[Batch]


class Loaded(NamedTuple):
    """Images [B, 3, H, W], and of those the labels [B] and masks [B, 1, H, W] that the batch carried, if any."""

    images: Tensor
    labels: list[int] | None
    masks: list[Tensor] | None


def batches(loader: Loader) -> Iterator[Loaded]:
    """Batches of at most BATCH images.

    A batch is a tensor [B, 3, H, W]; a map with "image" and, if known, "is_anomaly" and "mask"; or, as a loader of a
    TensorDataset gives it, a list that begins with the images.

    Raises:
        ValueError: another kind of batch, or truth that does not fit its images.
    """
    for batch in [loader] if isinstance(loader, Tensor) else loader:
        whole = _loaded(batch)
        for start in range(0, max(len(whole.images), 1), BATCH):  # an empty batch is for the images' check to refuse
            part = slice(start, start + BATCH)
            labels = None if whole.labels is None else whole.labels[part]
            yield Loaded(whole.images[part], labels, None if whole.masks is None else whole.masks[part])


def joined_truth(name: str, parts: list[list[Any] | None]) -> list[Any]:
    """What all batches carried, in one list; empty if none did.

    Raises:
        ValueError: some batches carried it and others did not.
    """
    known = [part for part in parts if part is not None]
    if known and len(known) < len(parts):
        raise ValueError(f'{len(known)} of {len(parts)} batches carry "{name}", expected all or none of them to')
    return [value for part in known for value in part]


def _loaded(batch: Batch) -> Loaded:
    if isinstance(batch, Tensor):
        return Loaded(batch, None, None)
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
        images = batch["image"]
        return Loaded(images, _labels(batch.get("is_anomaly"), images), _masks(batch.get("mask"), images))
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor) and batch[0].ndim == 4:
        return Loaded(batch[0], None, None)
    raise ValueError(
        f'a batch is a {type(batch).__name__}, expected [B, 3, H, W] or a map with "image", or a list that begins with '
        "the images"
    )


def _labels(given: Any, images: Tensor) -> list[int] | None:
    if given is None:
        return None
    labels = torch.as_tensor(given).reshape(-1)
    if len(labels) != len(images):
        raise ValueError(f'"is_anomaly" has {len(labels)} labels for {len(images)} images, expected one for each')
    return [int(label) for label in labels.tolist()]  # GPU sync


def _masks(given: Any, images: Tensor) -> list[Tensor] | None:
    if given is None:
        return None
    masks = (
        torch.as_tensor(given) if not isinstance(given, list | tuple) else torch.stack([*map(torch.as_tensor, given)])
    )
    B, _, H, W = images.shape if images.ndim == 4 else (len(images), 0, 0, 0)
    if tuple(masks.shape) not in {(B, H, W), (B, 1, H, W)}:
        raise ValueError(
            f'"mask" has shape {list(masks.shape)} for images {list(images.shape)}, expected [{B}, {H}, {W}] or '
            f"[{B}, 1, {H}, {W}]"
        )
    return list(masks)
