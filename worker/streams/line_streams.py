"""One line's keys in Redis: reading, the gate, the lease, the commit, trimming."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import redis

from worker.errors import FencedError
from worker.settings import MIB
from worker.streams.client import script
from worker.streams.cluster import Call, together
from worker.streams.ids import FROM_START, LAST, entry_before, entry_key, line_key

ANSWERING, LEARNING = "mhpc", "mhpc-learn"  # consumer groups
LEARNER = "learner"  # the one consumer of LEARNING
LEASE_MS, LEASE_ENDS_MS = 30_000, 28_800  # the rest is for others to take it: at its end the line is kept again
REPLIES_MAX = 1000  # entries kept
CLAIM_ENTRIES = 100  # a page
ATTEMPTS_SECONDS = 7 * 24 * 3600  # for so long a mark is kept that nobody took away


class Entry(NamedTuple):
    """An entry of the images stream; `batch` is None where the field is missing, `lost` where it was trimmed away."""

    id: str
    batch: bytes | None
    lost: bool = False


class DeadLetter(NamedTuple):
    id: str
    reason: str
    error: str
    payload: bytes


class ReviewPart(NamedTuple):
    """A part for people to look at. `why` is "anomalous" or "quarantined"; `image` is msgpack of the map as it came, or
    empty where the bytes were gone; `learned` is "1" of one that was learned, and set aside when learning ended."""

    entry: str
    id: str
    why: str
    score: str
    threshold: str
    model: str
    image: bytes
    learned: str = ""


class Answer(NamedTuple):
    """What the gate publishes for one entry."""

    entry: str
    results: list[bytes]
    dead: list[DeadLetter]
    review: Sequence[ReviewPart] = ()


class Commit(NamedTuple):
    """What goes with a commit.

    Attributes:
        reply: the answer to a command.
        review: parts for people to look at.
        restart: the entry that learning goes on behind.
        dropped: ids of the entries that leave review.
    """

    reply: bytes = b""
    review: Sequence[ReviewPart] = ()
    restart: str = ""
    dropped: Sequence[str] = ()


class ReviewCaps(NamedTuple):
    """What review holds at most: so many entries, about, and so many bytes of their pictures; none above it."""

    entries: int = 500
    bytes: int = 256 * MIB


ALONE, REVIEW_CAPS = Commit(), ReviewCaps()


class Backlog(NamedTuple):
    """How far a group is behind; `lag` is None where the server cannot tell."""

    lag: int | None
    pending: int
    oldest_pending: str | None


def backlog_of(group: str, infos: list[dict[str, Any]], pending: Any) -> Backlog:
    """From the replies to XINFO GROUPS and XPENDING; the latter is none where the group is not there."""
    info = next((info for info in infos if info["name"] == group.encode()), None)
    if info is None or not isinstance(pending, dict):
        return Backlog(None, 0, None)
    return Backlog(info.get("lag"), pending["pending"], pending["min"].decode() if pending["pending"] else None)


class LineStreams:
    """The commands on one line's keys. Learning's are fenced: `FencedError` means that another keeper took over."""

    def __init__(self, client: redis.Redis, line: str) -> None:
        self.client: Any = client  # redis-py's annotations mix its two clients; replies are checked by the tests
        self.line, self.holder = line, ""  # who was given an epoch last, here
        prefix = line_key(line, "")
        self.images, self.scores, self.dead = prefix + "images", prefix + "scores", prefix + "dead"
        self.state_key, self.lease = prefix + "state", prefix + "lease"
        self.control, self.replies, self.review = prefix + "control", prefix + "replies", prefix + "review"
        self.attempts, self.seen, self.seen_order = prefix + "attempts", prefix + "seen", prefix + "seen-order"
        self._gate = self.client.register_script(script("review", "gate"))
        self._acquire = self.client.register_script(script("acquire"))
        self._fenced = self.client.register_script(script("review", "lost", "fenced"))
        self._claim = self.client.register_script(script("claim"))
        self._seen = self.client.register_script(script("seen"))
        self._groups = self.client.register_script(script("lost", "groups"))
        self._mark = self.client.register_script(script("mark"))

    # -- both groups -------------------------------------------------------------------------------------------------

    def ensure_groups(self) -> None:
        """Make the stream and its groups where they are missing, and set back those beyond the stream's end."""
        self._groups(keys=[self.images, self.state_key], args=[ANSWERING, LEARNING])

    def state(self) -> dict[str, str]:
        found = self.client.hgetall(self.state_key).items()  # anybody may have put other bytes there
        return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found}

    def last_id(self) -> str:
        return newest_id(self.client, self.images)

    def entry(self, name: str) -> Entry:
        """An entry of the images stream as it is now, `lost` if it was trimmed."""
        found = self.client.xrange(self.images, min=name, max=name)
        return Entry(name, found[0][1].get(b"batch")) if found else Entry(name, None, lost=True)

    def backlog(self, group: str) -> Backlog:
        infos = self.client.xinfo_groups(self.images)
        there = any(info["name"] == group.encode() for info in infos)
        return backlog_of(group, infos, self.client.xpending(self.images, group) if there else None)

    # -- answering ---------------------------------------------------------------------------------------------------

    def own_pending(self, consumer: str, count: int) -> list[Entry]:
        """Entries that were delivered to this consumer and not answered: after a start and after every error."""
        return entries_of(self.client.xreadgroup(ANSWERING, consumer, {self.images: FROM_START}, count=count))

    def claim(self, consumer: str, idle_ms: int, dead_max: int) -> tuple[int, int]:
        """Take over what other consumers have not answered for so long; how many that were, and how many were lost."""
        claimed, lost, cursor = 0, 0, FROM_START
        while True:
            args: list[str | int] = [ANSWERING, consumer, idle_ms, cursor, CLAIM_ENTRIES, dead_max]
            after, taken, trimmed = self._claim(keys=[self.images, self.dead, self.state_key], args=args)
            claimed, lost, cursor = claimed + taken, lost + trimmed, after.decode()
            if cursor == FROM_START:
                return claimed, lost

    def is_first(self, image: str, entry: str, place: int, window: int, learns: bool = False) -> bool:
        """Whether none of the last `window` images that were answered, or learned, had this id; it is taken then."""
        keys = [key + "-learn" * learns for key in (self.seen, self.seen_order)]
        return bool(self._seen(keys=keys, args=[window, image, f"{entry}/{place}"]))

    def disown(self, image: str, entry: str, place: int) -> None:
        """It was given up: another of its id may come."""
        if self.client.hget(self.seen, image) == f"{entry}/{place}".encode():
            self.client.hdel(self.seen, image)

    def mark(self, attempt: str) -> int:
        """Note that this is about to be tried; the number of times that it was and nobody took the mark away."""
        return int(self._mark(keys=[self.attempts], args=[attempt, ATTEMPTS_SECONDS]))

    def unmark(self, *attempts: str) -> None:
        """They were survived, or given up."""
        if attempts:
            self.client.hdel(self.attempts, *attempts)

    def publish(self, answers: Iterable[Answer], scores_max: int, dead_max: int, review: ReviewCaps) -> list[bool]:
        """Send each answer through the gate; False where the entry was no longer pending (somebody published it)."""
        keys, calls = [self.images, self.scores, self.dead, self.review, self.state_key], list[tuple[str, Call]]()
        for entry, results, dead, for_review in answers:
            letters = [field for letter in dead for field in letter]
            parts = [field for part in for_review for field in part]
            counts = [scores_max, dead_max, *review, len(results), len(parts)]
            args = [ANSWERING, entry, *counts, *results, *parts, *letters]
            calls.append((self.images, partial(self._gate, keys, args)))
        replies = together(self.client, calls)
        if refused := [reply for reply in replies if isinstance(reply, redis.ResponseError)]:
            raise refused[0]
        return [bool(published) for published in replies]

    # -- keeping -----------------------------------------------------------------------------------------------------

    def acquire(self, holder: str, epoch_on_disk: int, take_over: str = "") -> tuple[int, str, float]:
        """The new epoch, "" and 0; or 0, who holds the lease, and in how many seconds it ends (below 0: never).

        `take_over` is a name whose earlier process is known to be gone: what it held is taken at once.
        """
        reply = self._acquire(keys=[self.lease, self.state_key], args=[holder, LEASE_ENDS_MS, epoch_on_disk, take_over])
        self.holder = holder if reply[0] else self.holder
        return int(reply[0]), reply[1].decode(errors="replace"), reply[2] / 1000

    def renew(self, epoch: int) -> None:
        self.fenced(epoch, "renew", LEASE_ENDS_MS)

    def release(self, epoch: int) -> None:
        """Let another take over at once. The epoch stays."""
        self.fenced(epoch, "release")

    def read_learning(self, epoch: int, count: int, after: str | None = None) -> list[Entry]:
        """New entries for the learner, or with `after` those already delivered to it, from behind that id on."""
        return entries_of(self.fenced(epoch, "read", LEARNING, LEARNER, count, ">" if after is None else after))

    def commit(
        self, epoch: int, fields: Mapping[str, str], also: Commit = ALONE, review: ReviewCaps = REVIEW_CAPS
    ) -> None:
        """Set the state's fields and all that goes with them, or nothing."""
        parts = [field for part in also.review for field in part]
        state = [part for item in fields.items() for part in item]
        restart, counts = (LEARNING if also.restart else "", also.restart), (len(parts), len(also.dropped))
        self.fenced(epoch, "commit", also.reply, REPLIES_MAX, *restart, *review, *counts, *parts, *also.dropped, *state)

    def show(self, epoch: int, fields: Mapping[str, str]) -> None:
        """Set fields of the state that are for people alone: what they say is in no snapshot."""
        self.fenced(epoch, "show", *(part for item in fields.items() for part in item))

    def acknowledge(self, epoch: int, entries: list[str]) -> None:
        for start in range(0, len(entries), 1000):  # Lua's unpack is bounded
            self.fenced(epoch, "ack", LEARNING, *entries[start : start + 1000])

    def trim(self, epoch: int, groups: Iterable[str]) -> str:
        """Drop the entries that all the groups in use are done with; returns done_through. Refuses another stream.

        MINID up to the lowest of each group's oldest pending and last delivered; MAXLEN would drop unread ones.
        """
        read = {info["name"]: info["last-delivered-id"] for info in self.client.xinfo_groups(self.images)}
        bounds = [entry_before(LAST)]  # an entry of that id stays: MINID has none behind it
        for group in groups:
            if group.encode() not in read:
                return FROM_START
            oldest = self.backlog(group).oldest_pending
            bounds.append(entry_before(oldest) if oldest else read[group.encode()].decode())
        ms, seq = min(map(entry_key, bounds))
        self.fenced(epoch, "trim", f"{ms}-{seq + 1}" if seq < 2**64 - 1 else f"{ms + 1}-0", done := f"{ms}-{seq}")
        return done

    def fenced(self, epoch: int, what: str, *args: str | int | bytes) -> Any:
        """One of the commands of fenced.lua."""
        keys = [self.state_key, self.images, self.lease, self.replies, self.review]
        try:
            return self._fenced(keys=keys, args=[f"{epoch} {self.holder}", what, *args])
        except redis.ResponseError as error:
            if str(error).startswith("FENCED"):
                raise FencedError(f"line {self.line}: {error}") from None
            raise


def newest_id(client: Any, key: str) -> str:
    """Id of the newest entry ever added to a stream; 0-0 where there is none."""
    try:
        return str(client.xinfo_stream(key)["last-generated-id"].decode())
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return FROM_START


def entries_of(reply: Any) -> list[Entry]:
    """The entries of an XREADGROUP reply on one stream; a field list is flat from Lua, a map from redis-py."""
    entries = []
    for name, fields in reply[0][1] if reply else ():
        if not fields:  # delivered once, then trimmed away
            entries.append(Entry(name.decode(), None, lost=True))
            continue
        pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        entries.append(Entry(name.decode(), pairs.get(b"batch")))
    return entries
