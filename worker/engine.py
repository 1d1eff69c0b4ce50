"""The device side: pixels of any line to patch features, through one backbone."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import islice
from queue import LifoQueue

import structlog
import torch
import torch.nn.functional as F
from torch import Tensor

from mhpc.core.backbones import BackboneError, hash_parameters, load_backbone
from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN, PatchFeatures
from mhpc.core.patch_maps import PatchMaps
from worker.errors import DeviceError, ModelError, one_line
from worker.failpoints import failpoint
from worker.graphs import Replayed
from worker.message import Pixels
from worker.metrics import Metrics
from worker.runtime.threads import computing_on
from worker.settings import ModelSettings

PASSES = {"cpu": 2}  # at the same time
MAX_BATCH = {"cpu": 8, "cuda": 64}  # images: larger ones gain nothing there, and keep answers waiting
TRIAL_IMAGES = {"cpu": 1, "cuda": 64}  # of a forward pass that chooses the precision: a GPU is slow by launches below
TRIAL_SIZE, TRIALS = (224, 224), 3
WORTH = 1.2  # times float32's speed; native products give about 2
OTHERWISE = 3.0  # times as fast must be what a line did not learn in: that is another machine, no noise of a busy one

log = structlog.get_logger()


def pick_device(name: str) -> torch.device:
    """The device by its name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: it does not exist here.
    """
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0]
        raise DeviceError(f'worker.device {name!r} cannot be used ({problem}); set "auto", "cpu" or "cuda"') from None
    return device


def passes_of(backbone: str, device: torch.device) -> tuple[int, int]:
    """How many forward passes are made at the same time, and on how many of torch's threads each.

    One of a backbone of the user's own, of which nobody knows whether a copy shares its weights.
    """
    threads = torch.get_num_threads()
    passes = 1 if ":" in backbone else min(PASSES.get(device.type, 1), threads)
    return passes, -(-threads // passes)


def faster(seconds: Mapping[torch.dtype, float], learned_in: torch.dtype | None) -> torch.dtype:
    """The precision whose trial took less, or what is served already was learned in, unless that is out of place."""
    if learned_in is None:
        return torch.bfloat16 if seconds[torch.float32] > WORTH * seconds[torch.bfloat16] else torch.float32
    least = min(seconds, key=lambda dtype: seconds[dtype])
    return learned_in if seconds[learned_in] <= OTHERWISE * seconds[least] else least


class Engine:
    """The backbone with its preprocessing; batches are formed across entries and lines.

    Args:
        learned_in: the precision of what is served already, if anything is. The other one's features are others by a
            twentieth, and scores with them, so it is kept unless it is out of place on this machine.

    Attributes:
        precision: what the backbone computes in; features are float32 whatever it is.
        max_batch: images in one forward pass.
        passes: how many forward passes may be under way at the same time, each on a thread of its own.
        threads: of torch, that each of them, and the work loop beside them, is to have.
    """

    def __init__(
        self,
        settings: ModelSettings,
        device: torch.device,
        metrics: Metrics,
        beat: Callable[[], None] = lambda: None,
        learned_in: torch.dtype | None = None,
    ) -> None:
        try:
            backbone = load_backbone(settings.backbone, settings.weights_source)
            self.features = PatchFeatures(backbone, settings.layers, device=device)
            H, W = settings.input_shape
            _, self.grid = self.features(torch.zeros(1, 3, H, W))  # a layer that gives no map fails here, not later
        except (BackboneError, ValueError) as error:
            raise ModelError(f"model: {error}") from None
        self.settings = settings
        self.device = device
        self.metrics = metrics
        self.beat = beat  # called after each batch: a sign of life within a long turn
        self.max_batch = settings.max_batch or MAX_BATCH.get(device.type, 32)
        self.passes, self.threads = passes_of(settings.backbone, device)
        # Of a row of pixels, [3 W]: three channels broadcast over the pixels take a CPU five times as long.
        self._scale = (255 * IMAGENET_DEVIATION).reciprocal().flatten().repeat(W).to(device)
        self._shift = (-IMAGENET_MEAN / IMAGENET_DEVIATION).flatten().repeat(W).to(device)
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 convolutions would be of 10 bits unless told otherwise
            self.threads = 1  # more, which had little to do, would wait for the cores that decode
            torch.set_num_threads(self.threads)
        self._idle: LifoQueue[PatchFeatures] = LifoQueue()  # extractors; one is in use by one thread
        for extractor in (self.features, *(self.features.replica() for _ in range(self.passes + 1) if self.passes > 1)):
            self._idle.put(extractor)
        with ThreadPoolExecutor(1, "hash") as aside:
            fingerprint = aside.submit(self._fingerprint)  # a quarter of a second for 250 MB: beside the trial
            if device.type == "cuda":
                wait([fingerprint])  # its copies and the trial would wait for each other
            self.precision = self._precision(learned_in)
        self.fingerprint = fingerprint.result()
        if device.type == "cuda":
            self._replayed = Replayed(lambda pixels: self._extracted(pixels).joined(), device, self.max_batch)

    def _fingerprint(self) -> str:
        """Hash of what decides a feature's meaning, the precision left out: a bank is of use with equal ones only."""
        parts = (hash_parameters(self.features.backbone), self.settings.layers, self.settings.input_shape)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _precision(self, learned_in: torch.dtype | None) -> torch.dtype:
        """As configured, or else what is faster here; a backbone of the user's own keeps its precision.

        CPUs without bfloat16 products emulate them, at a fraction of float32's speed. A trial has the threads that a
        pass has: for the backbone in the box bfloat16 is twice as fast on one of an EPYC's cores, and 1.2 times on two.
        """
        if self.settings.precision != "auto":
            return torch.bfloat16 if self.settings.precision == "bfloat16" else torch.float32
        if ":" in self.settings.backbone:
            return torch.float32
        images = torch.zeros(min(self.max_batch, TRIAL_IMAGES.get(self.device.type, 1)), 3, *TRIAL_SIZE)
        found = faster(self._seconds(images), learned_in)
        if learned_in not in (None, found):
            log.warning("scores shift by some percent: calibrate anew", learned_in=str(learned_in), now=str(found))
        return found

    def _seconds(self, images: Tensor) -> dict[torch.dtype, float]:
        """Of a forward pass of images, by precision; of half as many where the device has no memory for them."""
        seconds = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
        try:
            with computing_on(self.threads):
                for dtype in TRIALS * list(seconds):  # alternating: other work on the machine falls on both
                    began = time.perf_counter()
                    self._maps(images, dtype).maps[-1].sum().item()  # GPU sync
                    seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
            return seconds
        except torch.OutOfMemoryError as error:
            if len(images) == 1:
                raise
            log.warning("out of memory: the trial is halved", images=len(images), error=one_line(error, 200))
        self._free()
        return self._seconds(images[: len(images) // 2])

    def prepare(self, pixels: Pixels) -> Tensor:
        """Pixels [h, w, 3] uint8, squashed to input_shape (antialiased): [3, H, W] uint8.

        Runs on threads of the decoder, on the CPU, where torch has a fast kernel for bytes.
        """
        x, size = torch.from_numpy(pixels).permute(2, 0, 1), self.settings.input_shape  # [3, h, w], channels last
        if pixels.shape[:2] == size:
            return x
        return F.interpolate(x[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]

    def batches(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """Features [B, P, D] of prepared images [3, H, W], B at most max_batch; images are taken as they are needed."""
        rest = iter(images)
        while chunk := list(islice(rest, self.max_batch)):
            yield self.forward(chunk)

    def forward(self, images: list[Tensor]) -> Tensor:
        """Features [B, P, D] float32 of B prepared images [3, H, W] uint8, in one pass."""
        return self.maps(images).joined()

    def maps(self, images: list[Tensor]) -> PatchMaps:
        """Patch maps of prepared images [3, H, W] uint8, before they are joined to features."""
        with self.metrics.stage("forward"):
            maps = self.extract(images)
        self.beat()
        return maps

    def extract(self, images: list[Tensor]) -> PatchMaps:
        """As `maps`, on whichever thread, and not timed; more than `passes` and two wait for one another.

        A batch that the device has no memory for is halved, down to one image.
        """
        try:
            failpoint("forward", str(len(images)))
            H, W = self.settings.input_shape
            pixels = torch.empty(len(images), H, W, 3, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            torch.stack(images, out=pixels.permute(0, 3, 1, 2))  # channels last, as they lie in memory
            if self.device.type == "cuda":
                return PatchMaps.of_features(self._replayed(pixels), self.grid)
            return self._extracted(pixels)
        except torch.OutOfMemoryError as error:
            if len(images) == 1:
                raise
            log.warning("out of memory: the batch is halved", images=len(images), error=one_line(error, 200))
        self._free()  # not above: the error's frames hold what was computed
        half = len(images) // 2
        return PatchMaps.cat([self.extract(images[:half]), self.extract(images[half:])])

    def _free(self) -> None:
        """Give back what torch keeps of the device's memory for later; where it cannot, half a batch may do without."""
        if self.device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # torch 2.11's allocator holds a recording that failed for one under way
                log.warning("the device's memory is not given back", error=one_line(error, 200))

    @torch.inference_mode()
    def _extracted(self, pixels: Tensor) -> PatchMaps:
        """Of pixels [B, H, W, 3] uint8."""
        rows = pixels.to(self.device).flatten(2)  # [B, H, 3 W]
        x = torch.addcmul(self._shift, rows.float(), self._scale).reshape(pixels.shape)
        return self._maps(x.permute(0, 3, 1, 2), self.precision)  # [B, 3, H, W], channels last

    def _maps(self, images: Tensor, dtype: torch.dtype) -> PatchMaps:
        """Of normalised images [B, 3, H, W], the backbone under autocast where that is asked for."""
        autocast = torch.autocast(self.device.type, dtype) if dtype is not torch.float32 else nullcontext()
        extractor = self._idle.get()
        try:
            with autocast:
                return extractor.maps(images)
        finally:
            self._idle.put(extractor)
