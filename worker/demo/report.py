"""The demo's report: a folder with one HTML page and PNG pictures of the parts worth a look."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from worker.demo.figures import Figures, Verdict
from worker.demo.parts import Mask

SHOWN = 12  # parts in each section
SIDE = 384  # pixels, the longer side of a picture in the report
COOL, HOT = 0.7, 1.8  # patch scores, in thresholds, between which the heat map goes from clear to full
OPACITY = 0.75
OUTLINE = (0, 229, 255)

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class Card:
    """One part on the page."""

    verdict: Verdict
    picture: str  # file name in the report's folder
    outlined: bool


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    cards: list[Card]
    total: int  # parts of which `cards` are the first


def write_report(folder: Path, figures: Figures, verdicts: Sequence[Verdict], notes: Sequence[str]) -> Path:
    """Write FOLDER/index.html and the pictures beside it; what an earlier report left there is replaced.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*.png"):
        old.unlink()
    cards: dict[str, Card] = {}

    def card(verdict: Verdict) -> Card:
        if verdict.part.id not in cards:
            name = f"part-{len(cards) + 1:02d}.png"
            cards[verdict.part.id] = Card(verdict, name, _draw(verdict, folder / name))
        return cards[verdict.part.id]

    sections = [
        Section(title, text, [card(v) for v in chosen[:SHOWN]], len(chosen))
        for title, text, chosen in _sections(verdicts)
        if chosen
    ]
    template = files("worker.demo").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        figures=figures, run=figures.run, sections=sections, notes=notes, strip=_strip(verdicts), hot=HOT, cool=COOL
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


def _sections(verdicts: Sequence[Verdict]) -> list[tuple[str, str, list[Verdict]]]:
    worst = sorted(verdicts, key=lambda v: v.ratio, reverse=True)
    defective = [v for v in worst if v.part.defective]
    return [
        ("Worst parts", "The highest scores of each kind of defect, in turn.", _in_turn(defective))
        if defective
        else ("Worst parts", "The highest scores of all parts.", worst),
        (
            "Missed",
            "Defective parts under the threshold, the lowest scores first.",
            [v for v in reversed(defective) if not v.anomalous],
        ),
        (
            "False alarms",
            "Good parts over the threshold, the highest scores first.",
            [v for v in worst if v.part.defective is False and v.anomalous],
        ),
    ]


def _in_turn(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The first of each kind, then the second of each, and so on: else one kind would fill the page."""
    turns: Counter[str | None] = Counter()
    order = []
    for verdict in verdicts:
        order.append(turns[verdict.part.kind])
        turns[verdict.part.kind] += 1
    return [verdicts[i] for i in sorted(range(len(verdicts)), key=order.__getitem__)]


def _draw(verdict: Verdict, path: Path) -> bool:
    """Write the part beside itself with the heat map over it. Returns whether the defect's true outline is drawn."""
    with Pillow.open(io.BytesIO(verdict.part.read())) as picture:
        width, height = picture.size
        scale = SIDE / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        plain = np.asarray(picture.convert("RGB").resize(size, Pillow.Resampling.LANCZOS))
    heat = verdict.heat_ratio
    over = plain if heat is None else overlay(plain, heat)
    mask = verdict.part.read_mask()
    if mask is not None:
        over = outline(over, np.asarray(Pillow.fromarray(mask).resize(size, Pillow.Resampling.NEAREST)))
    gap = np.full((plain.shape[0], 6, 3), 127, np.uint8)
    Pillow.fromarray(np.concatenate([plain, gap, over], axis=1)).save(path)
    return mask is not None


def overlay(picture: RGB, heat: NDArray[np.float32]) -> RGB:
    """Lay a heat map over a picture.

    Args:
        picture: [H, W, 3] uint8.
        heat: [h, w] patch scores in thresholds; stretched over the whole picture, as the worker squashed it.

    Returns:
        [H, W, 3] uint8: unchanged below COOL, the colour map's hottest colour from HOT on.
    """
    H, W, _ = picture.shape
    smooth = Pillow.fromarray(np.ascontiguousarray(heat, np.float32)).resize((W, H), Pillow.Resampling.BICUBIC)
    level = np.clip((np.asarray(smooth) - COOL) / (HOT - COOL), 0, 1)  # [H, W]
    colour = colormaps["inferno"](0.25 + 0.75 * level)[:, :, :3] * 255
    alpha = (OPACITY * level**0.75)[:, :, None]
    mixed: RGB = (picture * (1 - alpha) + colour * alpha + 0.5).astype(np.uint8)
    return mixed


def outline(picture: RGB, mask: Mask) -> RGB:
    """Draw the border of a mask, [H, W], just outside of it."""
    border = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_dilation(mask, iterations=2)
    drawn = picture.copy()
    drawn[border] = OUTLINE
    return drawn


@dataclass(frozen=True)
class StripRow:
    """One row of the chart of all scores: the positions are 0 to 100 along the axis."""

    kind: str
    defective: bool | None
    dots: list[tuple[float, float]]  # along the axis, and a fixed scatter of -1 to 1 across it


@dataclass(frozen=True)
class Strip:
    rows: list[StripRow]
    ticks: list[tuple[float, str]]
    threshold: float  # the position of score / threshold = 1


def _strip(verdicts: Sequence[Verdict]) -> Strip:
    """Every test part's score in thresholds, on a logarithmic axis, one row per kind, good parts first."""
    ratios = np.array([max(v.ratio, 1e-3) for v in verdicts])
    low, high = min(0.5, ratios.min()) * 0.93, max(2.0, ratios.max()) * 1.07

    def position(ratio: float) -> float:
        return round(100 * float(np.log(ratio / low) / np.log(high / low)), 2)

    kinds = sorted({v.part.kind for v in verdicts}, key=lambda kind: (kind != "good", kind or ""))
    rows = []
    for kind in kinds:
        those = sorted(v.ratio for v in verdicts if v.part.kind == kind)
        # The golden ratio spreads neighbours apart, the same way on every run.
        dots = [(position(max(ratio, 1e-3)), round(2 * (i * 0.618034 % 1) - 1, 2)) for i, ratio in enumerate(those)]
        rows.append(StripRow(kind or "not known", None if kind is None else kind != "good", dots))
    marks = [0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100]
    ticks = [(position(mark), f"{mark:g}") for mark in marks if low < mark < high]
    return Strip(rows, ticks, position(1.0))
