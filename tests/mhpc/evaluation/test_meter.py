import sys

import numpy as np
import pytest

from mhpc.evaluation import meter
from mhpc.evaluation.meter import Meter

linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@linux
def test_the_peak_is_what_was_held_at_most_even_if_it_is_gone_at_the_end() -> None:
    with Meter() as measured:
        large = np.ones(2**24)  # 128 MiB
        del large
        small = np.ones(2**20)
    assert measured.peak_mib == pytest.approx(128, abs=16)
    assert len(small) == 2**20


@linux
def test_an_earlier_higher_peak_does_not_hide_a_later_one() -> None:
    for size in (2**24, 2**22):
        with Meter() as measured:
            block = np.ones(size)
            del block
    assert measured.peak_mib == pytest.approx(32, abs=8)


@linux
def test_without_a_mark_that_can_be_reset_a_peak_below_an_earlier_one_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter, "_reset_high_water", lambda: False)
    np.ones(2**24)
    with Meter() as measured:
        pass
    assert measured.peak_mib is None
