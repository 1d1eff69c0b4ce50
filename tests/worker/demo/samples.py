"""Verdicts made by hand, for the tests of figures, table and report."""

import numpy as np

from worker.demo.figures import Run, Verdict
from worker.demo.parts import KINDS, Mask, Part, encode_jpeg, render

RUN = Run(
    backbone="tiny",
    weights="bundled",
    layers=None,
    wanted_false_positive_rate=0.01,
    parts=100,
    results=99,
    repeated=1,
    dead=1,
    learned=50,
    calibrated=20,
    learning_seconds=7.0,
    scoring_seconds=2.0,
    model="0000000001-000003",
)


def verdict(kind: str | None, score: float, number: int = 0) -> Verdict:
    """A part of this kind (None: unknown) with a score against a threshold of 2, and a heat map with one hot corner."""

    def read() -> bytes:
        return encode_jpeg(render(kind if kind in KINDS else "good", number)[0])

    def read_mask() -> Mask | None:
        return render(kind, number)[1] if kind in KINDS else None

    heat = np.full((7, 7), 0.5, np.float32)
    heat[:2, :2] = 6.0
    part = Part(f"test/{kind}/<{number}>", "test", kind, read, read_mask)
    return Verdict(part, score, 2.0, score > 2.0, heat)
