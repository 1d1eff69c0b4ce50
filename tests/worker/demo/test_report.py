import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.worker.demo.samples import RUN, verdict
from worker.demo.figures import Verdict, compute_figures
from worker.demo.report import OUTLINE, SHOWN, outline, overlay, write_report

VOID = {"meta", "link", "img", "br", "circle", "line"}


class Page(HTMLParser):
    """Collects attributes and fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def verdicts() -> list[Verdict]:
    """20 good parts, of which 9 are false alarms, and 14 defective ones, of which 2 are missed."""
    good = [verdict("good", 1.0 + 0.1 * i, i) for i in range(20)]
    dents = [verdict("dent", 1.9 + 0.1 * i, 20 + i) for i in range(12)]
    return [*good, *dents, verdict("scratch", 2.5, 40), verdict("missing_hole", 2.6, 41)]


def report(folder: Path, those: list[Verdict]) -> tuple[str, Page]:
    text = write_report(folder, compute_figures(RUN, those), those, ["notes & <more>"]).read_text()
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    folder = tmp_path_factory.mktemp("report")
    return folder, *report(folder, verdicts())


def test_the_page_shows_the_worst_parts_and_asks_for_nothing_from_elsewhere(whole: tuple[Path, str, Page]) -> None:
    folder, text, page = whole
    pictures = [image["src"] for image in page.all("img")]
    assert len(pictures) == SHOWN + 2 + 9
    assert all(re.fullmatch(r"part-\d\d\.png", str(name)) and (folder / str(name)).is_file() for name in pictures)
    assert "//" not in text  # no address of any host
    assert page.all("script") == []


def test_the_page_can_be_read_aloud(whole: tuple[Path, str, Page]) -> None:
    _, _, page = whole
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all("aria-label" in chart or chart.get("aria-hidden") for chart in page.all("svg"))
    assert all("scope" in head for head in page.all("th"))
    assert len(page.all("h1")) == 1


def test_ids_and_notes_are_escaped(whole: tuple[Path, str, Page]) -> None:
    _, text, _ = whole
    assert "notes &amp; &lt;more&gt;" in text
    assert "test/scratch/&lt;40&gt;" in text


def test_the_worst_of_each_kind_come_in_turn_so_that_one_kind_does_not_fill_the_page(
    whole: tuple[Path, str, Page],
) -> None:
    worst = [str(image["alt"]) for image in whole[2].all("img")][:5]
    assert [alt.split("/")[1] for alt in worst] == ["dent", "missing_hole", "scratch", "dent", "dent"]


def test_an_older_report_leaves_no_pictures_behind(tmp_path: Path) -> None:
    for name in ("notes.png", "part-01.png", "part-02.png"):
        (tmp_path / name).write_bytes(b"old")
    report(tmp_path, [verdict(None, 3.0)])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["notes.png", "part-01.png"]


@pytest.mark.parametrize("kind", [None, "good", "dent"])
def test_a_report_of_one_part_renders_whatever_is_known(tmp_path: Path, kind: str | None) -> None:
    text, page = report(tmp_path, [verdict(kind, 3.0)])
    assert len(page.all("img")) == (2 if kind == "good" else 1)  # a good one is a false alarm too
    assert ("truth not known" in text) == (kind is None)


def test_a_picture_shows_the_part_and_beside_it_heat_and_outline(tmp_path: Path) -> None:
    report(tmp_path, [verdict("dent", 3.0)])
    pixels = np.asarray(Image.open(tmp_path / "part-01.png")).astype(int)
    side = (pixels.shape[1] - 6) // 2
    plain, over = pixels[:, :side], pixels[:, -side:]
    difference = np.abs(plain - over).max(axis=2)
    assert difference[:40, :40].min() > 20  # the hot corner
    cool = difference[side // 2 :, side // 2 :]
    outlined = (over == OUTLINE).all(axis=2)
    assert outlined.any()
    assert not cool[~outlined[side // 2 :, side // 2 :]].any()


def test_heat_leaves_what_is_cool_as_it_was_and_covers_what_is_hot() -> None:
    picture = np.full((40, 60, 3), 100, np.uint8)
    heat = np.zeros((4, 6), np.float32)
    heat[:, 3:] = 3.0
    over = overlay(picture, heat)
    assert np.array_equal(over[:, :15], picture[:, :15])
    assert (np.abs(over[:, 45:].astype(int) - 100).max(axis=2) > 50).all()
    assert (picture == 100).all()  # the argument is left alone


def test_the_outline_lies_outside_of_the_mask() -> None:
    mask = np.zeros((30, 30), bool)
    mask[10:15, 12:20] = True
    drawn = (outline(np.zeros((30, 30, 3), np.uint8), mask) == OUTLINE).all(axis=2)
    assert drawn.sum() > 20
    assert not (drawn & mask).any()
