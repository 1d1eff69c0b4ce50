"""`mhpc-worker run --distributed`: this process is a rank of those that torchrun has started, which learn one line."""

import hashlib
import os
import signal
import sys
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
import torch
import torch.distributed as dist

from worker.daemon import Worker
from worker.devices import device_failures
from worker.engine import Engine, pick_device
from worker.errors import ConfigurationError, DeviceError
from worker.keeping.keeper import Keeper
from worker.learners import new_learner
from worker.metrics import Metrics
from worker.process import serve
from worker.ranks.crew import Crew, exchange, follow
from worker.ranks.hot_line import HotKeeper, HotLine
from worker.ranks.meeting import join
from worker.ranks.share import Share
from worker.runtime.crashes import CrashFile
from worker.settings import LineConfig, Settings, line_configs
from worker.storage.stores import open_store
from worker.streams.line_streams import LineStreams
from worker.streams.review import review_caps

TORCHRUNS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
HOW = "torchrun --nproc-per-node 4 --max-restarts 1000 -m worker run --distributed --config config.toml"
LATE_SECONDS = 5.0  # after others give up a rank that hangs; by SIGKILL, as torchrun ends it, no traceback is left
SHARED = ("model", "learning", "calibration", "scoring", "limits", "lines")  # sections that all ranks go by
OF_A_MACHINE = {"model": {"weights", "max_batch", "max_wait_ms"}}  # weights are compared by what they hold

log = structlog.get_logger()


def run_distributed(settings: Settings) -> None:
    """Be one of the ranks until rank 0, which keeps the line, is asked to stop.

    Raises:
        ConfigurationError: torchrun has not started this, there is not one line, or another rank is configured
            otherwise or of another release.
        RanksError: another rank is gone. torchrun then starts all of them again.
    """
    settings, config = on_own_device(settings), hot_line(settings)
    join("gloo" if settings.worker.device == "cpu" else "cpu:gloo,cuda:nccl", settings.worker.rank_seconds)
    agree({name: _digest(settings, name) for name in SHARED})
    if dist.get_rank() == 0:
        worker = HotWorker(settings)
        serve(worker)
        worker.crew.end()
    else:
        take_part(settings, config)
    dist.destroy_process_group()


def hot_line(settings: Settings) -> LineConfig:
    """The one line that the ranks are to learn."""
    if missing := [name for name in TORCHRUNS if name not in os.environ]:
        raise ConfigurationError(f"--distributed is for torchrun, which sets {', '.join(missing)}: {HOW}")
    configs = line_configs(settings)
    if len(configs) != 1 or settings.worker.fleet:
        named = "those of a fleet" if settings.worker.fleet else ", ".join(c.name for c in configs) or "none"
        raise ConfigurationError(
            f"--distributed has all ranks learn one line, the configuration has {named}; give the hot line a "
            "configuration of its own, and the others to a worker without --distributed"
        )
    return configs[0]


def on_own_device(settings: Settings) -> Settings:
    """The settings with the device of this rank: each has a GPU of its own, or all compute on the CPU."""
    wanted = settings.worker.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        device = "cpu"
    else:
        local, ranks = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        if wanted not in ("auto", "cuda") or ranks > torch.cuda.device_count():
            raise ConfigurationError(
                f"worker.device is {wanted!r} for {ranks} ranks on a machine with {torch.cuda.device_count()} GPUs; "
                'each rank takes one of its own with "auto": lower --nproc-per-node, or set "cpu"'
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    return settings.model_copy(update={"worker": settings.worker.model_copy(update={"device": device})})


def _digest(settings: Settings, section: str) -> str:
    told = settings.model_dump_json(include={section}, exclude=OF_A_MACHINE)
    return hashlib.sha256(told.encode()).hexdigest()


def agree(on: dict[str, str], crashed: bool = False) -> bool:
    """Have rank 0 compare what all ranks say they go by, and their release; whether any process before had crashed.

    Raises:
        ConfigurationError: on rank 0, where another differs from it; the others end by the same code, without a word.
    """

    def judged(ranks: list[dict[str, Any]]) -> dict[str, Any]:
        differ = [_difference(ranks[0], rank, other) for rank, other in enumerate(ranks)]
        return {"problem": "; ".join(filter(None, differ)), "crashed": any(rank["crashed"] for rank in ranks)}

    found = exchange({"on": on, "release": version("mhpc"), "crashed": crashed}, judged)
    if found["problem"] and dist.get_rank() == 0:
        raise ConfigurationError(f"{found['problem']}: give all ranks the same configuration, weights and release")
    if found["problem"]:
        sys.exit(ConfigurationError.exit_code)
    return bool(found["crashed"])


def _difference(first: dict[str, Any], rank: int, other: dict[str, Any]) -> str:
    if other["release"] != first["release"]:
        return f"rank {rank} is of release {other['release']}, rank 0 of {first['release']}"
    differ = [name for name, digest in first["on"].items() if other["on"].get(name) != digest]
    return f"rank {rank} has other {', '.join(differ)} than rank 0" if differ else ""


def take_part(settings: Settings, config: LineConfig) -> None:
    """Be a rank but the first. Signals to stop are rank 0's to obey: it needs this one for its last snapshot."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    rank, told = dist.get_rank(), exchange({}, lambda _: {})
    model = settings.model.model_copy(update={"precision": told["precision"]})
    crash_file = CrashFile(settings.snapshots.on_this_machine, f"{settings.worker.name}.rank{rank}")
    try:
        with device_failures(settings.worker.device):
            engine = Engine(model, pick_device(settings.worker.device), Metrics())
            agree({"weights": engine.fingerprint}, crash_file.open())
            log.info("takes part", rank=rank, of=dist.get_world_size(), line=config.name, device=str(engine.device))
            make = partial(new_learner, config, settings.model.pca_variance_ratio, engine.device, rank)
            seconds = settings.worker.rank_seconds + LATE_SECONDS
            follow(WatchedShare(crash_file, seconds, engine, settings.limits, make, rank))
    except DeviceError as error:
        crash_file.note(str(error))
        raise
    finally:
        crash_file.close()


class WatchedShare(Share):
    """A rank's share whose process ends, with a traceback, where it hangs."""

    def __init__(self, crash_file: CrashFile, seconds: float, *of_share: Any) -> None:
        super().__init__(*of_share)
        self.crash_file = crash_file
        self.seconds = seconds

    def do(self, what: str, message: dict[str, Any]) -> dict[str, Any]:
        self.crash_file.watch(time.monotonic(), self.seconds)
        reply = super().do(what, message)
        self.crash_file.watch(time.monotonic(), self.seconds)  # from here on it may wait for rank 0
        return reply


class HotWorker(Worker):
    """Rank 0: a worker whose line is learned by all ranks. It answers as any worker does; others may answer with it."""

    crew: Crew

    def startup(self) -> None:
        self.pulse.seconds = self.settings.worker.rank_seconds + LATE_SECONDS
        super().startup()
        self.answering.cache.capacity = 0  # the ranks extract what they learn from
        for keeper in self.keepers.values():
            assert isinstance(keeper, HotKeeper)  # noqa: S101 - made below
            keeper.opening = self.answering.opening
            keeper.reading.suspicious |= self._crashed

    def _keeper(self, config: LineConfig) -> Keeper:
        engine, model = self.engine, self.settings.model
        precision = str(engine.precision).removeprefix("torch.")
        exchange({}, lambda _: {"precision": precision})
        self._crashed = agree({"weights": engine.fingerprint})
        make = partial(new_learner, config, model.pca_variance_ratio, engine.device)
        self.crew = Crew(Share(engine, self.settings.limits, make, 0), self.settings.worker.rank_seconds)
        return HotKeeper(
            lambda: HotLine(config, model.pca_variance_ratio, engine.device, self.crew),
            LineStreams(self.client, config.name),
            open_store(self.settings.snapshots, config.name),
            self.settings.snapshots,
            engine.fingerprint,
            self.metrics,
            review_caps(self.settings),
            engine.precision,
        )

    def beat(self) -> None:
        super().beat()
        self.crew.beat()
