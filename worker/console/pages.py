"""The pages, rendered."""

import datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from worker.console.access import Access
from worker.console.parts import Part
from worker.console.recent import Seen
from worker.console.text import NONE, cut, finite, meta_text, number, ratio, shortened, title
from worker.message import ID_LENGTH

ENVIRONMENT = Environment(
    loader=PackageLoader("worker.console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["cut"] = cut
SEEN_AGAIN = 20  # results of the same id that a part's page lists


class Pages:
    """Renders for whoever asks: a page shows who that is, and carries what its buttons hand back."""

    def __init__(self, access: Access) -> None:
        self.access = access

    def page(self, request: Request, name: str, status: int = 200, **values: Any) -> Response:
        who = self.access.who(request)
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        text = ENVIRONMENT.get_template(name).render(
            who=who,
            csrf=self.access.csrf(who) if who else "",
            here=quote(path if request.method == "GET" else "/", safe="/"),
            **values,
        )
        return HTMLResponse(text, status)

    def message(self, request: Request, status: int, heading: str, text: str, retry: bool = False) -> Response:
        """A page that says why there is no other; with `retry` it goes on by itself when that has passed."""
        return self.page(request, "message.html", status, heading=heading, text=text, retry=retry)


def part_values(part: Part, seen: Seen) -> dict[str, Any]:
    """What a part's page shows of it."""
    result, kept = part.result or {}, part.in_review
    judged = kept if kept and kept.score is not None else part.point or kept
    score, threshold = (judged.score, judged.threshold) if judged else (None, None)
    anomalous = result.get("anomalous") if part.point else score is not None and threshold is not None
    why = kept.why if kept else ""
    model = (part.point.model if part.point else None) or (kept.model if kept else None)
    share = ratio(score, threshold)
    return {
        "kind": part.kind,
        "key": part.key,
        "own": part.point.key if part.point else "",
        "entry": part.entry,
        "id": part.id,
        "known_id": cut(part.id, ID_LENGTH),
        "shown_id": shortened(part.id, 48),
        "title": title(part.id),
        "why": why,
        "learned": kept is not None and kept.learned,
        "verdict": _verdict(why, anomalous),
        "score": number(score),
        "threshold": number(threshold),
        "ratio": share,
        "times": "" if share is None else f"{share:.2f} times the threshold",
        "share": None if share is None else min(100, round(50 * share)),
        "facts": _facts(part, result, model),
        "meta": meta_text(result["meta"]) if result.get("meta") else "",
        "in_review": kept is not None and kept.picture and len(part.id) <= ID_LENGTH,
        "has_map": bool(result.get("map")),
        "no_map": _no_map(part),
        "again": _again(part, seen),
    }


def _verdict(why: str, anomalous: Any) -> str:
    if why == "quarantined":
        return "set aside"
    if why == "anomalous" or anomalous is True:
        return "anomalous"
    return "normal" if anomalous is False else "no verdict"


def _no_map(part: Part) -> str:
    if part.in_review and part.in_review.why == "quarantined":
        when = "when learning ended" if part.in_review.learned else "while the line learned"
        return f"It was set aside {when}: there was no heat map yet."
    if part.result is None:
        return "Its result is no longer kept, and the heat map with it."
    return "The result carries no heat map."


def _facts(part: Part, result: dict[str, Any], model: str | None) -> list[tuple[str, str, int | None]]:
    """Label, text, and the milliseconds of a time that the browser is to put into local words."""
    ms, dash, _ = part.entry.partition("-")
    sent = int(ms) if dash and ms.isascii() and ms.isdigit() and len(ms) < 15 else None
    published = part.point.ms if part.point else part.in_review.ms if part.in_review else None
    taken = round(1000 * result["ts"]) if finite(result.get("ts")) and abs(result["ts"]) < 1e11 else None
    latency = part.point.latency_ms if part.point else None
    times = [("Camera's time", taken), ("Came", sent), ("Answered", published)]
    return [
        *((label, _utc(at), at) for label, at in times if at is not None),
        ("From entry to answer", NONE if latency is None else f"{latency:,.0f} ms", None),
        ("Model version", cut(model or NONE, 40), None),
        ("Phase", _phase(result), None),
        ("Entry", cut(part.entry, 40) or NONE, None),
    ]


def _phase(result: dict[str, Any]) -> str:
    phase = result.get("phase")
    return cut(phase, 20) if isinstance(phase, str) and phase else NONE


def _utc(ms: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return str(ms)


def _again(part: Part, seen: Seen) -> list[dict[str, Any]]:
    """Other results of the same id, the newest first."""
    same_id, own = cut(part.id, ID_LENGTH), part.point.key if part.point else ""
    same = [point for point in reversed(seen.points) if point.id == same_id and point.key != own]
    return [
        {"key": p.key, "ms": p.ms, "utc": _utc(p.ms), "score": number(p.score), "verdict": _verdict("", p.anomalous)}
        for p in same[:SEEN_AGAIN]
    ]
