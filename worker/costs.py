"""What a worker and a redis-server were measured to cost: the figures that `worker.plan` reckons with. No torch."""

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from worker.errors import ConfigurationError

MIB = 1024 * 1024


@dataclass(frozen=True)
class WorkerCosts:
    """Of one worker on one device.

    Attributes:
        source: where the figures come from.
        device: "cpu", or the GPU's name.
        scoring: images per second, of lines that score.
        learning: images per second, of a line that learns, its answers included.
        patches: P of an image.
        width: D of a patch's features.
        components: d of the whitened space.
        bank: K, the anchors of a line.
        base_bytes: resident memory without a line.
        line_bytes: resident memory of a line.
        line_measured: whether that was; else it is the default's, in proportion to the bank.
    """

    source: str
    device: str
    cores: int
    backbone: str
    scoring: float
    learning: float
    patches: int
    width: int
    components: int
    bank: int
    base_bytes: float
    line_bytes: float
    line_measured: bool = True


@dataclass(frozen=True)
class RedisCosts:
    """Of one redis-server: CPU seconds of its main thread by entry and by byte of its picture, and bytes of memory."""

    source: str
    answer_entry: float
    answer_byte: float
    learn_entry: float
    learn_byte: float
    replica_entry: float
    replica_byte: float
    waiting_bytes: float  # of an entry, beside its picture
    waiting_per_byte: float
    result_bytes: float  # without a heat map
    patch_bytes: float  # of a heat map
    line_bytes: float  # of a line with nothing in its streams


# Two x86 cores with AVX512-BF16, no GPU, Redis 6.2, 24 November 2026: `mhpc-worker bench --lines 1,8,64 --seconds 5`.
# 145 and 52 images a second, 0.9 GiB with 1 line and 2.6 GiB with 64, all banks full: docs/performance.md. The numbers
# of patches, features, components and anchors are those that the command writes, on any machine.
BUNDLED = WorkerCosts(
    source="the bundled backbone on two x86 cores, measured on 24 November 2026",
    device="cpu",
    cores=2,
    backbone="tiny",
    scoring=145.0,
    learning=52.0,
    patches=784,
    width=512,
    components=22,
    bank=6000,
    base_bytes=0.9 * 1024 * MIB - (2.6 - 0.9) * 1024 * MIB / 63,
    line_bytes=(2.6 - 0.9) * 1024 * MIB / 63,
)

# One core of the same kind, Redis 7.0.15, 26 November 2026: `make bench ARGS=redis_shard`. Of two runs the larger
# figure, since other processes shared the cores.
REDIS = RedisCosts(
    source="Redis 7.0.15 on such a core, AOF at every write, measured on 26 November 2026",
    answer_entry=283e-6,
    answer_byte=1.43e-9,
    learn_entry=33e-6,
    learn_byte=2.52e-9,
    replica_entry=22e-6,
    replica_byte=1.0e-9,
    waiting_bytes=80,
    waiting_per_byte=1.024,
    result_bytes=220,
    patch_bytes=996 / 784,
    line_bytes=911,
)


def read_costs(path: Path) -> WorkerCosts:
    """What `mhpc-worker bench --json` has written.

    Raises:
        ConfigurationError: no such file, or no figures of that command.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return _costs(told, str(path))
    except OSError as error:
        raise ConfigurationError(
            f"--costs {path}: {error.strerror}; write it by mhpc-worker bench --json {path}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigurationError(
            f"--costs {path}: {why}; expected a file of figures, as mhpc-worker bench --json bench.json writes it"
        ) from None


def _costs(told: dict[str, Any], source: str) -> WorkerCosts:
    forward, scoring, learning = told["forward"], told["scoring"], told["learning"]
    shape = {"width": forward["width"], "components": scoring["components"], "bank": scoring["anchors"]}
    measured = [(1, scoring["resident_bytes"]), *((row["lines"], row["resident_bytes"]) for row in told["lines"])]
    (_, first), (most, last) = measured[0], measured[-1]
    if most > 1 and last > first:
        line_bytes = (last - first) / (most - 1)
    else:
        line_bytes = BUNDLED.line_bytes * _size(**shape) / _size(BUNDLED.width, BUNDLED.components, BUNDLED.bank)
    numbers = {
        "scoring": scoring["images_per_second"], "learning": learning["images_per_second"],
        "patches": forward["patches"], "cores": forward["cores"], "line_bytes": line_bytes, **shape,
    }  # fmt: skip
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < inf:
            raise ValueError(f"{name} is {number!r}, no figure of a worker")
    return WorkerCosts(
        source=source,
        device=str(forward["device"]),
        backbone=str(told["backbone"]),
        base_bytes=max(0.0, first - line_bytes),
        line_measured=most > 1 and last > first,
        **numbers,
    )


def _size(width: int, components: int, bank: int) -> int:
    return bank * (width + components)
