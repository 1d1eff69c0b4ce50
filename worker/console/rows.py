"""A line's status in words: the texts and figures that pages show, the same when rendered and when live."""

import json
import re
from collections.abc import Iterable
from typing import Any

import redis

from worker.console.lines import Status, Watched
from worker.console.recent import NOTHING_SEEN, SPARK, Point, Seen
from worker.console.review import Reviewed
from worker.console.source import AWAY, failed
from worker.console.text import NONE, count, cut, finite, number, percent, ratio, seconds, shortened

PHASES = ("learning", "calibrating", "scoring", "paused")
WAITING = "waiting"  # for its first worker
PROGRESS = re.compile(r"([0-9]{1,15})/([0-9]{1,15})")  # done and wanted


def row(watched: Watched) -> dict[str, Any]:
    """All that a page says of a line; what nobody thought of, whatever its keys hold, is its own problem.

    Raises:
        redis.RedisError, RedisUnreachableError, ConfigurationError: as reading it does.
    """
    try:
        return _row(watched.status.get(), watched.recent.get())
    except (redis.RedisError, *AWAY):
        raise
    except Exception as error:
        return _row({"line": watched.name, "problem": failed(error)}, NOTHING_SEEN)


def _row(status: Status, seen: Seen) -> dict[str, Any]:
    threshold = status.get("threshold")
    return {
        "line": status["line"],
        "state": state_of(status),
        "paused": status.get("phase") == "paused",  # with a problem, too
        "problem": cut(status.get("problem") or "", 400),
        "progress": progress(status),
        "note": note(status, seen),
        "texts": texts(status, seen),
        "alarms": alarms(status, seen),
        "threshold": threshold if finite(threshold) else None,
        "spark": [spark(point) for point in seen.points[-SPARK:]],
        "models": seen.models[:50],
    }


def state_of(status: Status) -> str:
    """A word for what the line does; with a problem it may answer on, as where a version cannot be written."""
    if status.get("problem"):
        return "stopped" if status.get("stopped") else "problem"
    phase = status.get("phase")
    return phase if phase in PHASES else WAITING


def progress(status: Status) -> float | None:
    """How much of the phase is done, or None where it has no end."""
    told = PROGRESS.fullmatch(status.get("progress") or "")
    if status.get("phase") == "scoring" or not told or not int(told[2]):
        return None
    return min(1.0, int(told[1]) / int(told[2]))


def texts(status: Status, seen: Seen) -> dict[str, str]:
    """The figures of a line, by their names on the page."""
    interval = status.get("rate_interval") or []
    between = f"{percent(interval[0])} to {percent(interval[1])}" if len(interval) == 2 else ""
    drift = status.get("drift")
    return {
        "phase": state_of(status),
        "progress": (status.get("progress") or "").replace("/", " of ") if progress(status) is not None else "",
        "per_second": NONE if seen.per_second is None else f"{seen.per_second:.1f}",
        "anomalous": percent(seen.anomalous_share),
        "threshold": number(status.get("threshold")),
        "provisional": "provisional" if status.get("provisional") else "",
        "rate": percent(status.get("false_positive_rate")),
        "interval": between,
        "drift": NONE if drift is None else f"{drift:.2f}",
        "lag": count(status.get("lag")),
        "pending": count(status.get("pending")),
        "oldest": seconds(status.get("oldest_pending_seconds")),
        "results": count(status.get("results")),
        "dead": count(status.get("dead")),
        "quarantined": count(status.get("quarantined")),
        "keeper": cut(status.get("keeper") or "no keeper", 40),
        "model": cut(status.get("model") or NONE, 40),
        "broken": f"{seen.broken:,} entries of scores hold no result" if seen.broken else "",
    }


def alarms(status: Status, seen: Seen) -> dict[str, bool]:
    """Which of the figures a person should look at."""
    rate, share = status.get("false_positive_rate"), seen.anomalous_share
    oldest = status.get("oldest_pending_seconds")
    return {
        "keeper": not status.get("keeper"),
        "drift": (status.get("drift") or 0) > 1,
        "oldest": oldest is not None and oldest > 60,
        "anomalous": rate is not None and share is not None and share > max(10 * rate, 0.05),
    }


def note(status: Status, seen: Seen) -> str:
    """What a person should know, in one sentence, or ""."""
    if status.get("problem"):
        return ""
    if state_of(status) == WAITING:
        return "No worker has opened this line yet: start one with this line in its configuration."
    if not status.get("keeper"):
        return "No worker keeps this line: it neither learns nor follows its threshold. Start one."
    if (status.get("drift") or 0) > 1:
        return "The parts of late are not like those of calibration. Look at some; if they are good, relearn."
    phase = state_of(status)
    if phase == "paused":
        return "Paused: parts are answered as before, but nothing is learned from them."
    if phase == "learning" and not any(point.score is not None for point in seen.points[-1:]):
        return "Learning what normal parts look like. Scores come as soon as that is done."
    return ""


def spark(point: Point) -> float | None:
    """A score in thresholds."""
    share = ratio(point.score, point.threshold)
    return None if share is None else round(share, 3)


def point_row(point: Point) -> list[Any]:
    """A point as it goes to the chart: key, time, id, score, threshold, verdict, latency."""
    score, threshold, latency = (
        None if value is None else float(f"{value:.5g}") for value in (point.score, point.threshold, point.latency_ms)
    )
    return [point.key, point.ms, point.id, score, threshold, point.anomalous, latency]


def card(part: Reviewed) -> dict[str, Any]:
    """A part in review as it goes to the gallery."""
    share = _rounded(part)
    return {
        "key": part.key,
        "ms": part.ms,
        "id": shortened(part.id),
        "title": part.title,
        "why": part.why,
        "score": number(part.score),
        "threshold": number(part.threshold),
        "ratio": share,
        "times": "set aside" if share is None else f"{share:.1f} times the threshold",
        "picture": part.picture,
    }


def largest_first(parts: Iterable[Reviewed]) -> list[Reviewed]:
    """Parts in review, given newest first, in the order that gallery.js gives their cards: those alike stay as they
    are, those without a score come last."""

    def place(part: Reviewed) -> float:
        share = _rounded(part)
        return 1.0 if share is None else -share

    return sorted(parts, key=place)


def _rounded(part: Reviewed) -> float | None:
    """Its score in thresholds, in the digits that the gallery is told and orders by."""
    share = ratio(part.score, part.threshold)
    return None if share is None else round(share, 4)


def calibration(status: Status) -> dict[str, Any] | None:
    """The bins of calibration's scores as the keeper wrote them, or None."""
    try:
        bins = json.loads(status.get("calibration") or "null")
        low, high, counts = bins["low"], bins["high"], bins["counts"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = isinstance(counts, list) and 0 < len(counts) <= 200 and all(finite(c) and c >= 0 for c in counts)
    if not (whole and finite(low) and finite(high) and low < high and sum(counts)):
        return None
    return {"low": low, "high": high, "counts": counts}
