"""PatchCore with Mahalanobis distance, learned in one pass."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhpc.cluster import MiniBatchKMeans
    from mhpc.decomposition import IncrementalPCA
    from mhpc.mahalanobis import CovarianceCholesky, OnlineCovariance

__all__ = ["CovarianceCholesky", "IncrementalPCA", "MiniBatchKMeans", "OnlineCovariance"]

_PLACES = {
    "CovarianceCholesky": "mhpc.mahalanobis",
    "IncrementalPCA": "mhpc.decomposition",
    "MiniBatchKMeans": "mhpc.cluster",
    "OnlineCovariance": "mhpc.mahalanobis",
}


def __getattr__(name: str) -> Any:
    """Its module is imported when it is asked for: torch and scikit-learn take seconds, in which Ctrl-C is `mhpc`'s."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
