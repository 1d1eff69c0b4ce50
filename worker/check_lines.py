"""What `mhpc-worker check` looks at for each line: its keys in Redis, its versions on disk, the room for them."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import redis

from mhpc.core.memory_bank import most_anchors
from worker.errors import ModelError, SnapshotError, WorkerError
from worker.keeping.versions import gone_back
from worker.runtime.errands import run_within
from worker.settings import LineConfig, Settings, line_configs
from worker.storage.stores import Store, open_store
from worker.streams.ids import FROM_START, entry_key
from worker.streams.line_streams import ANSWERING, LEARNING, LineStreams
from worker.streams.state import learn_anew, read_state

OK, NOTE = "ok", "note"
MB = 1e6

Told = tuple[str, str | WorkerError]  # OK or NOTE, and what was found; an error is a failure whatever stands before it


# -- keys --------------------------------------------------------------------------------------------------------------


def look_at_streams(settings: Settings, client: Any) -> Iterator[Told]:
    """Each line's keys: of the right type, not behind what was learned, groups there, how much waits."""
    return _each(settings, lambda name: _keys(settings, LineStreams(client, name)))


def _each(settings: Settings, look: Callable[[str], tuple[str, str]]) -> Iterator[Told]:
    """What is to be said of lines one by one, and at last, together, those that are well."""
    well = list[str]()
    for line in settings.lines:
        try:
            outcome, text = look(line.name)
        except WorkerError as error:
            yield NOTE, error
            continue
        if outcome == OK:
            well.append(text)
        else:
            yield outcome, text
    if well:
        yield OK, ", ".join(well)


def _keys(settings: Settings, streams: LineStreams) -> tuple[str, str]:
    if wrong := wrong_keys(streams):
        raise WorkerError(
            f"{', '.join(wrong)}: another program's, or another version's; rename them (redis-cli RENAME), or give the "
            "line another name"
        )
    state, last = read_state(streams), streams.last_id()
    anew = learn_anew(open_store(settings.snapshots, streams.line).place, streams)
    if problem := state.get("problem") or gone_back(
        streams.line, last, state.get("applied_through") or FROM_START, anew
    ):
        raise WorkerError(f"line {streams.line}: {problem}")
    try:
        groups = {info["name"]: info["last-delivered-id"] for info in streams.client.xinfo_groups(streams.images)}
    except redis.ResponseError:  # no such key; EXISTS is no right of a worker's
        return OK, f"{streams.line} (new: a worker makes its stream)"
    lag, pending, oldest = streams.backlog(ANSWERING)
    done = state.get("done_through", FROM_START)
    where = done if entry_key(FROM_START) < entry_key(done) <= entry_key(last) else "the beginning"
    if missing := {group for group in (ANSWERING, LEARNING) if group.encode() not in groups}:
        return NOTE, f"{streams.line}: no group {' and '.join(sorted(missing))}; a worker makes it again at {where}"
    if entry_key(at := groups[ANSWERING.encode()].decode()) > entry_key(last):
        told = f"the group {ANSWERING} lies at {at}, beyond the stream's end at {last}, and reads nothing new"
        return NOTE, f"{streams.line}: {told}; a worker sets it back to {where} when it starts"
    age = streams.client.time()[0] - entry_key(oldest)[0] / 1000 if oldest else 0.0  # by the clock of the ids
    if age > settings.streams.claim_seconds:
        return NOTE, f"{streams.line}: {pending} entries are unanswered, the oldest for {age:.0f} s: is a worker stuck?"
    waiting = "unknown, before Redis 7.0" if lag is None else lag
    return OK, f"{streams.line} ({state.get('phase', 'not opened yet')}, waiting: {waiting})"


def wrong_keys(streams: LineStreams) -> list[str]:
    """Those of a line's keys that hold something else than a worker puts there, with what is expected."""
    client = streams.client
    reads: dict[str, tuple[Callable[[str], Any], list[str]]] = {
        "a stream": (
            client.xlen,
            [streams.images, streams.scores, streams.dead, streams.review, streams.control, streams.replies],
        ),
        "a hash": (lambda key: client.hget(key, "-"), [streams.state_key, streams.attempts, streams.seen]),
        "a string": (client.get, [streams.lease]),
        "a list": (client.llen, [streams.seen_order]),
    }
    return [f"{key} is not {kind}" for kind, (read, keys) in reads.items() for key in keys if _is_wrong(read, key)]


def _is_wrong(read: Callable[[str], Any], key: str) -> bool:
    try:
        read(key)
    except redis.ResponseError as error:
        if "WRONGTYPE" in str(error):
            return True
        raise WorkerError(f"Redis refuses {key}: {error}") from None
    return False


# -- versions ----------------------------------------------------------------------------------------------------------


def look_at_versions(settings: Settings, client: Any, fingerprint: str) -> Iterator[Told]:
    """Each line's version: there, and learned with the backbone, and calibrated with the top_k, that is configured."""
    top_k = {config.name: config.scoring.top_k for config in line_configs(settings)}

    def look(name: str) -> tuple[str, str]:
        store, streams = open_store(settings.snapshots, name), LineStreams(client, name)
        kept = run_within(store.kept, store.remote, settings.snapshots.timeout_seconds, store.place)
        found = {version.stem: version.about for version in kept if not version.bad}
        return _version(store, found, streams, fingerprint, top_k[name], learn_anew(store.place, streams))

    return _each(settings, look)


def _version(
    store: Store, found: Mapping[str, Mapping[str, Any]], streams: LineStreams, fingerprint: str, top_k: int, anew: str
) -> tuple[str, str]:
    name, state = streams.line, read_state(streams)
    committed = state.get("model", "")
    if committed and not found:
        raise ModelError(
            f"line {name}: version {committed} is committed, and {store.place} holds no snapshot; set "
            f"snapshots.directory to where it lies, or learn anew: {anew}"
        )
    if not found:
        return OK, f"{name} (none yet)"
    serves = committed if committed in found else max(found)
    if found[serves].get("fingerprint") not in (fingerprint, None):
        raise ModelError(
            f"line {name}: {store.place}/{serves} was learned with another backbone, weights, layers or input_shape; "
            f"restore those, or learn anew: {anew}"
        )
    if (calibrated := found[serves].get("top_k", top_k)) != top_k:
        raise ModelError(
            f"line {name}: {store.place}/{serves} was calibrated with scoring.top_k {calibrated}, not {top_k}; "
            f"restore that, or learn anew: {anew}"
        )
    if state.get("model") == "":
        if problem := gone_back(name, streams.last_id(), str(found[serves].get("applied_through", FROM_START)), anew):
            raise WorkerError(problem)
        return NOTE, f"{name}: {serves} is there, and not used: Redis says that nothing is committed"
    if committed and serves != committed:
        return NOTE, f"{name}: {committed} is committed, and not there; {serves} serves"
    return OK, f"{name} ({serves})"


def look_at_room(settings: Settings, features: int | None) -> Iterator[Told]:
    """Whether the disk has room for the versions that are kept, that before the last change, and one being written."""
    snapshots, lines = settings.snapshots, line_configs(settings)
    directory = snapshots.on_this_machine
    sizes = dict[str, list[int]]()
    for line in lines:
        store = open_store(snapshots, line.name)
        kept = run_within(store.kept, store.remote, snapshots.timeout_seconds, store.place)
        sizes[line.name] = [version.bytes for version in kept]
    there = sum(map(sum, sizes.values()))
    wanted = (snapshots.keep + 2) * sum(_largest(line, sizes[line.name], features) for line in lines)
    if directory != snapshots.directory:
        more = max(0, wanted - there) / MB
        yield OK, f"{snapshots.directory} does not say how much room it has; up to {more:.0f} MB more are needed"
        return
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free + there < wanted:
        raise SnapshotError(
            f"{directory.resolve()} has {free / MB:.0f} MB free, and {len(lines)} lines with {snapshots.keep + 1} "
            f"versions each need up to {(wanted - there) / MB:.0f} MB more; free the disk, set snapshots.directory to "
            "another, or lower snapshots.keep or model.bank_size"
        )
    yield OK, f"{free / MB:.0f} MB free, up to {max(0, wanted - there) / MB:.0f} MB more are needed"


def _largest(line: LineConfig, sizes: list[int], features: int | None) -> int:
    """Without a backbone nobody knows the number of features: then as large as those that there are."""
    if features is None:
        return max(sizes, default=0)
    return largest_version(line, features)


def largest_version(line: LineConfig, features: int) -> int:
    """Bytes of one of a line's versions, at most.

    Anchors, their Z images and the means of pictures that they were born from, in float32, and what is kept of each;
    the means of calibration's pictures; scatter in float64 and whitening; while it relearns, the images and whitening
    of the bank that answers; what is there whatever the line is.
    """
    anchors = most_anchors(line.bank_size)
    learned = anchors * (3 * 4 * features + 64) + 4 * features * line.calibration.images + 12 * features**2
    answering = anchors * 4 * (features + 1) + 4 * features**2
    return learned + answering + 100_000
