"""PatchCore with Mahalanobis distance, learned in one pass."""

from mhpc.cluster import MiniBatchKMeans
from mhpc.decomposition import IncrementalPCA
from mhpc.mahalanobis import CovarianceCholesky, OnlineCovariance

__all__ = ["CovarianceCholesky", "IncrementalPCA", "MiniBatchKMeans", "OnlineCovariance"]
