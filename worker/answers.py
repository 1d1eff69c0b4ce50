"""What is published of an entry."""

from dataclasses import dataclass, field

from torch import Tensor

from worker.line import Line
from worker.message import Image, Rejected, Result, encode_result
from worker.records import Verdict
from worker.streams.line_streams import Answer, DeadLetter, Entry, entry_key
from worker.streams.review import review_part


@dataclass
class Opened:
    """An entry on its way: what came of each of its images."""

    line: Line
    entry: Entry
    verdicts: list[tuple[Image, Verdict]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)  # [B, P, D] each; kept while the line learns, if there is room


def answer_of(part: Opened, now_ms: float, payload_bytes: int) -> Answer:
    """Results, dead letters with at most so many bytes of payload, and anomalous parts for review."""
    results = [encode_result(_result(part, image, verdict, now_ms)) for image, verdict in part.verdicts]
    dead = [DeadLetter(r.id, r.reason, r.error, r.payload[:payload_bytes]) for r in part.rejected]
    serving = part.line.serving
    review = [
        review_part(part.entry.id, image, "anomalous", verdict.score, serving.threshold, serving.model or "")
        for image, verdict in part.verdicts
        if _anomalous(verdict.score, serving.threshold)
    ]
    return Answer(part.entry.id, results, dead, review)


def _result(part: Opened, image: Image, verdict: Verdict, now_ms: float) -> Result:
    serving, score = part.line.serving, verdict.score
    threshold = serving.threshold
    return Result(
        line=part.line.name,
        entry=part.entry.id,
        id=image.id,
        phase=serving.phase,
        model=serving.model,
        score=score,
        threshold=threshold,
        anomalous=_anomalous(score, threshold),
        provisional=score is not None and (threshold is None or serving.provisional),
        ts=image.ts,
        latency_ms=round(now_ms - entry_key(part.entry.id)[0], 3),
        map=verdict.map,
        meta=image.meta,
    )


def _anomalous(score: float | None, threshold: float | None) -> bool | None:
    return None if score is None or threshold is None else score > threshold
