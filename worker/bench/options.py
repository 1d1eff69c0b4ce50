"""What `mhpc-worker bench` is asked for, and the configuration that its workers get."""

import json
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ConfigurationError

MAX_LINES = 256
SCORES_MAX = 1_000_000  # no result of a run is trimmed before its latency was read


@dataclass(frozen=True)
class BenchOptions:
    """The flags of `mhpc-worker bench`; `seconds` is the length of each measurement."""

    backbone: str = "tiny"
    weights: str | None = None
    layers: tuple[str, ...] | None = None
    json: Path | None = None
    seconds: float = 8.0
    lines: tuple[int, ...] = (1,)
    bank_size: int = 6000
    device: str = "auto"


@dataclass(frozen=True)
class Plan:
    """How a worker's lines get to where they are measured: by so many images of each phase."""

    lines: tuple[str, ...]
    learn: int
    calibrate: int


def line_counts(text: str) -> tuple[int, ...]:
    """The counts of lines in "1,8,64", each once and ascending; 1 is always among them: others are compared with it.

    Raises:
        ConfigurationError: not whole numbers from 1 to MAX_LINES.
    """
    try:
        counts = {int(part) for part in text.split(",")}
    except ValueError:
        counts = {0}
    if min(counts) < 1 or max(counts) > MAX_LINES:
        raise ConfigurationError(f"--lines {text}: expected counts from 1 to {MAX_LINES}, such as 1,8,64")
    return tuple(sorted(counts | {1}))


def check_options(options: BenchOptions) -> None:
    """Find now what would otherwise fail at the end.

    Raises:
        ConfigurationError: a flag that cannot be used.
    """
    if ":" in options.backbone and not options.layers:
        raise ConfigurationError(f"--backbone {options.backbone} needs --layers A,B: the names of the layers to take")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ConfigurationError(f"--json {options.json}: there is no folder {options.json.absolute().parent}")


def worker_config(options: BenchOptions, plan: Plan, url: str, port: int, folder: Path) -> str:
    """A worker's configuration file: defaults, but for what is asked for. JSON's strings and lists are TOML's."""
    toml = json.dumps
    model = [f"backbone = {toml(options.backbone)}", f"bank_size = {options.bank_size}"]
    model += [f"weights = {toml(options.weights)}"] if options.weights else []
    model += [f"layers = {toml(options.layers)}"] if options.layers else []
    sections = {
        "redis": [f"url = {toml(url)}"],
        "worker": ['name = "bench"', f"device = {toml(options.device)}"],
        "model": model,
        "learning": [f"images = {plan.learn}", "converge = false"],
        "calibration": [f"images = {plan.calibrate}"],
        "snapshots": [f"directory = {toml(str(folder / 'snapshots'))}"],
        "streams": [f"scores_max = {SCORES_MAX}"],
        "http": ['host = "127.0.0.1"', f"port = {port}"],
    }
    text = "\n".join(f"[{name}]\n" + "\n".join(lines) for name, lines in sections.items())
    return f"{text}\n" + "".join(f"[[lines]]\nname = {toml(name)}\n" for name in plan.lines)
