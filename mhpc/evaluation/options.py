"""The options that the commands share, each declared once, and the models that they ask for."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # publishes no types

from mhpc.core.choices import (
    PatchCoreAggregation,
    PatchCoreAlgorithm,
    PatchCoreDistance,
    PatchCoreFeatureReduction,
)
from mhpc.evaluation.failures import check_device


class SamplerName(Enum):
    """The coreset samplers of `mhpc.sampler`."""

    identity = "identity"
    random = "random"
    greedy_coreset = "greedy_coreset"
    approx_greedy_coreset = "approx_greedy_coreset"


class Plane(Enum):
    """TSNE keeps neighbours together (van der Maaten & Hinton, 2008), PCA distances as far as a plane can."""

    TSNE = "tsne"
    PCA = "pca"


def _option(panel: str, metavar: str | None = None, *names: str, default: str | None = None, **settings: Any) -> Any:
    """An option in a panel of the help; `default` is what its help says where the field itself says None."""
    shown = True if default is None else default
    return typer.Option(
        *names, rich_help_panel=panel, metavar=metavar, show_default=shown, case_sensitive=False, **settings
    )


@dataclass(frozen=True)
class Choices:
    """The model's four choices, and what bounds it."""

    algorithm: Annotated[
        PatchCoreAlgorithm | None,
        _option(
            "Model", help="All features at once, or a stream.", default="online; vanilla with --sampler or --percentage"
        ),
    ] = None
    aggregation: Annotated[
        PatchCoreAggregation | None,
        _option("Model", help="How the bank is formed.", default="greedy for vanilla, kmeans for online"),
    ] = None
    reduction: Annotated[PatchCoreFeatureReduction, _option("Model", help="Of the features.")] = (
        PatchCoreFeatureReduction.PCA
    )
    distance: Annotated[PatchCoreDistance, _option("Model", "NAME", help="euclidean or mahalanobis.")] = (
        PatchCoreDistance.MAHALANOBIS
    )
    passes: Annotated[int | None, _option("Model", "1|3", min=1, help="Of online over the pictures.", default="1")] = (
        None
    )


@dataclass(frozen=True)
class Bounds:
    """Sizes and shares that the choices have in common."""

    bank_size: Annotated[
        int | None, _option("Model", "N", min=1, help="Rows of online's bank, at most.", default="6000")
    ] = None
    pca_variance_ratio: Annotated[
        float | None, _option("Model", "SHARE", help="Of the variance, which PCA keeps.", default="0.99")
    ] = None


@dataclass(frozen=True)
class Sampling:
    """What vanilla's bank is made with, and how a covariance is made invertible."""

    sampler: Annotated[
        SamplerName | None,
        _option(
            "Model",
            "NAME",
            help="Of vanilla's greedy bank: identity, random, greedy_coreset or approx_greedy_coreset.",
            default="greedy_coreset",
        ),
    ] = None
    percentage: Annotated[
        float | None,
        _option("Model", "SHARE", "--percentage", "-p", help="Of the patches, in vanilla's bank.", default="0.1"),
    ] = None
    jitter: Annotated[
        float | None,
        _option(
            "Model", "VALUE", min=0, help="On the covariance's diagonal.", default="shrinkage without PCA, else none"
        ),
    ] = None


@dataclass(frozen=True)
class Features:
    """The backbone and its patch features."""

    backbone: Annotated[str, _option("Features", "NAME", help='"tiny", torchvision\'s name, or "module:function".')] = (
        "tiny"
    )
    weights: Annotated[
        str | None,
        _option(
            "Features",
            "NAME",
            help='"pretrained", "bundled", "random:SEED" or a path.',
            default="bundled for tiny, else pretrained",
        ),
    ] = None
    layers: Annotated[
        str | None, _option("Features", "A,B", help="Of the backbone.", default="those at strides 8 and 16")
    ] = None
    input_size: Annotated[int, _option("Features", "PIXELS", min=32, help="Side to which pictures are squashed.")] = 224
    patchsize: Annotated[int, _option("Features", "N", min=1, help="Cells on a side of a patch, odd.")] = 3
    patchstride: Annotated[int, _option("Features", "N", min=1, help="Cells from one patch to the next.")] = 1
    pretrain_dimension: Annotated[
        int | None, _option("Features", "N", min=1, help="To which each layer is pooled.", default="averaged")
    ] = None
    target_dimension: Annotated[
        int | None, _option("Features", "N", min=1, help="To which all layers are pooled.", default="concatenated")
    ] = None

    @property
    def input_shape(self) -> tuple[int, int]:
        return self.input_size, self.input_size


@dataclass(frozen=True)
class Scoring:
    """How patch distances become scores."""

    num_nn: Annotated[int, _option("Scoring", "N", min=1, help="Neighbours; their mean is a patch's score.")] = 1
    top_k: Annotated[int, _option("Scoring", "N", min=1, help="Patches; their mean is an image's score.")] = 1
    reweight: Annotated[
        int, _option("Scoring", "N", min=0, help="Neighbours that re-weight the maximum (the paper's eq. 7).")
    ] = 0


@dataclass(frozen=True)
class Protocol:
    """What is learned, calibrated and scored, and on what."""

    category: Annotated[
        list[str], _option("Run", "NAME", help="One of the folder's; may be repeated.", default="all")
    ] = field(default_factory=list)
    images: Annotated[int | None, _option("Run", "N", min=1, help="Learn from so many at most.", default="all")] = None
    calibration_share: Annotated[
        float, _option("Run", "SHARE", min=0, max=0.5, help="Of train/good, held out for the threshold.")
    ] = 0.1667
    false_positive_rate: Annotated[float, _option("Run", "RATE", help="For which the threshold is found.")] = 0.01
    batch_size: Annotated[int, _option("Run", "N", min=1, help="Pictures in a batch.")] = 8
    seed: Annotated[int, _option("Run", "N", min=0, help="Of all that is drawn.")] = 0
    device: Annotated[str, _option("Run", "NAME", help="cpu, cuda, cuda:1, ...")] = "cpu"
    threads: Annotated[int | None, _option("Run", "N", min=1, help="On the CPU.", default="as many as cores")] = None

    def start(self) -> None:
        """Check, and take what the machine offers.

        Raises:
            ValueError: a rate outside (0, 1).
            DeviceError: there is no such device.
        """
        if not 0 < self.false_positive_rate < 1:
            raise ValueError(f"--false-positive-rate is {self.false_positive_rate}, expected a value in (0, 1)")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            threadpool_limits(self.threads)  # NumPy's and scikit-learn's
        check_device(self.device)


@dataclass(frozen=True)
class Output:
    """Where figures go, besides the table."""

    json: Annotated[Path | None, _option("Output", "FILE", help='Figures and settings; "-" is stdout.')] = None
    csv: Annotated[Path | None, _option("Output", "FILE", help='The table, a line a row; "-" is stdout.')] = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer: parameters of a dataclass's type become one option for each of its fields."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        for one in fields(parameter.annotation):
            default = one.default if one.default_factory is MISSING else one.default_factory()
            parameters.append(
                inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=one.type)
            )

    @wraps(command)
    def flat(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**given, **made)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # a function may carry one
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat
