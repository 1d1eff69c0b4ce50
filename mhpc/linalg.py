"""Batch moments and their merge, distances, Cholesky with jitter, the check of rows: functions without state."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

Array: TypeAlias = Tensor | NDArray[np.floating]  # what estimators take, and give back in the same kind

Estimator = TypeVar("Estimator")
Given = ParamSpec("Given")
Result = TypeVar("Result")

ROWS_PER_BLOCK = 4096  # at once, on a CPU or where rows alone are read
CPU_BLOCK = 2**22  # its entries on the CPU: 16 MB, which the allocator reuses; larger ones are fresh pages each time
PIVOT_ROUNDING = 16  # eps of float32: pivots of too few rows came to 2 at most, real features' to 4,000 at least
GRAM_COLUMNS = 192  # of a block: narrow ones compute little twice, wide ones multiply faster
GPU_BLOCK = 2**26  # and elsewhere: 256 MiB; 1 GiB is a tenth faster, and more than many a card has left
LEAST_ROWS = 256  # below which the product itself becomes slow

AS_FLOATS = {"dtype": [np.float64, np.float32], "order": "C", "force_writeable": True}  # how scikit-learn reads arrays


class Moments(NamedTuple):
    """Sums from which mean and covariance are read: n rows, mean [D] and scatter [D, D] in float64.

    The scatter is sum_i (x_i - mean)(x_i - mean)^T; divide by n - 1 (or n) on reading.
    """

    n: int
    mean: Tensor
    scatter: Tensor


def batch_moments(x: Tensor) -> Moments:
    """Moments of the rows of x [N, D]; products in the rows' precision, sums in float64.

    Many GPUs are slow in float64: for float32 rows the product X^T X of the *centred* rows is float32, which keeps
    its error relative to the batch's own spread; float64 rows are exact to rounding.
    """
    N, _ = x.shape
    mean = _column_sums(x) / N
    center = mean.to(x.dtype)
    centred = x - center
    residual = N * (mean - center.double())  # what rounding the mean to the rows' precision left over
    scatter = _gram(centred).double().addr_(residual, residual, alpha=-1 / N)
    return Moments(N, mean, scatter)


def _column_sums(x: Tensor) -> Tensor:
    """Sums [D] of the columns of x [N, D] in float64; on the CPU by NumPy, whose sum down columns is faster."""
    if x.device.type == "cpu":
        return torch.from_numpy(x.numpy().sum(0, dtype=np.float64))
    return x.sum(0, dtype=torch.float64)


def _gram(x: Tensor) -> Tensor:
    """x^T x [D, D] for x [N, D]; it is symmetric, so blocks below the diagonal are not computed."""
    _, D = x.shape
    products = x.new_empty(D, D)
    for start in range(0, D, GRAM_COLUMNS):
        stop = min(start + GRAM_COLUMNS, D)
        torch.mm(x[:, start:stop].T, x[:, start:], out=products[start:stop, start:])
        products[stop:, start:stop] = products[start:stop, stop:].T
    return products


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union, from those of two disjoint sets; neither side is changed or shared.

    Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1, for vectors:
    S = S_a + S_b + (n_a n_b / n) (m_b - m_a)(m_b - m_a)^T.
    """
    n = a.n + b.n
    if n == 0:
        return Moments(0, a.mean.clone(), a.scatter.clone())
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.n / n)
    scatter = a.scatter + b.scatter
    scatter.addr_(delta, delta, alpha=a.n * b.n / n)
    return Moments(n, mean, scatter)


def eigh_descending(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D], largest first and not negative, and eigenvectors as rows [D, D], each with a fixed sign.

    The sign is scikit-learn's `svd_flip`: the entry of largest magnitude is positive.
    """
    values, vectors = torch.linalg.eigh(covariance)
    rows = vectors.T.flip(0).contiguous()
    largest = rows.abs().argmax(1, keepdim=True)
    return values.flip(0).clamp_min(0), rows * rows.gather(1, largest).sign()


def cholesky(covariance: Tensor, jitter: float, precision: torch.dtype | None = None) -> Tensor:
    """Lower factor L [D, D] with L L^T = covariance + jitter I.

    Singular covariances are refused even where rounding makes a pivot positive that ought to be zero. The pivot L_ii^2
    is the variance of what feature i leaves when the features before it explain it by coefficients w_j; it errs by a
    few eps (sigma_i^2 + sum_j w_j^2 sigma_j^2), so one below 16 times that says nothing. The sum over L_ii^2 is the
    squared norm of row i of L^-1 diag(sigma), the inverse factor of the correlation matrix: neither the features' units
    nor their spread count, as in Higham, "Accuracy and Stability of Numerical Algorithms" (2002), theorem 10.7.

    Args:
        precision: of the products that the covariance was summed from, where that is coarser than its own.

    Raises:
        ValueError: that sum is not positive definite, or not by more than rounding.
    """
    D, _ = covariance.shape
    shifted = covariance + jitter * torch.eye(D, dtype=covariance.dtype, device=covariance.device)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(shifted)
    failed = int(info)  # GPU sync
    if not failed:
        sigma = shifted.diagonal().sqrt()
        inverse = torch.linalg.solve_triangular(factor, torch.diag(sigma), upper=False)
        eps = max(torch.finfo(dtype).eps for dtype in (covariance.dtype, precision or covariance.dtype))
        rounded = inverse.square().sum(1) * PIVOT_ROUNDING * eps >= 1
        failed = int(rounded.any() * (rounded.int().argmax() + 1))  # GPU sync
    if failed:
        raise ValueError(
            f"covariance [{D}, {D}] plus jitter {jitter} is not positive definite (leading minor {failed}): "
            "give more rows than features, keep fewer components, or raise the jitter"
        )
    return factor


def nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance [N] of each row of x [N, D] to the nearest of centers [K, D], and its index [N].

    The winner is found by ||c||^2 - 2 x.c and its distance recomputed by difference: for equal rows the expanded
    square errs by about 0.02 in float32. Memory is that of a block of distances (`blocks`).
    """
    index = nearest_index(x, centers)
    distances: Tensor = (x - centers[index]).norm(dim=1)
    return distances, index


def nearest_index(x: Tensor, centers: Tensor) -> Tensor:
    """Index [N] of the nearest of centers [K, D] to each row of x [N, D]."""
    half_squares = centers.square().sum(1) / 2  # argmin over c of ||x - c||^2 = argmin of ||c||^2 / 2 - x.c
    products = (torch.addmm(half_squares, block, centers.T, alpha=-1) for block in blocks(x, len(centers)))
    return torch.cat([_argmin(product) for product in products])


def k_nearest(x: Tensor, centers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances [N, k] of each row of x [N, D] to its k nearest of centers [K, D], ascending, and their indices [N, k].

    Found and recomputed as in `nearest`; of equally near ones the lower index comes first (which of those that tie
    for the last place is left open).

    Raises:
        ValueError: k outside 1..K.
    """
    K, _ = centers.shape
    if not 1 <= k <= K:
        raise ValueError(f"k is {k}, expected 1..{K}, since there are {K} centers to be near to")
    if k == 1:
        distance, index = nearest(x, centers)
        return distance[:, None], index[:, None]
    half_squares = centers.square().sum(1) / 2
    found = []
    for block in blocks(x, K):
        index = torch.addmm(half_squares, block, centers.T, alpha=-1).topk(k, largest=False).indices.sort(1).values
        distances = torch.stack([(block - centers[column]).norm(dim=1) for column in index.T], dim=1)
        distances, order = distances.sort(dim=1, stable=True)
        found.append((distances, index.gather(1, order)))
    all_distances, all_indices = zip(*found, strict=True)
    return torch.cat(all_distances), torch.cat(all_indices)


def _argmin(rows: Tensor) -> Tensor:
    """Index [N] of each row's smallest value; on the CPU by NumPy, whose argmin is several times torch's."""
    return torch.from_numpy(rows.numpy().argmin(1)) if rows.device.type == "cpu" else rows.argmin(1)


def blocks(x: Tensor, columns: int = 0) -> tuple[Tensor, ...]:
    """x [N, D] in parts of ROWS_PER_BLOCK rows.

    Where each row makes `columns` entries, of about CPU_BLOCK entries and no more rows than that, on a GPU GPU_BLOCK.
    """
    rows = ROWS_PER_BLOCK
    if columns and x.device.type == "cpu":
        rows = min(rows, max(LEAST_ROWS, CPU_BLOCK // columns))
    elif columns:
        rows = max(LEAST_ROWS, GPU_BLOCK // columns)
    parts: tuple[Tensor, ...] = x.split(rows)
    return parts


def check_rows(x: Tensor, num_features: int | None = None, name: str = "X") -> Tensor:
    """Return x if it is a tensor [N, D], floating and finite with N >= 1 (and D as given).

    Raises:
        ValueError: what came and what was expected.
    """
    check_tensor(x, name)
    expected = f"[N, {num_features or 'D'}]"
    if x.ndim != 2 or x.shape[0] == 0 or (num_features is not None and x.shape[1] != num_features):
        raise ValueError(f"{name} has shape {list(x.shape)}, expected {expected} with N >= 1")
    if not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}, expected a floating type; convert it first")
    if not all_finite(x):
        raise ValueError(f"{name} {list(x.shape)} holds NaN or infinite values, expected finite ones")
    return x


def check_tensor(x: object, name: str) -> None:
    """For those who ignore type hints: an array or a list is named here, not by an AttributeError further in."""
    if not isinstance(x, Tensor):
        came = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
        raise ValueError(f"{name} is a {came}, expected a torch.Tensor: convert it by torch.as_tensor")


def all_finite(x: Tensor) -> bool:
    """Whether x holds neither NaN nor infinity; the sum settles it in one fast pass unless it overflows."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())  # GPU sync


def as_tensor(X: Array, num_features: int, name: str) -> Tensor:
    """X [N, num_features] as a checked tensor: `as_rows` for what is no estimator's input and has no names."""
    if not isinstance(X, Tensor):
        X = torch.from_numpy(check_array(X, input_name=name, **AS_FLOATS))
    return check_rows(X, num_features, name).detach()


def as_rows(estimator: Any, X: Array, first: bool) -> Tensor:
    """X [N, D] as a checked tensor: what an estimator with scikit-learn's conventions does to its input.

    A tensor passes `check_rows` and stays on its device; anything else passes scikit-learn's own `validate_data`.

    Args:
        first: whether X says what D is, kept as `n_features_in_`, or has to agree with it.

    Raises:
        ValueError: another shape than [N, D] with N >= 1, not floating, or not finite.
    """
    if not isinstance(X, Tensor):
        return torch.from_numpy(validate_data(estimator, X, reset=first, **AS_FLOATS))
    x = check_rows(X, None if first else estimator.n_features_in_).detach()
    if first:
        estimator.n_features_in_ = x.shape[1]
        vars(estimator).pop("feature_names_in_", None)  # a table's, learned before: columns of a tensor have no names
    return x


def all_or_nothing(
    learn: Callable[Concatenate[Estimator, Given], Result],
) -> Callable[Concatenate[Estimator, Given], Result]:
    """Decorate a method that learns: where it raises, the estimator's attributes are what they were before.

    It is the attributes that are put back; so the method may set them to other values, but not change those in place.
    """

    @wraps(learn)
    def learn_or_restore(estimator: Estimator, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with unchanged_on_error(estimator):
            return learn(estimator, *args, **kwargs)

    return learn_or_restore


@contextmanager
def unchanged_on_error(*objects: object) -> Iterator[None]:
    """Where the block raises, the objects' attributes are put back; it may set them, but not change them in place."""
    before = [dict(vars(each)) for each in objects]
    try:
        yield
    except BaseException:  # an interrupt, too, leaves no half of a model
        for each, attributes in zip(objects, before, strict=True):
            vars(each).clear()
            vars(each).update(attributes)
        raise


def like(X: Array, result: Tensor) -> Any:
    """The result as a tensor if X was one, else as an array."""
    return result if isinstance(X, Tensor) else result.cpu().numpy()


def check_state(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | str, ...]]) -> list[Tensor]:
    """The tensors of a state that were named, in that order; a dimension given by a letter may be of any size.

    Raises:
        ValueError: one is missing or has another shape.
    """
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"the state has no tensor {name!r}; it holds {', '.join(sorted(state)) or 'nothing'}")
        came = state[name].shape
        if len(came) != len(shape) or any(isinstance(d, int) and d != c for d, c in zip(shape, came, strict=True)):
            raise ValueError(f"the state's {name} has shape {list(came)}, expected [{', '.join(map(str, shape))}]")
    return [state[name] for name in shapes]
