import io
from dataclasses import replace

from rich.console import Console

from tests.worker.bench.helpers import figures
from worker.bench.table import disturbed, tables


def shown(with_lines: bool) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=80)
    for table in tables(figures(with_lines)):
        console.print(table)
    return buffer.getvalue()


def test_the_tables_say_it_all_in_80_columns() -> None:
    text = shown(with_lines=True)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    for word in (
        "bare loop",
        "scoring",
        "learning",
        "outside these",
        "half, 60.0 images/s",
        "flood",
        "whitening",
        "1.50",
    ):
        assert word in text


def test_lines_that_were_not_measured_are_left_out() -> None:
    assert "Many lines" not in shown(with_lines=False)


def test_a_run_that_was_disturbed_is_marked() -> None:
    quiet = figures()
    busy = replace(quiet, scoring=replace(quiet.scoring, others_cpu_seconds=3.0))
    assert (disturbed(quiet), disturbed(busy)) == (False, True)
