"""The bare backbone loop, and what else a machine must do: `python -m worker.bench.bare CONFIG PARTS OUT SECONDS`.

In a process of its own, as the worker is, while nothing else of the run is at work. The loop is the fastest forward
pass that we know without compiling: cut after the last layer, channels last, float32 or autocast to bfloat16, at the
best batch size and number of threads, one pass at a time or as many as a worker has, over pictures decoded before.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mhpc.core.backbones import BackboneError, load_backbone
from mhpc.core.patch_features import IMAGENET_DEVIATION, IMAGENET_MEAN, PatchFeatures
from worker.bench.figures import Bare, Trial
from worker.bench.pictures import as_images, read_parts
from worker.bench.probe import machine_seconds, memory_bytes
from worker.configuration import load_settings
from worker.devices import device_failures
from worker.engine import passes_of, pick_device
from worker.errors import ModelError, WorkerError, one_line
from worker.pictures.decoding import decode, decoding_threads
from worker.runtime.environment import steady_memory
from worker.runtime.threads import compute_on
from worker.settings import LimitSettings, Settings

BATCHES: dict[str, tuple[int, ...]] = {"cpu": (1, 8, 16, 32), "cuda": (8, 32, 64, 128)}
FIRST_BATCH = {"cpu": 8, "cuda": 64}  # at which precisions are compared: a GPU is slow by launches at small ones
TRIAL_SHARE = 0.05  # of the loop's own length
GEMM_ROWS = 6272  # patches of eight pictures
MIN_CALLS = 3
OTHER_DEVICE = "look at its driver's log (dmesg; nvidia-smi for a GPU), or choose another with --device"


@dataclass(frozen=True)
class Loop:
    """The forward pass alone, on a device, over pictures [N, 3, H, W] that lie there."""

    features: PatchFeatures
    pictures: Tensor

    def rate(self, trial: Trial, seconds: float) -> float:
        """Images per second of a variant, over so many seconds and at least MIN_CALLS batches."""
        extractors = [self.features, *(self.features.replica() for _ in range(1, trial.passes))]
        with ThreadPoolExecutor(len(extractors)) as pool:
            return sum(pool.map(lambda features: self._rate(features, trial, seconds), extractors))

    def _rate(self, features: PatchFeatures, trial: Trial, seconds: float) -> float:
        compute_on(trial.threads)
        repeats = -(-trial.batch // len(self.pictures))
        batch = self.pictures.repeat(repeats, 1, 1, 1)[: trial.batch].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(batch.device.type, torch.bfloat16, trial.precision == "bfloat16"):
            # Not the whole extractor: pooling and aligning its maps is the worker's work, as the bank is.
            return trial.batch * calls_per_second(lambda: features._forward(batch), seconds, batch.device)


def calls_per_second(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """How often a call can be made, after a first one that does not count; waits for its device at both ends."""
    call()
    _wait_for(device)
    calls, begun = 0, time.perf_counter()
    while calls < MIN_CALLS or time.perf_counter() - begun < seconds:
        call()
        calls += 1
    _wait_for(device)
    return calls / (time.perf_counter() - begun)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(
    rate: Callable[[Trial], float], batches: Sequence[int], shares: Sequence[tuple[int, int]], first: int
) -> list[tuple[Trial, float]]:
    """Find the fastest variant: the precision at the first batch, then the batch, then the threads and passes.

    Args:
        shares: threads and passes, those of the first two choices first.

    Returns:
        What was tried, the fastest last.
    """
    tried = {Trial(p, first, *shares[0]): 0.0 for p in ("float32", "bfloat16")}
    for trial in tried:
        tried[trial] = rate(trial)
    best = max(tried, key=lambda trial: tried[trial])
    others = [Trial(best.precision, batch, *shares[0]) for batch in batches if batch != first]
    tried |= {trial: rate(trial) for trial in others}
    best = max(tried, key=lambda trial: tried[trial])
    tried |= {trial: rate(trial) for trial in (Trial(best.precision, best.batch, *share) for share in shares[1:])}
    return sorted(tried.items(), key=lambda item: item[1])


def shares_of(backbone: str, device: torch.device) -> list[tuple[int, int]]:
    """Threads and passes at the same time: all threads for one, one thread alone, and those of a worker."""
    all_, (passes, threads) = (torch.get_num_threads(), 1), passes_of(backbone, device)
    others = [(1, 1), (threads, passes)] if device.type == "cpu" else []
    return [all_, *(share for share in others if share != all_)]


def with_others(measured: Callable[[], float]) -> tuple[float, float]:
    """A rate, and the CPU seconds per second that other processes took meanwhile: it is as good as they are few."""
    begun, own, machine = time.perf_counter(), time.process_time(), machine_seconds()
    rate = measured()
    others = machine_seconds() - machine - (time.process_time() - own)
    return rate, max(0.0, others) / (time.perf_counter() - begun)


def gemm_flops(width: int, device: torch.device, seconds: float) -> float:
    """FLOP per second of a float32 product [GEMM_ROWS, width] x [width, width]."""
    x, w = torch.rand(GEMM_ROWS, width, device=device), torch.rand(width, width, device=device)
    with torch.inference_mode():
        return 2 * GEMM_ROWS * width**2 * calls_per_second(lambda: x @ w, seconds, device)


def decoded_per_second(parts: list[bytes], limits: LimitSettings, seconds: float) -> float:
    """Pictures per second from JPEG to pixels, on as many threads as a worker has for it."""
    images, cpu = as_images(parts), torch.device("cpu")
    with ThreadPoolExecutor(decoding_threads()) as pool:
        return len(images) * calls_per_second(lambda: list(pool.map(lambda i: decode(i, limits), images)), seconds, cpu)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def measure(settings: Settings, parts: list[bytes], seconds: float) -> Bare:
    """The loop at its best, over so many seconds, and the rates of decoding and of products.

    Raises:
        ModelError: the backbone, its weights or layers cannot be used.
        DeviceError: the device does not exist here.
    """
    model, device = settings.model, pick_device(settings.worker.device)
    torch.backends.cudnn.allow_tf32 = False  # as for the worker: float32 is float32
    parts = parts[: max(BATCHES[device.type])]
    pixels = torch.stack([torch.from_numpy(decode(i, settings.limits)) for i in as_images(parts)])
    pictures = ((pixels.permute(0, 3, 1, 2) / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION).to(device)
    try:
        features = PatchFeatures(load_backbone(model.backbone, model.weights_source), model.layers, device=device)
        maps, grid = features(pictures[:1])
    except (BackboneError, ValueError) as error:
        raise ModelError(f"model: {error}") from None
    loop = Loop(features, pictures)
    first, batches, shares = FIRST_BATCH[device.type], BATCHES[device.type], shares_of(model.backbone, device)
    tried = fastest(lambda trial: loop.rate(trial, TRIAL_SHARE * seconds), batches, shares, first)
    best, width = tried[-1][0], maps.shape[-1]
    rate, others = with_others(lambda: loop.rate(best, seconds))
    return Bare(
        images_per_second=rate,
        precision=best.precision,
        batch=best.batch,
        threads=best.threads,
        passes=best.passes,
        tried=tuple({**asdict(trial), "images_per_second": round(speed, 2)} for trial, speed in tried),
        width=width,
        patches=grid[0] * grid[1],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        cores=cores(),
        decode_per_second=decoded_per_second(parts, settings.limits, TRIAL_SHARE * seconds),
        gemm_flop_per_second=gemm_flops(width, device, TRIAL_SHARE * seconds),
        resident_bytes=memory_bytes(os.getpid())[1],
        others_cpu_seconds=others,
    )


def main(config: str, parts: str, out: str, seconds: str) -> None:
    """Measure and write the figures as JSON; a WorkerError becomes one line and its exit code."""
    try:
        settings = load_settings(Path(config))
        with device_failures(settings.worker.device, OTHER_DEVICE):
            found = measure(settings, read_parts(Path(parts)), float(seconds))
    except WorkerError as error:
        sys.stderr.write(one_line(error) + "\n")
        sys.exit(error.exit_code)
    Path(out).write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    steady_memory()  # as a worker has it
    main(*sys.argv[1:])
