"""The figures as tables for a terminal of 80 columns."""

from rich import box
from rich.table import Table

from worker.bench.figures import Figures, Phase
from worker.bench.latency import Latency

MIB = 1024 * 1024
MAX_OTHERS = 0.1  # of all cores


def tables(figures: Figures) -> list[Table]:
    """Throughput, where the time went, the floor, latency, and what else was measured."""
    found = [_throughput(figures), _stages(figures), _floor(figures), _latency(figures), _machine(figures)]
    return [*found, _lines(figures)] if figures.lines else found


def _table(title: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _throughput(figures: Figures) -> Table:
    bare = figures.forward
    weights = f", {figures.weights}" if figures.weights else ""
    title = f"{figures.backbone}{weights} on {bare.device}, {bare.cores} cores"
    table = _table(title, "flat out", "images/s", "ratio", "alone", "of floor", "batch")
    table.add_row("bare loop", f"{bare.images_per_second:.1f}", "", "", "", str(bare.batch))
    for name, phase in _phases(figures):
        ratios = (f"{ratio:.3f}" for ratio in (phase.ratio, phase.ratio_alone, phase.ratio_floor))
        table.add_row(name, f"{phase.images_per_second:.1f}", *ratios, f"{phase.batch:.1f}")
    threads = f"{bare.threads} each of {bare.passes} passes" if bare.passes > 1 else f"{bare.threads}"
    variant = f"{bare.precision}, threads: {threads}, cut after {figures.layers[-1]}, channels last"
    table.caption = f"bare loop: {variant}\nalone: had Redis and the producer taken no CPU time"
    table.caption_justify = "left"
    return table


def _phases(figures: Figures) -> list[tuple[str, Phase]]:
    return [("scoring", figures.scoring), ("learning", figures.learning)]


def _stages(figures: Figures) -> Table:
    phases = [phase for _, phase in _phases(figures)]
    table = _table("Where the time went", "stage", "scoring s", "share", "learning s", "share")
    for stage in figures.scoring.stages:
        table.add_row(stage, *(text for p in phases for text in _share(p.stages[stage], p.seconds)))
    table.add_row("outside these", *(text for p in phases for text in _share(p.outside, p.seconds)), end_section=True)
    table.add_row("wall", *(text for p in phases for text in _share(p.seconds, p.seconds)))
    for name in figures.scoring.cpu_seconds:
        table.add_row(f"CPU: {name}", *(text for p in phases for text in _share(p.cpu_seconds[name], p.seconds)))
    if disturbed(figures):
        table.caption = "Other processes kept the cores busy: measure again on a quiet machine"
        table.caption_justify, table.caption_style = "left", "bold"
    table.add_row("CPU: others", *(text for p in phases for text in _share(p.others_cpu_seconds, p.seconds)))
    return table


def disturbed(figures: Figures) -> bool:
    """Whether processes that are not the run's took so much CPU time that the figures say little."""
    bare = figures.forward
    shares = [phase.others_cpu_seconds / phase.seconds for _, phase in _phases(figures)]
    return max(bare.others_cpu_seconds, *shares) > MAX_OTHERS * bare.cores


def _share(seconds: float, of: float) -> tuple[str, str]:
    return f"{seconds:.2f}", f"{seconds / of:.1%}"


def _floor(figures: Figures) -> Table:
    table = _table("The floor, ms per image", "phase", "forward", "products", "decode", "floor", "took")
    for name, phase in _phases(figures):
        floor = phase.floor
        parts = (floor.forward_ms, floor.products_ms, floor.decode_ms, floor.milliseconds)
        table.add_row(name, *(f"{part:.2f}" for part in parts), f"{1000 / phase.images_per_second:.2f}")
    flop = ", ".join(f"{name} {count / 1e6:.0f}" for name, count in figures.learning.floor.flop.items())
    table.caption = f"MFLOP per image: {flop}; at {figures.forward.gemm_flop_per_second / 1e9:.0f} GFLOP/s"
    table.caption_justify = "left"
    return table


def _latency(figures: Figures) -> Table:
    table = _table("XADD to the result's XADD, ms", "load", "images", "p50", "p95", "p99", "max")
    half, flood = figures.half_load, figures.flood
    table.add_row(f"half, {half.asked_images_per_second:.1f} images/s", *_percentiles(half.latency))
    if flood is not None:
        light = f"light line, {flood.images_per_second:g} images/s"
        table.add_row(f"{light}, alone", *_percentiles(flood.alone))
        table.add_row(f"{light}, flood beside", *_percentiles(flood.flooded))
    waits = f"model.max_wait_ms {half.max_wait_ms:g} and two batches of {half.batch_ms:.0f} ms: {half.limit_ms:.0f} ms"
    table.caption, table.caption_justify = waits, "left"
    return table


def _percentiles(latency: Latency) -> tuple[str, ...]:
    values = (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
    return str(latency.images), *(f"{value:.0f}" for value in values)


def _machine(figures: Figures) -> Table:
    start, memory = figures.start, figures.memory
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="Start, memory, bank", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    beyond = f"{start.first_result:.2f} s, {start.beyond:.2f} beyond importing torch and loading the weights"
    table.add_row("First result after", beyond)
    table.add_row("Peak memory, MiB", f"worker {memory.worker / MIB:.0f}, bare loop {memory.bare / MIB:.0f}")
    redis = f"Redis {memory.redis / MIB:.0f}, of which it used {memory.redis_used / MIB:.0f} at most"
    table.add_row("", redis)
    banks = (f"{phase.anchors} anchors of {phase.components} components {name}" for name, phase in _phases(figures))
    table.add_row("Bank", "\n".join(banks))
    table.add_row("Features", f"{figures.forward.patches} patches of {figures.forward.width}")
    return table


def _lines(figures: Figures) -> Table:
    table = _table("Many lines, scoring flat out", "lines", "images/s", "one, in turns", "ratio", "worker MiB")
    one = figures.scoring
    table.add_row("1", f"{one.images_per_second:.1f}", "", "", f"{one.resident_bytes / MIB:.0f}")
    for row in figures.lines:
        ratio, memory = f"{row.to_one:.3f}", f"{row.resident_bytes / MIB:.0f}"
        rates = (f"{rate:.1f}" for rate in (row.images_per_second, row.one_images_per_second))
        table.add_row(str(row.lines), *rates, ratio, memory)
    if figures.flood is not None:
        table.caption = f"p99 of a light line under a flood: {figures.flood.p99_ratio:.2f} times its p99 alone"
        table.caption_justify = "left"
    return table
