"""`mhpc-worker plan`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from worker.costs import BUNDLED, REDIS, WorkerCosts, read_costs
from worker.errors import ConfigurationError
from worker.plan import LEAST_WORKERS, Plan, Workload, plan

GB = 1e9
LARGEST = 1_000_000_000
SMALLEST = 1e-9
SHARES = ("learning_share", "headroom")
MAY_BE_ZERO = ("learning_share", "backlog_seconds")


def plan_fleet(
    context: typer.Context,
    lines: Annotated[int, typer.Option(min=1, max=LARGEST, help="How many lines.")] = 1,
    rate: Annotated[float, typer.Option(help="Images a second of each line, not of all.")] = 5.0,
    image_kb: Annotated[float, typer.Option(help="An image as it is sent, in KB of 1,000 bytes.")] = 80.0,
    costs: Annotated[
        Path | None, typer.Option(help="What bench --json FILE wrote; else the bundled backbone's.")
    ] = None,
    backlog_seconds: Annotated[float, typer.Option(help="For so long Redis holds images without a worker.")] = 600.0,
    results_kept: Annotated[int, typer.Option(min=1, max=LARGEST, help="Results of each line.")] = 100_000,
    heat_map: Annotated[bool, typer.Option(help="Whether results carry one.")] = True,
    bank_size: Annotated[int | None, typer.Option(min=1, max=LARGEST, help="Anchors; else the costs'.")] = None,
    feature_width: Annotated[int | None, typer.Option(min=1, max=LARGEST, help="Of a patch; else the costs'.")] = None,
    snapshots_kept: Annotated[int, typer.Option(min=2, max=LARGEST, help="Of each line.")] = 3,
    snapshot_every: Annotated[float, typer.Option(help="Seconds, while a line learns.")] = 30.0,
    learning_share: Annotated[float, typer.Option(help="Of the lines, that learn at one time; 1 on day one.")] = 0.05,
    headroom: Annotated[float, typer.Option(help="Share of CPU, device and network that is used.")] = 0.7,
    replicas: Annotated[int, typer.Option(min=0, max=10, help="Of each redis-server.")] = 1,
    redis_gb: Annotated[float, typer.Option(help="Memory of one redis-server, GB.")] = 32.0,
    worker_gb: Annotated[float, typer.Option(help="Memory of one worker, GB.")] = 16.0,
    network_gbit: Annotated[float, typer.Option(help="Of one redis-server, each way.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")] = False,
) -> None:
    """Plan a fleet on paper: workers, Redis, network, memory and storage.

    Nothing is started or asked. It reckons with measured costs: of a worker
    those that bench has written on one machine of yours (--costs), of Redis
    those of a benchmark. docs/scale.md explains the formula of each row.
    """
    check_numbers(context.params)
    found = BUNDLED if costs is None else read_costs(costs)
    work = Workload(
        lines=lines, rate=rate, image_bytes=1000 * image_kb, backlog_seconds=backlog_seconds,
        results_kept=results_kept, heat_map=heat_map, bank_size=bank_size or found.bank,
        feature_width=feature_width or found.width, snapshots_kept=snapshots_kept, snapshot_every=snapshot_every,
        learning_share=learning_share, headroom=headroom, replicas=replicas, redis_bytes=GB * redis_gb,
        worker_bytes=GB * worker_gb, network_bits=1e9 * network_gbit,
    )  # fmt: skip
    (show_json if as_json else show)(work, found, plan(work, found, REDIS))


def check_numbers(options: dict[str, Any]) -> None:
    """Raises ConfigurationError for an option that is no number of its kind."""
    for name, number in options.items():
        if not isinstance(number, float):
            continue
        most = 1 if name in SHARES else LARGEST
        if not SMALLEST <= number <= most and (number != 0 or name not in MAY_BE_ZERO):
            expected = "a share above 0, of at most 1" if most == 1 else f"a number above 0, up to {LARGEST:g}"
            raise ConfigurationError(f"--{name.replace('_', '-')} {number:g}: expected {expected}")


def show_json(work: Workload, costs: WorkerCosts, made: Plan) -> None:
    """All of it, nested as it is in worker.plan and worker.costs; bytes, seconds and rates per second."""
    told: dict[str, Any] = {"workload": work, "worker_costs": costs, "redis_costs": REDIS, "plan": made}
    typer.echo(json.dumps({name: asdict(part) for name, part in told.items()}))


def show(work: Workload, costs: WorkerCosts, made: Plan) -> None:
    console = Console(highlight=False)
    console.print(table(work, costs, made))
    for note in notes(work, costs, made):
        console.print(note)


def table(work: Workload, costs: WorkerCosts, made: Plan) -> Table:
    """Rows of what, how much, and the formula in docs/scale.md's letters."""
    lines = "1 line" if work.lines == 1 else f"{work.lines:,} lines"
    title = f"{lines} of {work.rate:g} images a second of {work.image_bytes / 1000:g} KB"
    found = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    found.add_column("what", no_wrap=True)
    found.add_column("needed", justify="right", no_wrap=True)
    found.add_column("formula", no_wrap=True)
    for section in (shard_rows(made), worker_rows(costs, made), redis_rows(made), network_rows(made), disk_rows(made)):
        for number, row in enumerate(section, 1):
            found.add_row(*row, end_section=number == len(section))
    return found


Row = tuple[str, str, str]


def shard_rows(made: Plan) -> list[Row]:
    bounds = made.bounds
    return [
        ("images a second", count(made.images_per_second), "X = N r"),
        ("lines a shard, by Redis' CPU", f"{bounds.cpu:,}", "h / (r e)"),
        ("  by Redis' memory", f"{bounds.memory:,}", "M / (1.5 m)"),
        ("  by Redis' network", f"{bounds.network:,}", "h G / o"),
        ("  by a worker's memory", f"{bounds.workers:,}", "(W - w0) / w"),
        ("shards", f"{made.shards:,}", "S = N / least of these"),
        ("lines a shard", f"{made.shard_lines:,}", "n = N / S"),
    ]


def worker_rows(costs: WorkerCosts, made: Plan) -> list[Row]:
    kind = f"of {costs.cores} cores" if costs.device == "cpu" else "with a GPU"
    return [
        (f"workers {kind}, a shard", f"{made.shard_workers:,}", f"k = n r t / h, at least {LEAST_WORKERS}"),
        ("  of all shards", f"{made.workers:,}", "S k"),
        ("  memory of each", size(made.worker_bytes), "w0 + n w"),
    ]


def redis_rows(made: Plan) -> list[Row]:
    return [
        ("redis-servers", f"{made.redis_servers:,}", "S (1 + R)"),
        ("  memory of each", size(made.redis_bytes), "1.5 n m"),
        ("  main thread's load", f"{made.shard_lines * made.line.redis_cpu:.1%}", "n r e"),
    ]


def network_rows(made: Plan) -> list[Row]:
    return [
        ("network into Redis", speed(made.network_in), "N r (b + q)"),
        ("  out of Redis", speed(made.network_out), "N o"),
        ("  out of a shard", speed(made.shard_out), "n o"),
    ]


def disk_rows(made: Plan) -> list[Row]:
    return [
        ("snapshots' storage", size(made.snapshot_store), "N (keep + 1) v"),
        ("  written", f"{size(made.snapshot_writes)}/s", "N s v / every"),
        ("Redis' disks", size(made.redis_disk), "3 (1 + R) N m"),
    ]


def notes(work: Workload, costs: WorkerCosts, made: Plan) -> list[str]:
    """Where the figures come from, and what they do not say."""
    rates = f"{costs.scoring:.4g} images/s scoring, {costs.learning:.4g} learning, with a bank of {costs.bank:,}."
    told = [f"Costs of a worker: {costs.source}: {rates}"]
    if costs is BUNDLED:
        told = [
            f"No --costs: reckoned with {costs.source}: {rates} Yours differ: mhpc-worker bench --lines 1,8 --json "
            "FILE, then --costs FILE."
        ]
    told.append(f"Costs of Redis: {REDIS.source}.")
    if (work.bank_size, work.feature_width) != (costs.bank, costs.width):
        told.append("Another bank or width than was measured: memory and storage follow it, images/s do not.")
    if not costs.line_measured:
        told.append("A line's memory in a worker is the default's, in proportion: measure it by bench --lines 1,8.")
    if costs.device != "cpu":
        banks = made.shard_lines * 4 * work.bank_size * (work.feature_width + costs.components)
        told.append(f"On the GPU the banks of a shard's lines take about {size(banks)}: reckoned, not measured.")
    if made.learning_wait:
        told.append(
            f"A line learns on one worker, {made.learning_limit:.3g} images/s at this headroom: of its first 1,000 "
            f"up to {made.learning_wait:,.0f} wait in Redis meanwhile."
        )
    return told


def count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def size(number: float) -> str:
    """Bytes, in units of a thousand."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} PB" if number < 1000 else f"{number:,.0f} PB"


def speed(number: float) -> str:
    """Bytes a second as bits a second."""
    for unit in ("bit/s", "Kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"):
        if number * 8 < 999.5:
            return f"{number * 8:.3g} {unit}"
        number /= 1000
    return f"{number * 8:,.3g} Pbit/s"
