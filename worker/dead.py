"""Dead letters: finding them, and sending what they hold again. Imports no torch."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import msgpack

from worker.errors import AbsentError, RejectedError, ReplayError
from worker.message import VERSION, Image, encode_batch, image_data, image_name, unpacked
from worker.streams.client import script
from worker.streams.ids import entry_time, is_entry_id
from worker.streams.line_streams import LineStreams, newest_id

PAGE = 16  # letters read at once: each may hold streams.payload_bytes
DELETED = 1000  # letters deleted at once
NO_ID = "`id` "  # so begins what a worker says of an image without an id that can be used
# An image may have an empty id, too: these reasons no image is given, and those no whole entry.
OF_AN_ENTRY = {"no_batch_field", "not_msgpack", "wrong_version", "empty_batch", "too_many_images", "lost"}
OF_AN_IMAGE = {"not_an_image", "truncated", "failed"}


class Letter(NamedTuple):
    """One dead letter by its name, the id of its own entry; `id` is empty where a whole entry could not be decoded."""

    name: str
    entry: str
    id: str
    reason: str
    error: str
    deliveries: str
    payload: bytes

    def row(self) -> dict[str, Any]:
        """All but the payload's bytes, for JSON."""
        return {
            "letter": self.name,
            "entry": self.entry,
            "id": self.id,
            "reason": self.reason,
            "error": self.error,
            "deliveries": int(self.deliveries) if self.deliveries.isdecimal() else None,
            "when": entry_time(self.name),
            "payload_bytes": len(self.payload),
        }


def letters(streams: LineStreams, reason: str | None = None, newest_first: bool = False) -> Iterator[Letter]:
    """The letters there are now, or those of one reason; what comes meanwhile is left out."""
    read = streams.client.xrevrange if newest_first else streams.client.xrange
    start, end = "-", newest_id(streams.client, streams.dead)
    while page := read(streams.dead, min=start, max=end, count=PAGE):
        found = [_letter(name.decode(), fields) for name, fields in page]
        yield from (letter for letter in found if reason in (None, letter.reason))
        if newest_first:
            end = f"({found[-1].name}"
        else:
            start = f"({found[-1].name}"


def find(streams: LineStreams, name: str) -> Letter:
    """The letter of that name.

    Raises:
        AbsentError: there is none.
    """
    found = streams.client.xrange(streams.dead, min=name, max=name) if is_entry_id(name) else []
    if not found:
        raise _absent(streams, [name])
    return _letter(name, found[0][1])


def ensure_present(streams: LineStreams, names: list[str]) -> None:
    """Find every letter, or change nothing.

    Raises:
        AbsentError: it names all that are missing.
    """
    missing = []
    for name in names:
        try:
            find(streams, name)
        except AbsentError:
            missing.append(name)
    if missing:
        raise _absent(streams, missing)


def _absent(streams: LineStreams, names: list[str]) -> AbsentError:
    return AbsentError(
        f"no dead letter {', '.join(map(repr, names))} in {streams.dead}: never there, or replayed, purged or capped "
        f"away since; mhpc-worker dead list --line {streams.line} shows those there are"
    )


def _letter(name: str, fields: dict[bytes, bytes]) -> Letter:
    def text(field: str) -> str:
        return fields.get(field.encode(), b"").decode(errors="replace")

    entry, identity, reason = text("entry"), text("id"), text("reason")
    return Letter(name, entry, identity, reason, text("error"), text("deliveries"), fields.get(b"payload", b""))


def purge(streams: LineStreams, names: list[str]) -> int:
    """Delete letters; returns how many were still there."""
    parts = (names[start : start + DELETED] for start in range(0, len(names), DELETED))
    return sum(streams.client.xdel(streams.dead, *part) for part in parts)


# -- sending again -----------------------------------------------------------------------------------------------------


class Replay:
    """Puts what letters hold back into the line's images stream, each once however often it is asked.

    Args:
        cap: streams.payload_bytes; a payload of that length was cut.
    """

    def __init__(self, streams: LineStreams, cap: int) -> None:
        self.streams = streams
        self.cap = cap
        self._script = streams.client.register_script(script("replay"))

    def __call__(self, letter: Letter) -> str:
        """Returns what came of it; nothing where the letter was gone by then.

        Raises:
            ReplayError: the letter holds too little, and stays.
        """
        batch, source = self.batch(letter)
        keys, args = [self.streams.images, self.streams.dead], [letter.name, batch]
        owner = self.streams.client.hget(self.streams.seen, letter.id)
        if owner and owner.startswith(f"{letter.entry}/".encode()):
            keys, args = [*keys, self.streams.seen], [*args, letter.id, owner]
        entry: bytes = self._script(keys=keys, args=args)
        return f"is entry {entry.decode()}, {source}" if entry else ""

    def batch(self, letter: Letter) -> tuple[bytes, str]:
        """The entry to be sent, and what it was made from: the entry as it came, else the letter's own payload.

        Raises:
            ReplayError: neither is whole.
        """
        original = self.streams.entry(letter.entry).batch if is_entry_id(letter.entry) else None
        if original and (found := _from_entry(original, letter)):
            batch, changed = found
            return batch, f"from the entry as it came{changed}"
        payload = letter.payload
        if not payload:
            raise _too_little(letter, "holds no bytes")
        if len(payload) >= self.cap:
            raise _too_little(letter, f"holds {len(payload)} bytes, cut at streams.payload_bytes")
        form = _sniffed(payload)
        if not letter.id and (letter.reason in OF_AN_ENTRY or not (form or letter.reason in OF_AN_IMAGE)):
            return payload, "from the letter's bytes"
        if form is None:
            raise _too_little(letter, "holds bytes that are neither JPEG nor PNG, and no shape")
        own = _own_id(letter) if letter.reason == "wrong_shape" and letter.error.startswith(NO_ID) else ""
        batch = encode_batch([Image(own or letter.id, form, payload)])
        return batch, f"from the letter's {form}, without ts and meta{_named(own)}"


def _own_id(letter: Letter) -> str:
    """What an image that came without a usable id is sent as: by its place alone it would be the repeat of another."""
    return f"{letter.entry}{letter.id}"


def _named(own: str) -> str:
    return f", as {own!r}" if own else ""


def _too_little(letter: Letter, what: str) -> ReplayError:
    came = f"its entry {letter.entry or '(none)'} is gone from the stream, or has another content"
    return ReplayError(f"{what}, and {came}: send the part again from its source, then purge the letter")


def _from_entry(batch: bytes, letter: Letter) -> tuple[bytes, str] | None:
    """What the letter is of, as its entry holds it, and what was changed of that, for people: it gets an id of its own
    where it came without one, and its data as bytes where those came as a text. None where the entry of that id is
    another (Redis was wiped)."""
    of_letter = [item for name, item in _named_images(batch) if name == letter.id and _holds(item, letter.payload)]
    if of_letter:
        if any(item != of_letter[0] for item in of_letter[1:]):
            raise ReplayError(
                f"cannot be told from {len(of_letter) - 1} more images {letter.id!r:.60} of entry {letter.entry}: "
                "send it again from its source under an id of its own, then purge the letter"
            )
        image, changed = of_letter[0], ""
        if isinstance(image, dict) and image.get("id") != letter.id:  # it goes by its place
            own = _own_id(letter)
            image, changed = {**image, "id": own}, _named(own)
        if isinstance(image, dict) and isinstance(image.get("data"), str):  # as it is it would be refused again
            image, changed = {**image, "data": image_data(image)}, f"{changed}, its data as bytes"
        packed: bytes = msgpack.packb({"v": VERSION, "images": [image]}, unicode_errors="surrogateescape")
        return packed, changed
    whole = not letter.id and letter.payload and batch.startswith(letter.payload)
    return (batch, "") if whole else None


def _named_images(batch: bytes) -> list[tuple[str, Any]]:
    """An entry's images under the names that their letters carry; none where it cannot be decoded."""
    try:
        message = unpacked(batch)
    except RejectedError:
        return []
    images = message.get("images") if isinstance(message, dict) else None
    return [(image_name(item, place), item) for place, item in enumerate(images if isinstance(images, list) else [])]


def _holds(item: Any, payload: bytes) -> bool:
    data = image_data(item)
    if not payload:  # builds before kept none of data that came as a text
        return not data or isinstance(item["data"], str)
    return data.startswith(payload)


def _sniffed(payload: bytes) -> Literal["jpeg", "png"] | None:
    if payload.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "png" if payload.startswith(b"\x89PNG\r\n\x1a\n") else None
