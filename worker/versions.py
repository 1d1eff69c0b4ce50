"""Which of a line's versions is loaded."""

from collections.abc import Callable, Iterable

import structlog
import torch

from worker.errors import AbsentError, ModelError, RefusedError, SnapshotError
from worker.line import Line
from worker.snapshots import Snapshot, SnapshotStore
from worker.streams.line_streams import FROM_START, entry_key

log = structlog.get_logger()


def load_line(
    make_line: Callable[[], Line], store: SnapshotStore, fingerprint: str, committed: str, how_to_learn_anew: str
) -> tuple[Line, str]:
    """The line as of the committed version, or of the newest whole one before it; a new line where there is none.

    A version newer than the committed one was never acknowledged by: its entries come again, so it is not used, unless
    it is all there is: then Redis has gone back behind what was pruned. After a wipe the newest on disk counts.

    Raises:
        ModelError: a version is committed, and none can be used.
        AbsentError: it was pruned while this looked: newer ones are committed.
    """
    line = make_line()
    newest_first = store.stems()[::-1]
    newer = [stem for stem in newest_first if committed and stem > committed]
    for stem in [*newest_first[len(newer) :], *newer]:
        try:
            snapshot = store.load(stem)
        except SnapshotError as error:
            log.error("snapshot set aside", line=line.name, error=str(error))
            store.mark_bad(stem)
            continue
        if snapshot.metadata["fingerprint"] != fingerprint:
            raise ModelError(
                f"line {line.name}: {store.directory}/{stem} was learned with another backbone, weights, "
                f"layers or input_shape; restore those, or learn anew: {how_to_learn_anew}"
            )
        line.restore(snapshot.tensors, snapshot.metadata)
        line.serve(line.served_by(stem))
        if committed and stem != committed:
            which = "an older version serves: what was learned after it is missing"
            which = which if stem < committed else "a newer version serves: Redis has lost the commits up to it"
            log.error(which, line=line.name, committed=committed, serving=stem)
        return line, stem
    if committed:  # never learn anew over a model that only is not at hand
        raise ModelError(
            f"line {line.name}: version {committed} is committed, and {store.directory.resolve()} holds "
            f"no whole snapshot; set snapshots.directory to where it lies, or learn anew: {how_to_learn_anew}"
        )
    return line, ""


def gone_back(line: str, last: str, applied: str, how_to_learn_anew: str) -> str:
    """What is to be said where a stream ends before what was learned; a wiped one has no last entry, it begins anew."""
    if not entry_key(FROM_START) < entry_key(last) < entry_key(applied):
        return ""
    return (
        f"the stream ends at {last}, before {applied} that was learned: the server lost writes, or the snapshots are "
        f"another stream's; restore Redis, or go on from there: mhpc-worker control {line} resync, "
        f"or learn anew: {how_to_learn_anew}"
    )


def load_for_rollback(store: SnapshotStore, fingerprint: str, present: str, version: str | None) -> Snapshot:
    """The version of that name, or the one before the present.

    Raises:
        RefusedError: there is none, or it cannot be used; the text lists those there are.
    """
    earlier = [stem for stem in store.stems() if stem < present]
    stem = version if version is not None else (earlier[-1] if earlier else None)
    if stem is None or stem not in store.stems():
        named = "none before the present one" if stem is None else f"{stem!r:.60}"
        raise RefusedError(f"version {named} is not on disk; there are {', '.join(store.stems()) or 'none'}")
    try:
        snapshot = store.load(stem)
    except (SnapshotError, AbsentError, ModelError) as error:
        raise RefusedError(str(error)) from None
    if snapshot.metadata["fingerprint"] != fingerprint:
        raise RefusedError(f"{stem} was learned with another backbone, weights, layers or input_shape")
    return snapshot


def learned_in(stores: Iterable[SnapshotStore]) -> torch.dtype | None:
    """The backbone's precision when the newest version was made, of the first line that has one."""
    for store in stores:
        for path in store.files()[-1:]:
            if (name := store.about(path).get("precision")) in ("float32", "bfloat16"):
                return torch.bfloat16 if name == "bfloat16" else torch.float32
    return None
