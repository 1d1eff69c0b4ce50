import pytest

from mhpc.core.mh_patch_core import MHPatchCore
from tests.mhpc.core.modelling import made, parts


@pytest.fixture(scope="package")
def trained() -> MHPatchCore:
    """Not to be taught any more by a test."""
    return made().fit(parts(40).split(8))
