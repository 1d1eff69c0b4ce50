"""Images to patch features: a backbone, cut after the last layer asked for, and locally pooled maps of its layers."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from itertools import chain
from threading import Lock
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhpc.core.backbones import BackboneError
from mhpc.core.patch_maps import PatchMaps
from mhpc.linalg import all_finite

MIN_SIDE = 32  # pixels
# [3, 1, 1], of images in [0, 1]: backbones were trained with pictures that are normalised by them.
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
IMAGENET_DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
UNFOLD_BYTES = 64 * 1024 * 1024  # of neighbourhoods that are cut out at once

# By backbone and not in the extractor: extractors that share one wait for each other, and a lock cannot be copied.
_locks: WeakKeyDictionary[nn.Module, Lock] = WeakKeyDictionary()
_locks_lock = Lock()


class _LastLayerReached(Exception):  # noqa: N818 - control flow, not an error: it ends the forward pass early
    pass


class PatchFeatures:
    """Patch features of images (Roth et al., 2022, arXiv:2106.08265, section 3.1).

    Without dimensions each layer's map is averaged over patchsize x patchsize neighbourhoods, brought bilinearly to
    the largest map's grid, and the layers are concatenated: D is the sum of their channels.

    With dimensions the features are those of the paper's code, patchcore-inspection:

    1. Each layer's neighbourhoods are cut out, zeros beyond the border, and flattened to C * patchsize^2 values.
    2. These are pooled adaptively (neighbours in that order averaged) to pretrain_embed_dimension.
    3. Smaller maps are brought bilinearly to the largest one's grid (there: the first one's).
    4. The layers' vectors, in the order of `layers`, are pooled adaptively to target_embed_dimension.

    Pooling and bilinear scaling are linear and act on different axes, so 2 comes before 3 here and after it there.
    Cutting out costs C * patchsize^2 * h * w * 4 bytes an image, nine times the map at patchsize 3 (14 MiB for layer2
    of wide_resnet50_2 at 224 x 224), and as much again for a copy in the order that pooling reads; images are taken in
    groups that need at most 64 MiB of it, or singly, whatever the batch.

    Several threads may call it. The backbone carries hooks for the length of a pass, by which one call would be given
    another's maps: passes through one backbone wait for each other, whichever extractors they are of. Those of a
    `replica` run beside them.

    Args:
        backbone: in eval mode; moved to device, channels last. Its floating dtype may be another than float32.
        layers: names of submodules, as `named_modules` gives them, in any order; their outputs are maps
            [B, C, h, w] (Swin's, with channels last, are not told apart from them). A module that runs more than
            once in a pass (a shared activation) counts with its first output.
        patchsize: odd side of the neighbourhood, in cells of the layer's map.
        patchstride: cells from one neighbourhood to the next; 1 is the paper's. Maps of s cells a stride show what they
            see (s - 1) / 2 cells farther down and to the right, as the reference's do.
        pretrain_embed_dimension: values per layer. Alone: the layers are concatenated, D is this times their number.
        target_embed_dimension: D. Alone: the concatenation of the averaged maps is pooled to it.

    Raises:
        ValueError: an even patchsize, a stride or dimension below 1.
        BackboneError: layers that the backbone does not have.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str],
        patchsize: int = 3,
        device: torch.device | str = "cpu",
        patchstride: int = 1,
        pretrain_embed_dimension: int | None = None,
        target_embed_dimension: int | None = None,
    ) -> None:
        if not isinstance(patchsize, int) or patchsize < 1 or patchsize % 2 == 0:
            raise ValueError(f"patchsize is {patchsize!r}, expected an odd number: a neighbourhood has a centre")
        _check_positive("patchstride", patchstride)
        _check_positive("pretrain_embed_dimension", pretrain_embed_dimension)
        _check_positive("target_embed_dimension", target_embed_dimension)
        self._modules = _find(backbone, layers)
        self.backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
        self.layers = tuple(layers)
        self.patchsize = patchsize
        self.device = torch.device(device)
        self.patchstride = patchstride
        self.pretrain_embed_dimension = pretrain_embed_dimension
        self.target_embed_dimension = target_embed_dimension

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Features [B, P, D] float32 of normalised images [B, 3, H, W], and the grid (h, w) with P = h * w.

        Raises:
            ValueError: not floating, not [B, 3, H, W], too small, or a layer whose output is not a map.
        """
        maps = self._forward(images)
        if self.pretrain_embed_dimension is None and self.target_embed_dimension is None:
            return self._embed(maps)
        groups = zip(*(m.split(self._group(maps)) for m in maps), strict=True)
        features, grids = zip(*(self._embed(list(group)) for group in groups), strict=True)
        return torch.cat(features), grids[0]

    @torch.inference_mode()
    def maps(self, images: Tensor) -> PatchMaps:
        """Each layer's maps of normalised images [B, 3, H, W], pooled by patches and not yet joined to features.

        Raises:
            ValueError: as for features; or there is a target_embed_dimension.
        """
        if self.target_embed_dimension is not None:
            raise ValueError(f"target_embed_dimension is {self.target_embed_dimension}: it pools joined features")
        return self._pooled(self._forward(images))

    def replica(self) -> "PatchFeatures":
        """An extractor for calls on another thread: modules of its own, which share the weights of these."""
        weights = {id(tensor): tensor for tensor in chain(self.backbone.parameters(), self.backbone.buffers())}
        return PatchFeatures(
            deepcopy(self.backbone, weights),  # what its memo holds is not copied
            self.layers,
            self.patchsize,
            self.device,
            self.patchstride,
            self.pretrain_embed_dimension,
            self.target_embed_dimension,
        )

    def _embed(self, maps: list[Tensor]) -> tuple[Tensor, tuple[int, int]]:
        """Features [B, P, D] and grid (h, w) of the layers' maps [B, C, ., .]."""
        pooled = self._pooled(maps)
        features = pooled.joined()
        if self.target_embed_dimension is not None:
            features = F.adaptive_avg_pool1d(features, self.target_embed_dimension)
        return features, pooled.grid

    def _pooled(self, maps: list[Tensor]) -> PatchMaps:
        return PatchMaps(tuple(self._pool(m.float()) for m in maps))

    def _pool(self, x: Tensor) -> Tensor:
        """Neighbourhoods of a map [B, C, ., .] as vectors: [B, C, h, w] averaged, or [B, E, h, w] pooled adaptively."""
        size, stride, padding = self.patchsize, self.patchstride, self.patchsize // 2
        if self.pretrain_embed_dimension is None:
            return F.avg_pool2d(x, size, stride, padding)
        B, _, H, W = x.shape
        h, w = ((side - 1) // stride + 1 for side in (H, W))  # the padding keeps one centre per cell
        cut = F.unfold(x, size, padding=padding, stride=stride)  # [B, C * size^2, h * w]
        pooled = F.adaptive_avg_pool1d(cut.transpose(1, 2), self.pretrain_embed_dimension)  # [B, h * w, E]
        return pooled.reshape(B, h, w, -1).permute(0, 3, 1, 2)

    def _group(self, maps: list[Tensor]) -> int:
        """How many images are taken at once, so that what is cut out of the largest map keeps to UNFOLD_BYTES."""
        cells = max(m[0].numel() for m in maps) * (self.patchsize / self.patchstride) ** 2
        return max(1, int(UNFOLD_BYTES / (4 * cells)))

    def _forward(self, images: Tensor) -> list[Tensor]:
        """The layers' maps, each [B, C, h, w]; the pass ends once the last of them is there."""
        check_images(images)
        dtype = next((p.dtype for p in self.backbone.parameters() if p.is_floating_point()), torch.float32)
        x = images.to(self.device, dtype, memory_format=torch.channels_last)
        maps: dict[str, Tensor] = {}

        def keep(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"layer {name!r} gives {shape}, expected a map [B, C, h, w]; choose another layer")
            if name not in maps:
                # What follows may write into it: an in-place ReLU, a residual sum.
                maps[name] = output if len(maps) + 1 == len(self.layers) else output.clone()
            if len(maps) == len(self.layers):
                raise _LastLayerReached

        with _lock_of(self.backbone):
            hooks = [module.register_forward_hook(partial(keep, name)) for name, module in self._modules.items()]
            try:
                self.backbone(x)
            except _LastLayerReached:
                pass
            finally:
                for hook in hooks:
                    hook.remove()
        if len(maps) < len(self.layers):
            raise ValueError(f"layers {sorted(set(self.layers) - set(maps))} took no part in the forward pass")
        return [maps[name] for name in self.layers]


def _lock_of(backbone: nn.Module) -> Lock:
    with _locks_lock:
        return _locks.setdefault(backbone, Lock())


def check_images(images: Tensor, finite: bool = False) -> None:
    """Raise ValueError unless images are a floating tensor [B, 3, H, W] and large enough, and finite if asked."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images are {kind}, expected a floating tensor, normalised with ImageNet's mean and deviation"
        )
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0 or min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"images have shape {list(images.shape)}, expected [B, 3, H, W] with B >= 1 and H, W >= {MIN_SIDE}"
        )
    if finite and not all_finite(images):
        raise ValueError(f"images {list(images.shape)} hold NaN or infinite values, expected finite ones")


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} is {value}, expected a whole number of at least 1")


def _find(backbone: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    if isinstance(layers, str):
        raise BackboneError(f"layers is {layers!r}, expected a list of names: [{layers!r}]")
    modules = dict(backbone.named_modules(remove_duplicate=False))  # a shared module has all of its names
    del modules[""]  # the backbone itself
    missing = [name for name in layers if name not in modules]
    if missing or len(set(layers)) != len(layers) or not layers:
        near = {name: match for name in missing for match in get_close_matches(name, modules, n=1)}
        hint = "".join(f"; did you mean {match} for {name}?" for name, match in near.items())
        known = ", ".join(_outline(backbone))
        raise BackboneError(
            f"layers {list(layers)}: expected distinct names of {type(backbone).__name__}: {known}{hint}"
        )
    return {name: modules[name] for name in layers}


def _outline(module: nn.Module, prefix: str = "", depth: int = 2) -> Iterator[str]:
    """Names of the submodules, two levels deep; a container's numbered ones as "features.0 ... features.8"."""
    names = [name for name, _ in module.named_children()]
    if len(names) > 2 and all(name.isdigit() for name in names):
        yield f"{prefix}{names[0]} ... {prefix}{names[-1]}"
        return
    for name, child in module.named_children():
        yield f"{prefix}{name}"
        if depth > 1:
            yield from _outline(child, f"{prefix}{name}.", depth - 1)
