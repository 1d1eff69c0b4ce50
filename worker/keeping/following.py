"""A line as its committed version has it, for whoever answers."""

from collections.abc import Callable, Mapping

import structlog

from worker.errors import StoreError
from worker.keeping.loading import Loading
from worker.keeping.versions import gone_back, load_line, not_used
from worker.line import Line
from worker.storage.stores import Store
from worker.streams.ids import FROM_START, entry_key
from worker.streams.line_streams import LineStreams, newest_id
from worker.streams.state import learn_anew, read_state, tell_unkept

UNKNOWN = "unknown"  # in place of a version: Redis has no state of the line, or none but a lease's
STOPPED = "stopped"  # field of the state: why, until the next commit; a Redis that is restored has none

log = structlog.get_logger()


class Follower:
    """Loads what is committed, whoever keeps the line."""

    def __init__(
        self, make_line: Callable[[], Line], streams: LineStreams, store: Store, fingerprint: str, seconds: float
    ) -> None:
        self.make_line = make_line
        self.line = make_line()
        self.streams = streams
        self.store = store
        self.fingerprint = fingerprint
        self.problem = "the lease is not held yet"
        self.model = ""  # the version that `line` was loaded from or committed as
        self.unused = ""  # the newest in the store, where Redis says that nothing is committed
        self.missing = 0  # images that the committed version had taken, and the older one that serves has not
        self.loaded = False  # no version was looked for yet: nothing can be answered
        self.loading = Loading(streams.line, store, seconds)
        self._loaded_for: str | None = None  # what Redis said was committed when `line` was loaded

    def follow(self) -> bool:
        """Load the committed version if it is another; who does not keep the line answers by it all the same.

        If Redis names no version, before the first commit or as a replica that was not told of one, none is loaded: it
        might hold what Redis has lost. Except one that has learned beyond the end of the stream, as long as that ends
        before: it stops the line, so that nobody learns anew over a model on an older Redis.

        Returns:
            False where it is on its way, or a slow store withholds it: the version before answers on, if there is one.
        """
        state = read_state(self.streams)
        committed, named = state.get("model", ""), state.get("model", UNKNOWN)
        if named == self._loaded_for and (named or not self.model or self.regression()):
            if entry_key(state.get("commands_through", FROM_START)) > entry_key(self.line.commands_through):
                self.stay_within(state)
            return True
        here, snapshot, why = False, None, ""
        try:
            here, snapshot = self.loading.arrived(state)
        except StoreError as error:
            if not self.loaded:
                raise
            why = str(error)
            log.warning("the version before answers on", line=self.line.name, version=self.model, error=why)
        if not here:
            self.problem = f"version {committed or 'none'} is not loaded yet, {self.model or 'none'} answers: "
            self.problem += why or "it is on its way"
            if why:
                tell_unkept(self.streams, self.problem)
            return False
        self.line, self.model = load_line(
            self.make_line(), snapshot, self.store.place, self.fingerprint, committed, self._how_to_learn_anew
        )
        self.unused = ""
        if named == "" and self.model and not self.regression():
            self.line, self.model, self.unused = self.make_line(), "", self.model
        taken = state.get("taken", "")
        older = self.model < committed and taken.isdecimal()
        self.missing = max(0, int(taken) - sum(self.line.counts)) if older else 0
        self._loaded_for, self.loaded = named, True
        self.stay_within(state)
        return True

    def stay_within(self, state: Mapping[str, str]) -> None:
        """Go on behind the commands and results that were seen, of those streams that Redis has now.

        Commands that were refused are in no version. What lies beyond the end of its stream is of one that is gone: a
        clock was ahead, and all that is new would be passed over until it is caught up with.
        """
        line, client, told = self.line, self.streams.client, state.get("commands_through", FROM_START)
        line.commands_through = max(told, line.commands_through, key=entry_key)
        end = newest_id(client, self.streams.control)
        if entry_key(line.commands_through) > entry_key(end):
            # Where Redis knows of some that were obeyed, its end alone is lost: none of the rest is to be obeyed again.
            same = entry_key(FROM_START) < entry_key(told) <= entry_key(end)
            line.commands_through = end if same else FROM_START
        if line.scores_through and entry_key(line.scores_through) > entry_key(newest_id(client, self.streams.scores)):
            line.scores_through = ""  # followed from the next result on: what is there may be another bank's

    def doubt(self) -> None:
        """Redis may be another server than before: where nothing was committed, look at the store again."""
        if not self.model:
            self._loaded_for = None

    def tell_unused(self, epoch: int) -> None:
        """Say that the line begins anew beside a version, in its state until the next commit."""
        if self.unused:
            problem = not_used(self.line.name, self.unused)
            self.streams.show(epoch, {"problem": problem})
            log.warning("a version is not used", line=self.line.name, problem=problem)

    def regression(self) -> str:
        """What is to be said where the stream ends before what was learned."""
        return gone_back(self.line.name, self.streams.last_id(), self.line.applied_through, self._how_to_learn_anew)

    def halt(self) -> str:
        """As `regression`, or why the line was stopped for one before: newer entries bring nothing back that is lost.
        A line that begins anew lacks nothing."""
        return self.regression() or (self.streams.state().get(STOPPED, "") if self.model else "")

    @property
    def _how_to_learn_anew(self) -> str:
        return learn_anew(self.store.place, self.streams)
