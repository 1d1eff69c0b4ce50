"""`mhpc-worker bench`: the bare loop first, then a worker learning, scoring, and at half load; then more lines."""

import json
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from worker.bench.figures import Bare, Figures, Flood, HalfLoad, Lines, Memory, Phase, Start
from worker.bench.floor import Shape, floor_of
from worker.bench.load import Flow
from worker.bench.options import BenchOptions, Plan, check_options, worker_config
from worker.bench.pictures import jpeg_parts, write_parts
from worker.bench.probe import Window, memory_bytes
from worker.bench.station import PAGE_POLL_SECONDS, Station, station, wait_until_serving
from worker.bench.table import tables
from worker.configuration import load_settings
from worker.demo.processes import spawn, terminated_is_interrupted
from worker.errors import WorkerError
from worker.settings import Settings

LINE = "line-000"
PICTURES = 1024
WARM_IMAGES = 200  # learned before the window: the basis is refreshed rarely by then
ENDLESS = 1_000_000_000  # images to learn: a command ends it
CALIBRATED = 64  # images
BRIEFLY = Plan((), learn=24, calibrate=24)  # each of many lines; eight pictures fill a bank of 6,000
LEARNING_AHEAD, SCORING_AHEAD = 16, 24  # entries of eight: a worker always finds enough for its next batches
ON_GPU = 8  # times as many beside a GPU: its batches are so much larger
# Scores of each line, and a while, before many are measured: a threshold of so few images is soon another, by a version
# of its own, and that once: the line's next such version comes five minutes later at the earliest.
FOLLOWED, FOLLOWING_SECONDS = 128, 10.0
LINES_ROUNDS = 2
LIGHT_RATE = 8.0  # images per second
LIGHT_WINDOWS = 5  # as long as others, so that a p99 has something to be of
CHILD_SECONDS = 600.0


def run_bench(options: BenchOptions, console: Console | None = None) -> Figures:
    """Run all measurements one after the other, print the figures and write them.

    Raises:
        WorkerError: with the exit code that the command is to end with; a child's own where one ended by itself.
        KeyboardInterrupt: interrupted or terminated; the children are ended.
    """
    console = console or Console()
    check_options(options)
    with terminated_is_interrupted(), TemporaryDirectory(prefix="mhpc-bench-") as name:
        folder = Path(name)
        settings = _settings(folder, options)
        with console.status("Rendering parts"):
            parts = folder / "parts.msgpack"
            write_parts(parts, jpeg_parts(PICTURES))
        with console.status("The bare backbone loop"):
            bare = measure_bare(folder, parts, options.seconds)
            loading = measure_loading(folder)
        with console.status("One line: learning, scoring, half load"):
            figures = measure_one_line(folder, parts, options, settings, bare, loading)
        several = [count for count in options.lines if count > 1]
        for count in several:
            with console.status(f"{count} lines"):
                lines, flood = measure_lines(folder, parts, options, count, bare, with_flood=count == several[0])
                figures = figures.with_lines((*figures.lines, lines), flood or figures.flood)
    for table in tables(figures):
        console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(figures.as_json(), indent=2) + "\n", encoding="utf-8")
    return figures


def _settings(folder: Path, options: BenchOptions) -> Settings:
    """What a worker will make of the flags; raises ConfigurationError before anything is started."""
    text = worker_config(options, Plan((LINE,), ENDLESS, CALIBRATED), "redis://127.0.0.1", 0, folder)
    (folder / "config.toml").write_text(text, encoding="utf-8")
    return load_settings(None, tomllib.loads(text), environ={})


def measure_bare(folder: Path, parts: Path, seconds: float) -> Bare:
    """The bare loop in a process of its own."""
    out = folder / "bare.json"
    _run_child(folder, "bare", str(folder / "config.toml"), str(parts), str(out), str(seconds))
    return Bare(**json.loads(out.read_text()))


def measure_loading(folder: Path) -> float:
    """Seconds from the start of a process to torch and the weights being there; the disk's cache is warm by now."""
    out = folder / "loading"
    begun = time.monotonic()
    _run_child(folder, "loading", str(folder / "config.toml"), str(out))
    return float(out.read_text()) - begun


def _run_child(folder: Path, module: str, *args: str) -> None:
    child = spawn(
        f"the {module} process", [sys.executable, "-m", f"worker.bench.{module}", *args], folder / "child.log"
    )
    deadline = time.monotonic() + CHILD_SECONDS
    try:
        while child.process.poll() is None:
            if time.monotonic() > deadline:
                raise WorkerError(f"{child.name} took over {CHILD_SECONDS:.0f} s; lower --seconds")
            time.sleep(0.05)
    finally:
        code = child.stop()
    if code:
        child.check()


def measure_one_line(
    folder: Path, parts: Path, options: BenchOptions, settings: Settings, bare: Bare, loading: float
) -> Figures:
    """One line through its life: start, learning flat out, calibration, scoring flat out, half load."""
    with station(folder / "one", options, Plan((LINE,), ENDLESS, CALIBRATED), parts) as at:
        start = Start(wait_until_serving(at), loading)
        learning, scoring = measure_learning(at, bare, options), measure_scoring(at, bare, options)
        half_load = measure_half_load(at, settings, scoring, options.seconds)
        worker, redis = (memory_bytes(pid)[1] for pid in (at.worker.process.pid, at.redis_pid))
        memory = Memory(bare.resident_bytes, worker, redis, at.redis_used_bytes)
    model = settings.model
    return Figures(
        backbone=model.backbone, weights=model.weights_source, layers=model.layers, bank_size=model.bank_size,
        forward=bare, scoring=scoring, learning=learning, half_load=half_load, start=start, memory=memory,
    )  # fmt: skip


def measure_learning(at: Station, bare: Bare, options: BenchOptions) -> Phase:
    """Learning flat out with a bank that is full, then the way to scoring."""
    wanted = max(WARM_IMAGES, 2 * options.bank_size // bare.patches)
    with at.cameras(Flow((LINE,), ahead=ahead(bare, LEARNING_AHEAD), learns=True)) as cameras:
        learned = f"{wanted} images to be learned"
        at.wait(lambda: cameras.probe.reading().learned >= wanted, learned, PAGE_POLL_SECONDS)
        window = cameras.probe.window(at.worker, options.seconds)
        phase = phase_of(window, bare, at, learning=True)
        at.command("calibrate")
        at.wait_for_phase("scoring")
    return phase


def measure_scoring(at: Station, bare: Bare, options: BenchOptions) -> Phase:
    """Scoring flat out."""
    window = at.window(Flow((LINE,), ahead=ahead(bare, SCORING_AHEAD)), options.seconds)
    return phase_of(window, bare, at, learning=False)


def measure_half_load(at: Station, settings: Settings, scoring: Phase, seconds: float) -> HalfLoad:
    """Single images at half of what scoring has just taken."""
    at.wait_until_answered()
    rate = scoring.images_per_second / 2
    latency = at.latency(LINE, seconds, Flow((LINE,), per_entry=1, rate=rate))
    batch_ms, wait_ms = 1000 * scoring.batch / scoring.images_per_second, settings.model.max_wait_ms
    return HalfLoad(rate, latency, batch_ms, wait_ms, wait_ms + 2 * batch_ms)


def phase_of(window: Window, bare: Bare, at: Station, *, learning: bool) -> Phase:
    """A phase's figures: learning counts what was learned, scoring what was answered."""
    images = window.learned if learning else window.answered
    cpu, page = window.cpu, window.last.page
    rate = images / window.seconds
    alone = window.seconds - (cpu["redis"] + cpu["producer"]) / bare.cores
    shape = Shape(
        bare.patches, bare.width, int(page.total("mhpc_pca_components")), int(page.total("mhpc_bank_anchors"))
    )
    floor = floor_of(
        shape, learning, bare.images_per_second, bare.decode_per_second, bare.gemm_flop_per_second,
        overlapped=bare.device != "cpu",
    )  # fmt: skip
    return Phase(
        images_per_second=rate,
        ratio=rate / bare.images_per_second,
        ratio_alone=images / alone / bare.images_per_second,
        ratio_floor=rate / floor.images_per_second,
        floor=floor,
        images=images,
        seconds=window.seconds,
        batch=window.answered / max(window.batches, 1),
        stages=window.stages,
        outside=window.seconds - sum(window.stages.values()),
        cpu_seconds=cpu,
        others_cpu_seconds=window.others,
        anchors=shape.anchors,
        components=shape.components,
        resident_bytes=memory_bytes(at.worker.process.pid)[0],
    )


def measure_lines(
    folder: Path, parts: Path, options: BenchOptions, count: int, bare: Bare, *, with_flood: bool
) -> tuple[Lines, Flood | None]:
    """Many lines flat out, each with a bank of its own, and then, if asked for, a light one beside a flood.

    They take turns with one line of another worker, which rests meanwhile: a machine's speed changes within minutes.
    """
    with (
        scoring_lines(folder / f"beside-{count}", options, parts, bare, 1) as one,
        scoring_lines(folder / f"lines-{count}", options, parts, bare, count) as at,
    ):
        alone, together = list[Window](), list[Window]()
        for _ in range(LINES_ROUNDS):
            for of, windows in ((one, alone), (at, together)):
                windows.append(of.window(Flow(of.lines, ahead=entries_ahead(bare, of.lines)), options.seconds))
                of.wait_until_answered()
        resident = memory_bytes(at.worker.process.pid)[0]
        flood = measure_flood(at, bare, options.seconds) if with_flood else None
    rate, of_one = (sum(w.answered for w in of) / sum(w.seconds for w in of) for of in (together, alone))
    return Lines(count, rate, of_one, rate / of_one, resident), flood


@contextmanager
def scoring_lines(folder: Path, options: BenchOptions, parts: Path, bare: Bare, count: int) -> Iterator[Station]:
    """A worker with so many lines, all of which score."""
    names = tuple(f"line-{number:03d}" for number in range(count))
    with station(folder, options, Plan(names, BRIEFLY.learn, BRIEFLY.calibrate), parts) as at:
        wait_until_serving(at)
        with at.cameras(Flow(names, ahead=entries_ahead(bare, names), learns=True)):
            at.wait_for_phase("scoring")
        with at.cameras(Flow(names, ahead=entries_ahead(bare, names))):
            at.wait_for_results(FOLLOWED * count)
            time.sleep(FOLLOWING_SECONDS)
        at.wait_until_answered()
        yield at


def entries_ahead(bare: Bare, lines: tuple[str, ...]) -> int:
    """Entries of each line that wait for a worker that scores flat out."""
    return max(2, ahead(bare, SCORING_AHEAD) // len(lines))


def measure_flood(at: Station, bare: Bare, seconds: float) -> Flood:
    """A light line's latency, alone and with another one flat out."""
    light, heavy = at.lines[:2]
    trickle = Flow((light,), per_entry=1, rate=LIGHT_RATE)
    alone = at.latency(light, LIGHT_WINDOWS * seconds, trickle)
    flooded = at.latency(light, LIGHT_WINDOWS * seconds, trickle, Flow((heavy,), ahead=ahead(bare, SCORING_AHEAD)))
    return Flood(len(at.lines), LIGHT_RATE, alone, flooded)


def ahead(bare: Bare, entries: int) -> int:
    """Entries that wait for a worker on the device of the bare loop."""
    return entries if bare.device == "cpu" else ON_GPU * entries
