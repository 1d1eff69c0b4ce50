"""What is published of an entry."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from worker.message import Image, Rejected, Result, encode_result
from worker.records import Serving, Verdict
from worker.streams.ids import entry_key
from worker.streams.line_streams import Answer, DeadLetter, Entry
from worker.streams.review import review_part


class Judged(NamedTuple):
    """An image, its verdict, and the version by which it was given."""

    image: Image
    verdict: Verdict
    serving: Serving

    @property
    def anomalous(self) -> bool | None:
        score, threshold = self.verdict.score, self.serving.threshold
        return None if score is None or threshold is None else score > threshold


@dataclass(eq=False)
class Opened:
    """An entry on its way: what came of each of its images, `left` of which are still to be judged."""

    name: str  # of its line
    entry: Entry
    left: int = 0
    judged: list[Judged] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)  # [B, P, D] each; kept while the line learns, if there is room


def answer_of(opened: Opened, now_ms: float, payload_bytes: int) -> Answer:
    """Results, dead letters with at most so many bytes of payload, and anomalous parts for review."""
    results = [encode_result(_result(opened, judged, now_ms)) for judged in opened.judged]
    dead = [DeadLetter(r.id, r.reason, r.error, r.payload[:payload_bytes]) for r in opened.rejected]
    review = [
        review_part(opened.entry.id, image, "anomalous", verdict.score, serving.threshold, serving.model or "")
        for image, verdict, serving in (judged for judged in opened.judged if judged.anomalous)
    ]
    return Answer(opened.entry.id, results, dead, review)


def _result(opened: Opened, judged: Judged, now_ms: float) -> Result:
    image, verdict, serving = judged.image, judged.verdict, judged.serving
    return Result(
        line=opened.name,
        entry=opened.entry.id,
        id=image.id,
        phase=serving.phase,
        model=serving.model,
        score=verdict.score,
        threshold=serving.threshold,
        anomalous=judged.anomalous,
        provisional=verdict.score is not None and (serving.threshold is None or serving.provisional),
        ts=image.ts,
        latency_ms=round(now_ms - entry_key(opened.entry.id)[0], 3),
        map=verdict.map,
        meta=image.meta,
    )
