from collections.abc import Iterator

import pytest
import torch

from mhpc.core.learner import OnePassLearner
from tests.worker.helpers import small_settings
from worker.engine import Engine
from worker.errors import RanksError
from worker.failpoints import armed
from worker.learners import new_learner
from worker.ranks.share import Share
from worker.settings import line_configs

CUBLAS = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"


def fails_by_cublas(*_: str) -> None:
    raise RuntimeError(CUBLAS)


@pytest.fixture
def share(engine: Engine) -> Iterator[Share]:
    settings = small_settings("hot")
    (config,) = line_configs(settings)
    made = Share(engine, settings.limits, lambda: new_learner(config, 0.9, engine.device), 0)
    yield made
    made._pool.shutdown()


def test_a_device_without_memory_is_a_reply_and_one_that_is_lost_is_none(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.ranks.share.failpoint", armed("rank:oom"))
    assert share.do("beat", {})["error"].startswith("OutOfMemoryError: ")
    assert share.do("beat", {}) == {}
    monkeypatch.setattr("worker.ranks.share.failpoint", armed("rank:lost"))
    with pytest.raises(torch.AcceleratorError, match="the device is gone"):
        share.do("beat", {})
    monkeypatch.setattr("worker.ranks.share.failpoint", fails_by_cublas)
    with pytest.raises(RuntimeError, match=CUBLAS):
        share.do("beat", {})


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (RuntimeError("connection closed by peer"), RanksError),
        (torch.OutOfMemoryError("no room"), RanksError),
        (torch.AcceleratorError("the device is gone"), torch.AcceleratorError),
        (RuntimeError(CUBLAS), RuntimeError),
    ],
)
def test_who_fails_in_a_merge_ends_by_what_has_failed(
    share: Share, failure: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: OnePassLearner) -> None:
        raise failure

    monkeypatch.setattr("worker.ranks.share.merged", fails)
    with pytest.raises(raised, match=str(failure)):
        share.do("merge", {"ticket": 1})
