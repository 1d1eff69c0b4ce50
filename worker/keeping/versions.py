"""Which of a line's versions is loaded."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Literal

import structlog
import torch
from pydantic import BaseModel, Field, Strict, ValidationError

from mhpc.core.calibration import Threshold
from mhpc.core.devices import is_device_failure
from worker.errors import AbsentError, ModelError, RefusedError, SnapshotError, StoreError, one_line
from worker.keeping.watching import check_loadable
from worker.line import SCORING, Line
from worker.runtime.errands import AT_ONCE, start
from worker.snapshots import STEM, Snapshot
from worker.storage.stores import Store
from worker.streams.ids import FROM_START, entry_key

Rate = Annotated[float, Field(gt=0, lt=1)]
EntryId = Annotated[str, Field(pattern="^[0-9]{1,20}-[0-9]{1,20}$")]

log = structlog.get_logger()


class Restored(BaseModel, strict=True):
    """What a line is restored from, beside tensors: a checksum that holds does not say that it was a worker's."""

    fingerprint: str
    top_k: int
    phase: Literal["learning", "calibrating", "scoring"]
    paused: bool
    applied_through: EntryId
    commands_through: EntryId
    scores_through: EntryId | Literal[""]
    scores_since: str = ""
    before: str = ""
    rate: Rate | None
    forgetting: float | None
    false_positive_rate: Rate
    threshold: Threshold | None
    answering: Annotated[tuple[str | None, float | None, bool], Strict(False)] | None  # of JSON: a list
    sources: list[list[str | int]]
    called_normal: list[list[str]] = []
    images_doubted: int = 0


def find_version(line: str, store: Store, state: Mapping[str, str]) -> Snapshot | None:
    """The version that the line's state names, or the newest whole one before it; None where there is none.

    A version newer than the committed one was never acknowledged by: its entries come again, so it is not used, unless
    it is all there is: then Redis has gone back behind what was pruned. Where Redis names none it is the newest in the
    store, committed or not; whether it is used, is for who asks.

    Raises:
        AbsentError: it was pruned while this looked: newer ones are committed.
        StoreError: the store cannot be asked, and this machine does not have the version itself.
        ModelError: it is of another format, or cannot be read.
    """
    committed = state.get("model", "")
    try:
        if not store.remote and STEM.match(committed):  # a remote one knows by its listing which epochs there were
            with suppress(AbsentError):  # first by its name: a folder in a network may list what it held a minute ago
                if snapshot := _loaded(line, store, committed):
                    return snapshot
        newest_first = store.stems()[::-1]
    except StoreError as error:
        snapshot = store.at_hand(committed) if committed else None
        if snapshot is None or snapshot.metadata.get("applied_through") != state.get("applied_through"):
            raise
        log.warning("the version of this machine serves: the store is not reached", line=line, error=str(error))
        return snapshot
    newer = [stem for stem in newest_first if committed and stem > committed]
    for stem in [*newest_first[len(newer) :], *newer]:
        if snapshot := _loaded(line, store, stem):
            return snapshot
    return None


def _loaded(line: str, store: Store, stem: str) -> Snapshot | None:
    """A version; one that is damaged is set aside."""
    try:
        return store.load(stem)
    except SnapshotError as error:
        log.error("snapshot set aside", line=line, error=str(error))
        store.mark_bad(stem)
    return None


def load_line(
    line: Line, snapshot: Snapshot | None, place: str, fingerprint: str, committed: str, how_to_learn_anew: str
) -> tuple[Line, str]:
    """The line as of the version that was found, and its name; as it is where there is none.

    Raises:
        ModelError: a version is committed, and none can be used; or what was found is another backbone's, or no line's.
    """
    if snapshot is None:
        if committed:  # never learn anew over a model that only is not at hand
            raise ModelError(
                f"line {line.name}: version {committed} is committed, and {place} holds "
                f"no whole snapshot; set snapshots.directory to where it lies, or learn anew: {how_to_learn_anew}"
            )
        return line, ""
    stem = snapshot.stem
    check_metadata(snapshot, place)
    if snapshot.metadata["fingerprint"] != fingerprint:
        raise ModelError(
            f"line {line.name}: {place}/{stem} was learned with another backbone, weights, "
            f"layers or input_shape; restore those, or learn anew: {how_to_learn_anew}"
        )
    try:
        line.restore(snapshot.tensors, snapshot.metadata)
        line.serve(line.served_by(stem))
        check_loadable(line, stem)
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        if is_device_failure(error) or isinstance(error, torch.OutOfMemoryError):  # not the version's fault
            raise
        raise ModelError(f"{_unfit(stem, place)}: {type(error).__name__}: {one_line(error, 200)}") from None
    if committed and stem != committed:
        which = "an older version serves: what was learned after it is missing"
        which = which if stem < committed else "a newer version serves: Redis has lost the commits up to it"
        log.error(which, line=line.name, committed=committed, serving=stem)
    return line, stem


def check_metadata(snapshot: Snapshot, place: str) -> None:
    """Raise ModelError where what goes with a version's tensors is not what a line is restored from."""
    try:
        Restored.model_validate(snapshot.metadata)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False))
        raise ModelError(f"{_unfit(snapshot.stem, place)}: {one_line('; '.join(wrong), 300)}") from None


def _unfit(stem: str, place: str) -> str:
    return f"{place}/{stem} is whole, but no line can go on from it; move it away, and the version before serves"


def gone_back(line: str, last: str, applied: str, how_to_learn_anew: str) -> str:
    """What is to be said where a stream ends before what was learned; a wiped one has no last entry, it begins anew."""
    if not entry_key(FROM_START) < entry_key(last) < entry_key(applied):
        return ""
    return (
        f"the stream ends at {last}, before {applied} that was learned: the server lost writes, or the snapshots are "
        f"another stream's; restore Redis, or go on from there: mhpc-worker control {line} resync, "
        f"or learn anew: {how_to_learn_anew}"
    )


def not_used(line: str, stem: str) -> str:
    """What is to be said where Redis has the line's state, and it says that nothing is committed."""
    return (
        f"Redis says that nothing is committed, so the line begins anew; version {stem} is not used, and is pinned "
        f"before another is written: mhpc-worker control {line} rollback {stem} takes it after all, "
        f"mhpc-worker snapshots unpin {stem} --line {line} lets it go"
    )


def load_for_rollback(store: Store, fingerprint: str, present: str, version: str | None) -> Snapshot:
    """The version of that name; without one, where no change is known of, the newest before the present that scores.

    Raises:
        RefusedError: there is none, or it cannot be used; the text lists those there are.
    """
    try:
        stems = store.stems()
        stem = version if version is not None else _scored_before(store, present)
        if stem not in stems:
            missing = f"version {stem!r:.60}" if stem else "a version before the present one that scores"
            raise RefusedError(f"{missing} is not there; there are {', '.join(stems) or 'none'}")
        snapshot = store.load(stem)
        check_metadata(snapshot, store.place)
    except (SnapshotError, AbsentError, ModelError) as error:
        raise RefusedError(str(error)) from None
    if snapshot.metadata["fingerprint"] != fingerprint:
        raise RefusedError(f"{stem} was learned with another backbone, weights, layers or input_shape")
    return snapshot


def _scored_before(store: Store, present: str) -> str:
    earlier = (each for each in reversed(store.kept()) if each.stem < present and not each.bad)
    return next((each.stem for each in earlier if each.about.get("phase") == SCORING), "")


def learned_in(stores: Iterable[Store], seconds: float) -> torch.dtype | None:
    """The precision of the newest version of the first line that has one; None where no line has.

    A store that cannot be asked, or does not answer within so many seconds for all together, is passed over: its line
    waits for it later on, and keeps no other from starting.
    """
    ends, rest = time.monotonic() + seconds, list(stores)
    while rest and time.monotonic() < ends:
        asked, rest = [(each.place, start(each.about_newest, each.remote)) for each in rest[:AT_ONCE]], rest[AT_ONCE:]
        for place, answer in asked:
            try:
                about = answer.result(max(0.0, ends - time.monotonic()))
            except (StoreError, TimeoutError) as error:
                why = str(error) or f"{place} has not answered for {seconds:g} s"
                log.warning("what precision a line was learned in is not known: another tells, or a trial", error=why)
                continue
            if (name := about.get("precision")) in ("float32", "bfloat16"):
                return torch.bfloat16 if name == "bfloat16" else torch.float32
    return None
