from pathlib import Path

import pytest
import torch

from worker.snapshots import SnapshotStore, stem_of
from worker.versions import learned_in


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_newest_version_of_the_first_line_that_has_one_tells_what_was_learned_in(
    tmp_path: Path, precision: str
) -> None:
    stores = [SnapshotStore(tmp_path, name) for name in ("new", "of-before-it-was-told", "old", "other")]
    stores[1].write(stem_of(1, 1), {}, {})
    stores[2].write(stem_of(1, 1), {}, {"precision": "neither"})
    stores[2].write(stem_of(2, 1), {}, {"precision": precision})
    stores[3].write(stem_of(1, 1), {}, {"precision": "neither"})
    assert learned_in(stores, 1) is getattr(torch, precision)
    assert learned_in(stores[:2], 1) is None
