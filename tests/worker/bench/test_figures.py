import json

import pytest

from tests.worker.bench.helpers import LATENCY, figures
from worker.bench.figures import Flood
from worker.bench.latency import Latency


def test_all_figures_are_json_with_the_derived_ones_among_them() -> None:
    found = json.loads(json.dumps(figures().as_json()))
    assert {"forward", "scoring", "learning", "half_load", "start", "memory", "lines", "flood"} <= found.keys()
    assert found["start"]["beyond"] == pytest.approx(1.5)
    assert found["flood"]["p99_ratio"] == pytest.approx(1.5)
    assert found["scoring"]["floor"]["images_per_second"] > found["learning"]["floor"]["images_per_second"]
    for name in ("scoring", "learning"):
        assert sum(found[name]["shares"].values()) == pytest.approx(1)


def test_what_was_not_asked_for_is_empty() -> None:
    found = figures(with_lines=False).as_json()
    assert (found["lines"], found["flood"]) == ((), None)


def test_a_p99_below_what_ids_can_tell_counts_as_a_millisecond() -> None:
    assert Flood(2, 5.0, Latency(10, 0.0, 0.0, 0.0, 0.0), LATENCY).p99_ratio == pytest.approx(80)
