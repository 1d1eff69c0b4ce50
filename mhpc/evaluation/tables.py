"""Figures on the terminal, as JSON and as CSV."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from mhpc.evaluation.options import Output

Row = Mapping[str, Any]


class Column(NamedTuple):
    """A figure by its key in a row, its heading and its format; shares are shown as they are, in [0, 1]."""

    key: str
    heading: str
    form: str = ".3f"


MERIT = (
    Column("image_auroc", "image\nAUROC"),
    Column("image_average_precision", "\nAP"),
    Column("pixel_auroc", "pixel\nAUROC"),
    Column("aupro", "\nAUPRO"),
    Column("f1", "\nF1"),
    Column("false_positive_rate", "\nFPR"),
)
COST = (
    Column("peak_mib", "peak\nMiB", ".0f"),
    Column("fit_seconds", "fit\ns", ".1f"),
    Column("ms_per_image", "ms /\nimage", ".1f"),
)
SAMPLING = (
    Column("bank_rows", "bank\nrows", ".0f"),
    Column("bank_mib", "bank\nMiB", ".1f"),
    Column("peak_mib", "peak\nMiB", ".0f"),
    Column("fit_seconds", "fit\ns", ".1f"),
    Column("images_per_second", "images\n/ s", ".1f"),
    Column("image_auroc", "image\nAUROC"),
    Column("aupro", "\nAUPRO"),
)


def figures_table(title: str, first: Column, columns: Sequence[Column], rows: Sequence[Row], bold: str = "") -> Table:
    """A table for a terminal of 80 columns; `first` is the column of names, of which the one that is `bold` is so."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
        title_style="bold",
    )
    table.add_column(first.heading, overflow="fold", vertical="bottom")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row in rows:
        name = str(row[first.key])
        cells = ["-" if row.get(c.key) is None else format(row[c.key], c.form) for c in columns]
        table.add_row(name, *cells, style="bold" if name == bold else None)
    return table


def report(tables: Sequence[Table], notes: Sequence[str], rows: Sequence[Row], document: Row, output: Output) -> None:
    """Print the tables and notes, and write what `output` asks for; on stderr where stdout takes a document.

    Raises:
        OSError: a file cannot be written.
    """
    aside = "-" in (str(output.json), str(output.csv))
    console = Console(stderr=aside, highlight=False)
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(note, markup=False)
    if output.json is not None:
        _write(output.json, json.dumps(document, indent=2) + "\n")
    if output.csv is not None:
        _write(output.csv, _as_csv(rows))


def check_output(output: Output) -> None:
    """Refuse, before the work, what cannot be written after it."""
    if str(output.json) == str(output.csv) == "-":
        raise ValueError('--json and --csv both ask for stdout ("-"); give one of them a file')
    for path in (output.json, output.csv):
        if path is not None and str(path) != "-":
            check_writable(path)


def check_writable(path: Path) -> None:
    """Raise ValueError where no file can be written there; nothing is."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder} to write it in")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file to write")
    if path.is_fifo():  # to open it waits for a reader, and closing it is that one's end
        return
    try:
        with path.open("ab") if path.exists() else TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def _as_csv(rows: Sequence[Row]) -> str:
    """All plain values of the rows, one line each; a value that a row lacks is left empty."""
    plain = [{name: v for name, v in row.items() if not isinstance(v, list | tuple | dict)} for row in rows]
    names = list(dict.fromkeys(name for row in plain for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from None
