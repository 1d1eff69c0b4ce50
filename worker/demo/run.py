"""`mhpc-worker demo`: a private Redis, a worker in its own process, a camera, and a report of what the worker found."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mhpc.evaluation.tables import check_writable
from worker.demo.backbones import backbones_table, compare_backbones
from worker.demo.figures import Figures, Run, Verdict, compute_figures
from worker.demo.folder import read_folder
from worker.demo.parts import Part, rendered_parts
from worker.demo.play import LINE, Player, Result, Watch, images_of, progress_bars
from worker.demo.processes import (
    Child,
    free_port,
    private_redis,
    started_worker,
    terminated_is_interrupted,
    wait_until_ready,
)
from worker.demo.report import write_report
from worker.demo.serve import Page, opened, serve
from worker.demo.table import figures_table
from worker.errors import ConfigurationError, WorkerError
from worker.producer import Producer, connect
from worker.settings import ModelSettings


@dataclass(frozen=True)
class DemoOptions:
    """The flags of `mhpc-worker demo`; `rate` is images per second, 0 as fast as the worker takes them."""

    images: Path | None = None
    backbone: str = "tiny"
    weights: str | None = None
    layers: tuple[str, ...] | None = None
    json: Path | None = None
    report: Path = Path("demo-report")
    rate: float = 0.0
    serve: bool = False
    false_positive_rate: float = 0.01
    backbones: bool = True  # compare them at the end


def run_demo(options: DemoOptions, console: Console | None = None) -> Figures:
    """Run the demo to its end.

    Raises:
        WorkerError: with the exit code that the command is to end with; the worker's own where it ended by itself.
        KeyboardInterrupt: it was interrupted or terminated before its figures were complete; the children are ended.
    """
    console = console or Console()
    _check(options)
    if options.images is None:
        parts, notes = rendered_parts(), ["Rendered parts: brushed metal discs with missing holes, dents and scratches"]
    else:
        parts, notes = (folder := read_folder(options.images)).parts, folder.notes
    for note in notes:
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
    with (
        terminated_is_interrupted(),
        TemporaryDirectory(prefix="mhpc-demo-") as name,
        private_redis(Path(name)) as url,
    ):
        port, config = free_port(), Path(name) / "config.toml"
        page = Page.of_this_run() if options.serve else None
        config.write_text(worker_config(options, parts, url, port, Path(name), page), encoding="utf-8")
        with started_worker(config, Path(name) / "worker.log") as worker, opened(page, config, console) as served:
            if options.images is None:
                parts = _rendered_up_front(parts, worker, console)
            with console.status("The worker starts"):
                wait_until_ready(worker, port)
            client = connect(url)
            player = Player(Producer(client, LINE, rate=options.rate), Watch(client), worker)
            figures, verdicts = _play_all(player, parts, options, console)
            _publish(figures, verdicts, parts, options, notes, console)
            if page and served:
                serve(player, [part for part in parts if part.split == "test"], page, served, console)
    return figures


def _check(options: DemoOptions) -> None:
    """Find now what would otherwise fail at the end."""
    if ":" in options.backbone and not options.layers:
        raise ConfigurationError(f"--backbone {options.backbone} needs --layers A,B: the names of the layers to take")
    if options.rate < 0:
        raise ConfigurationError(
            f"--rate {options.rate}: expected images per second, or 0 for as fast as they are taken"
        )
    if options.json is not None:
        try:
            check_writable(options.json)
        except ValueError as error:
            raise ConfigurationError(f"--json {error}") from None
    try:
        options.report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--report {options.report}: not a folder that can be written: {error}") from None


def worker_config(
    options: DemoOptions, parts: Sequence[Part], url: str, port: int, folder: Path, page: Page | None = None
) -> str:
    """The configuration file of the worker, and of the live page. JSON's strings and lists are TOML's."""

    def toml(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)

    model = [f"backbone = {toml(options.backbone)}"]
    model += [f"weights = {toml(options.weights)}"] if options.weights else []
    model += [f"layers = {toml(options.layers)}"] if options.layers else []
    learn, calibrate, _ = _by_split(parts)
    sections = {
        "redis": [f"url = {toml(url)}"],
        "worker": ['name = "demo"'],
        "model": model,
        "learning": [f"images = {len(learn)}", "converge = false"],
        "calibration": [f"images = {len(calibrate)}", f"false_positive_rate = {options.false_positive_rate}"],
        "snapshots": [f"directory = {toml(str(folder / 'snapshots'))}"],
        "streams": ["scores_max = 10000"],
        "http": ['host = "127.0.0.1"', f"port = {port}"],
    }
    if page:
        sections["console"] = [f"port = {page.port}", f"tokens = {{ {toml(page.user)} = {toml(page.token)} }}"]
    text = "\n".join(f"[{name}]\n" + "\n".join(lines) for name, lines in sections.items())
    return f'{text}\n[[lines]]\nname = "{LINE}"\n'


def _by_split(parts: Sequence[Part]) -> tuple[list[Part], list[Part], list[Part]]:
    learn, calibrate, test = ([p for p in parts if p.split == split] for split in ("learn", "calibrate", "test"))
    return learn, calibrate, test


def _rendered_up_front(parts: Sequence[Part], worker: Child, console: Console) -> list[Part]:
    """Draw all parts, about 15 kB each, before the first is sent: a camera takes no time of the worker's cores."""
    rendered = []
    with progress_bars(console) as bars:
        for part in bars.track(parts, description="Rendering"):
            worker.check()  # it starts meanwhile
            rendered.append(replace(part, read=partial(bytes, part.read())))
    return rendered


def _play_all(
    player: Player, parts: Sequence[Part], options: DemoOptions, console: Console
) -> tuple[Figures, list[Verdict]]:
    learn, calibrate, test = _by_split(parts)
    watch = player.watch
    with progress_bars(console) as bars:
        started = time.monotonic()
        _train(player, learn, calibrate, bars)
        learned = time.monotonic()
        scoring = bars.add_task("Scoring", total=len(test))
        player.play(
            images_of(test),
            done=lambda: watch.answered(test) == len(test),
            seen=lambda new: bars.update(scoring, completed=watch.answered(test)),
        )
        ended = time.monotonic()
    verdicts = [_verdict(part, watch.results[part.id]) for part in test if part.id in watch.results]
    if not verdicts:
        raise WorkerError(f"no test part was scored; the first dead letter: {next(iter(watch.dead.values()), 'none')}")
    run = Run(
        backbone=options.backbone,
        weights=_weights(options),
        layers=options.layers,
        wanted_false_positive_rate=options.false_positive_rate,
        parts=len(parts),
        results=len(watch.results),
        repeated=watch.repeated,
        dead=len(watch.dead),
        learned=len(learn),
        calibrated=len(calibrate),
        learning_seconds=learned - started,
        scoring_seconds=ended - learned,
        model=watch.results[test[-1].id]["model"],
    )
    return compute_figures(run, verdicts), verdicts


def _weights(options: DemoOptions) -> str | None:
    """What the worker takes where no weights are named; None with a function, which brings its own."""
    if options.weights is None and ":" not in options.backbone:
        return "bundled" if options.backbone == "tiny" else "pretrained"
    return options.weights


def _train(player: Player, learn: Sequence[Part], calibrate: Sequence[Part], bars: Progress) -> None:
    """Play the parts to learn, then those to calibrate; no entry holds both, since phases switch between entries."""
    watch = player.watch
    learning = bars.add_task("Learning", total=len(learn))
    calibrating = bars.add_task("Calibrating", total=len(calibrate), start=False)

    def seen(new: list[Result]) -> None:
        trained = player.trained()
        share = "" if watch.outside_share is None else f" {100 * watch.outside_share:.0f} % new"
        bars.update(learning, completed=min(trained, len(learn)), description=f"Learning{share}")
        if trained > len(learn):
            bars.start_task(calibrating)
            bars.update(calibrating, completed=trained - len(learn))

    for parts in (learn, calibrate):
        player.play(images_of(parts), done=lambda: True, seen=seen)
    trained = [*learn, *calibrate]
    player.play([], done=lambda: watch.phase == "scoring" and watch.answered(trained) == len(trained), seen=seen)


def _verdict(part: Part, result: Result) -> Verdict:
    if result["threshold"] is None:
        raise WorkerError(
            f"the worker answered {part.id} without a verdict, in phase {result['phase']}; expected scoring"
        )
    return Verdict.of(part, result)


def _publish(
    figures: Figures,
    verdicts: Sequence[Verdict],
    parts: Sequence[Part],
    options: DemoOptions,
    notes: Sequence[str],
    console: Console,
) -> None:
    page = write_report(options.report, figures, verdicts, notes)
    console.print(figures_table(figures))
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)
    document = figures.as_json()
    _write_json(document, options)  # nothing of what was found is lost if the comparison fails
    if options.backbones and not options.serve:  # it would keep the live page waiting
        own = ModelSettings(backbone=options.backbone, weights=options.weights, **_layers(options))
        with console.status("Comparing backbones"):
            compared = compare_backbones(own, parts)
        console.print(backbones_table(compared))
        _write_json({**document, "backbones": [asdict(row) for row in compared]}, options)


def _write_json(document: dict[str, Any], options: DemoOptions) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _layers(options: DemoOptions) -> dict[str, Any]:
    return {"layers": options.layers} if options.layers else {}
