"""What a command does to a line: it changes it whole, or raises `RefusedError` and changes nothing. What it wants of
Redis it asks for first; after any other error its keeper has the line loaded again."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from mhpc.core.scorer import Scorer
from worker.errors import RefusedError
from worker.keeping.watching import fit_to_rate
from worker.line import CALIBRATING, LEARNING, PAUSED, SCORING, Line
from worker.snapshots import Snapshot
from worker.streams.control import Command, quoted
from worker.streams.line_streams import ReviewPart
from worker.streams.review import never_learned

CALLED_NORMAL = 1000  # parts that are known by name
VOUCHED_FOR = -1  # in place of a picture's number: a bank finds no doubt in what it has brought
PIN_RADIUS = 0.5  # of the threshold: so near to the bank are all patches of a part that was called normal


class Means(NamedTuple):
    """What the keeper lends to a command.

    Attributes:
        features: [1, P, D] of the part of an entry and an id, from the bytes that review has kept.
        forget_part: remove a part from review.
        in_review: what review holds of a part, or is to hold with the next commit; refuses where that is nothing.
        load: a version by its name, or the one that stood before the last change.
        present: the committed version.
        last_entry: the newest in the stream.
    """

    features: Callable[[str, str], Tensor]
    forget_part: Callable[[str, str], None]
    in_review: Callable[[str, str], list[ReviewPart]]
    load: Callable[[str | None], Snapshot]
    last_entry: Callable[[], str]
    present: str


def execute(line: Line, command: Command, means: Means) -> str:
    """Carry a command out; returns what came of it.

    Raises:
        RefusedError: it cannot be done; the text says why, and what can.
    """
    return _ACTIONS[command.name](line, means, **command.args)


def _relearn(line: Line, means: Means, forgetting: Any = None) -> str:
    if forgetting is not None:
        forgetting = _share(forgetting, "forgetting", whole=True)
    if line.phase == LEARNING:
        raise RefusedError("the line is learning already")
    last = means.last_entry()
    _mark_before(line, means)
    _keep_answering(line)
    line.phase, line.forgetting, line.applied_through = LEARNING, forgetting, last
    _begin_again(line)
    _forget_threshold(line)
    return f"learns again {_from(line)}, {line.config.learning.images} at most; {_meanwhile(line)}"


def _begin_again(line: Line) -> None:
    """Learn from here on: what is counted by parts is of those to come."""
    line.learner.begin_again()
    line.sources, line.doubted = [], 0


def _forget_threshold(line: Line) -> None:
    """What calibration found, and what followed it, is of the model as it was."""
    line.threshold = line.monitor = None
    line.forget_calibration()
    line.forget_recent()


def _from(line: Line) -> str:
    """When what begins with the next part does."""
    return "once the line is resumed" if line.paused else "from the next part on"


def _mark_before(line: Line, means: Means) -> None:
    """The version that stands is to be gone back to; while another is learned or calibrated, or is calibrated and not
    committed yet, the one that scored is."""
    if line.phase == SCORING and line.serving.phase in (SCORING, PAUSED):
        line.before = means.present


def _keep_answering(line: Line) -> None:
    """While a model exists every part is scored: by the one that there is, until the next is calibrated. Nobody watches
    its drift meanwhile."""
    if line.standing is None and line.serving.scorer is not None:
        line.standing = line.serving._replace(monitor=None)


def _calibrate(line: Line, means: Means) -> str:
    if line.phase == LEARNING:
        if not line.learner.images_learned_:
            raise RefusedError("nothing was learned yet: send parts first")
        line.end_learning()
    else:
        last = means.last_entry()
        _mark_before(line, means)
        if line.phase == SCORING:
            _keep_answering(line)
        line.phase, line.applied_through = CALIBRATING, last
        _forget_threshold(line)
    images = line.config.calibration.images
    which = f"{_from(line)}, on {images} parts" if line.paused else f"on the next {images} parts"
    return f"calibrates {which}; {_meanwhile(line)}"


def _meanwhile(line: Line) -> str:
    return "the version before answers until then" if line.relearning else "there is no threshold until then"


def _pause(line: Line, means: Means) -> str:
    if line.paused:
        raise RefusedError("the line is paused already")
    line.paused = True
    return f"paused in phase {line.phase}: parts are answered as before, but not learned from until resume"


def _resume(line: Line, means: Means) -> str:
    if not line.paused:
        raise RefusedError("the line is not paused")
    if line.phase == SCORING:
        line.paused = False
        return "goes on in phase scoring"
    line.applied_through = means.last_entry()
    line.paused = False
    return f"goes on in phase {line.phase} with the next part; those that came meanwhile are not learned from"


def _rate(line: Line, means: Means, rate: Any) -> str:
    wanted = _share(rate, "rate")
    line.rate = wanted if wanted != line.config.calibration.false_positive_rate else None  # that, whatever it will be
    if line.phase != SCORING:
        return f"false-positive rate {wanted:g} from the next calibration on"
    line.threshold = line.fitted()
    return f"false-positive rate {wanted:g}, threshold {line.threshold.value:.4g}"


def _normal(line: Line, means: Means, entry: Any, id: Any) -> str:  # noqa: A002 - the name of the argument on the wire
    features = means.features(entry, id)
    bank = line.learner.bank_
    if bank is None:
        raise RefusedError("nothing was learned yet: there is no bank for it to join")
    before, radius = line.learner.scorer().score(features), _pin_radius(line, bank.radius)
    try:
        added = line.learner.pin(features, radius)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    if added:
        _mark_before(line, means)
        line.called_normal = [*line.called_normal, (entry, id)][-CALLED_NORMAL:]
    if there := _pin_to_standing(line, features, radius):
        return f"{added} anchors pinned{there}"
    after = line.learner.scorer().score(features)
    return f"{added} anchors pinned; its score was {float(before):.4g} and is {float(after):.4g}"


def _pin_radius(line: Line, otherwise: float) -> float:
    threshold = line.serving.threshold
    return otherwise if threshold is None else PIN_RADIUS * threshold


def _pin_to_standing(line: Line, features: Tensor, radius: float) -> str:
    """What answers meanwhile is to know the part, too: a copy of it, that the commit puts in its place. What came of
    it; "" where nothing answers beside what is learned."""
    standing = line.standing
    if standing is None or standing.scorer is None:
        return ""
    scorer = Scorer(standing.scorer.whitening, standing.scorer.memory, standing.scorer.top_k)
    before = float(scorer.score(features))
    if added := scorer.pin(features, radius):
        line.standing = standing._replace(model=None, scorer=scorer)
    after = float(scorer.score(features))
    return f", {added} in the version that answers; its score there was {before:.4g} and is {after:.4g}"


def _release(line: Line, means: Means, entry: Any, id: Any) -> str:  # noqa: A002 - the same
    bank = line.learner.bank_
    if line.phase != LEARNING or bank is None or not never_learned(means.in_review(entry, id)):
        return _normal(line, means, entry, id)
    features = means.features(entry, id)
    means.forget_part(entry, id)
    line.learner.partial_fit(features, guard=False, first=VOUCHED_FOR)  # so it stands when learning ends, too
    if any(source.entry == entry for source in line.sources):  # since learning began: a part counts once
        line.learner.images_quarantined_ -= 1
    return "learned after all" + _pin_to_standing(line, features, _pin_radius(line, bank.radius))


def _anomalous(line: Line, means: Means, entry: Any, id: Any) -> str:  # noqa: A002 - the same
    kept, part = means.in_review(entry, id), (entry, id)
    if (held_back := never_learned(kept)) and part not in line.called_normal:
        return _drop(line, means, entry, id)  # what is near it was taught by others
    features = means.features(entry, id)
    if line.learner.bank_ is None:
        raise RefusedError("nothing was learned yet that could be removed")
    before = line.learner.scorer().score(features)
    removed = line.learner.unlearn(features, pinned_alone=held_back)
    line.called_normal = [each for each in line.called_normal if each != part]
    also = "; the version that answers keeps its anchors until the next one is calibrated" if line.relearning else ""
    if any(each.why == "quarantined" for each in kept):
        means.forget_part(entry, id)
        also += "; it is removed from review"
    if not removed:
        return f"nothing removed: no anchor stands for it alone; its score is {float(before):.4g}{also}"
    _mark_before(line, means)
    after = line.learner.scorer().score(features)
    return (
        f"{removed} anchors removed that stood for it alone; its score was {float(before):.4g} and is "
        f"{float(after):.4g}; mean and covariance stay as they are{also}"
    )


def _drop(line: Line, means: Means, entry: Any, id: Any) -> str:  # noqa: A002 - the same
    means.in_review(entry, id)
    means.forget_part(entry, id)
    return "removed from review"


def _rollback(line: Line, means: Means, version: Any = None) -> str:
    snapshot = means.load(version)
    if (top_k := snapshot.metadata["top_k"]) != line.config.scoring.top_k:
        raise RefusedError(
            f"{snapshot.stem} was calibrated with scoring.top_k {top_k}, it is {line.config.scoring.top_k}"
        )
    last = means.last_entry()
    line.restore_model(snapshot.tensors, snapshot.metadata)
    fit_to_rate(line)
    line.scores_through = line.scores_since = ""  # results since then are by other versions: it goes on with the next
    line.before = means.present  # in whichever phase: a second rollback takes the first one back
    if line.phase != SCORING:
        _keep_answering(line)
    if line.phase == LEARNING:
        line.gather()  # of a hot line each rank has its own share again
        _begin_again(line)
    if line.phase != SCORING:
        line.applied_through = last
    return f"a new version has the content of {snapshot.stem}, in phase {line.phase}"


def _resync(line: Line, means: Means) -> str:
    raise RefusedError("the line is not stopped: its stream holds what was learned")


def _share(value: Any, name: str, whole: bool = False) -> float:
    """A number in (0, 1), or in (0, 1] where it may be the whole."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < 1 or (whole and value == 1)):
        expected = "a number above 0 and at most 1" if whole else "a number between 0 and 1"
        raise RefusedError(f"{name} is {quoted(value)}, expected {expected}")
    return float(value)


_ACTIONS: dict[str, Callable[..., str]] = {
    "relearn": _relearn,
    "calibrate": _calibrate,
    "pause": _pause,
    "resume": _resume,
    "rate": _rate,
    "normal": _normal,
    "anomalous": _anomalous,
    "release": _release,
    "drop": _drop,
    "rollback": _rollback,
    "resync": _resync,
}
