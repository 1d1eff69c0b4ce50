"""How numbers, times and what came from outside are put into words."""

import json
import math
from typing import Any

SHOWN = 64  # characters of an id
META_SHOWN = 4000
DEEPEST = 50  # levels, each of which stands farther to the right
LARGEST = 1e30  # what is larger is no measurement, and what is reckoned with it overflows
NONE = "–"  # noqa: RUF001 - the dash of an empty cell


def cut(text: str, length: int = SHOWN) -> str:
    """A text that anybody may have made, short enough to be shown; what stands in place of control characters is
    visible."""
    shown = text[: length + 1]
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def shortened(identity: str, length: int = SHOWN) -> str:
    """An id, cut in its middle: where it is a path, the file's name stands at its end."""
    if len(identity) <= length:
        return cut(identity, length)
    return f"{cut(identity[: length // 2 - 1], length)}…{cut(identity[-(length // 2) :], length)}"


def title(text: str) -> str:
    """What a pointer that rests on a cut text is told."""
    if len(text) <= SHOWN:
        return text
    return f"{cut(text, 4 * SHOWN)} ({len(text):,} characters, cut here)"


def number(value: Any, digits: int = 4) -> str:
    """A number for people, or a dash."""
    if not finite(value):
        return NONE
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        return f"{value:.2g}"
    behind = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{behind}f}"


def percent(share: float | None) -> str:
    if share is None:
        return NONE
    return f"{100 * share:.3g} %"


def count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """A time span, by its largest unit."""
    if value is None:
        return NONE
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s" if value >= 2 else f"{1000 * value:.0f} ms"


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn; what comes from a stream may be anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def number_of(value: Any) -> float | None:
    """What can be drawn, else None."""
    return float(value) if finite(value) else None


def ratio(score: float | None, threshold: float | None) -> float | None:
    """A score in thresholds, or None where that is no number that can be drawn."""
    return number_of(score / threshold) if score is not None and threshold else None


def meta_text(meta: Any) -> str:
    """An image's meta for people; bytes as a count of them."""
    if _is_deeper(meta, DEEPEST):
        return "It is nested too deep to be shown."
    text = json.dumps(meta, indent=2, ensure_ascii=False, default=_told, skipkeys=True)
    return text if len(text) <= META_SHOWN else text[:META_SHOWN] + f"\n… ({len(text):,} characters, cut here)"


def _is_deeper(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(levels == 0 or _is_deeper(each, levels - 1) for each in inside)


def _told(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else cut(repr(value))
