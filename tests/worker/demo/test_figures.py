import json

import pytest
from rich.console import Console

from tests.worker.demo.samples import RUN, verdict
from worker.demo.figures import Figures, KindFigures, Verdict, compute_figures
from worker.demo.parts import Part
from worker.demo.table import figures_table


def known() -> Figures:
    scores = {"good": [1.0, 1.5, 2.5, 1.2], "dent": [3.0, 1.8], "scratch": [5.0]}
    return compute_figures(RUN, [verdict(kind, score) for kind, those in scores.items() for score in those])


def test_found_missed_and_false_alarms_are_counted() -> None:
    figures = known()
    assert (figures.anomalies_found, figures.anomalies_missed, figures.false_alarms) == (2, 1, 1)
    assert (figures.good, figures.defective, figures.scored, figures.anomalous) == (4, 3, 7, 3)
    assert figures.false_positive_rate == 0.25
    assert figures.auroc == pytest.approx(11 / 12)  # of 12 pairs one is the wrong way round
    assert figures.kinds == (KindFigures("dent", 2, 1, 7 / 8), KindFigures("scratch", 1, 1, 1.0))
    assert figures.images_per_second == 3.5
    assert figures.learning_images_per_second == 10


def test_the_interval_of_the_rate_is_the_exact_binomial_one() -> None:
    figures = compute_figures(RUN, [verdict("good", 1.0) for _ in range(100)])
    assert figures.false_positive_rate_interval == pytest.approx((0.0, 1 - 0.025 ** (1 / 100)))


def test_without_the_truth_nothing_is_claimed() -> None:
    figures = compute_figures(RUN, [verdict(None, 1.0), verdict(None, 3.0)])
    assert figures.anomalous == 1
    unknown = (figures.auroc, figures.false_positive_rate, figures.anomalies_found, figures.false_alarms)
    assert unknown == (None, None, None, None)
    assert figures.kinds == ()


def test_good_parts_alone_have_a_rate_and_no_auroc() -> None:
    figures = compute_figures(RUN, [verdict("good", 1.0)])
    assert figures.auroc is None
    assert figures.false_positive_rate == 0


def test_the_json_has_the_keys_that_others_read() -> None:
    figures = json.loads(json.dumps(known().as_json()))
    assert figures["parts"] == 100
    assert figures["results"] == 99
    assert figures["wanted_false_positive_rate"] == 0.01
    assert {"auroc", "false_positive_rate", "images_per_second", "backbone"} <= figures.keys()


def test_a_threshold_of_zero_does_not_divide_by_it() -> None:
    part = Part("a", "test", None, bytes, lambda: None)
    assert Verdict(part, 0.0, 0.0, False, None).ratio == 0
    assert Verdict(part, 1.0, 0.0, True, None).ratio > 1


@pytest.mark.parametrize("kind", ["good", None])
def test_the_table_fits_80_columns(kind: str | None) -> None:
    figures = known() if kind else compute_figures(RUN, [verdict(None, 3.0)])
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - the console closes it
    console.print(figures_table(figures))
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 80
    text = "\n".join(lines)
    assert ("1 of 4 good parts" in text) == (kind is not None)
    assert ("the truth is not known" in text) == (kind is None)
