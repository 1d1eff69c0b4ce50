"""What each choice is worth: variations of one model, on the same features, each with one thing changed."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from torch import nn
from tqdm import tqdm

from mhpc.core.choices import PatchCoreAggregation, PatchCoreAlgorithm, PatchCoreDistance, PatchCoreFeatureReduction
from mhpc.core.mh_patch_core import MHPatchCore
from mhpc.evaluation.evaluate import Figures, Split, evaluate_model, mean_figures, split_category
from mhpc.evaluation.mvtec import Category
from mhpc.evaluation.options import Protocol

MOST = 0.99  # of the patches, where bank_size is more than there are

VANILLA = {
    "algorithm": PatchCoreAlgorithm.VANILLA,
    "aggregation": PatchCoreAggregation.GREEDY,
    "feature_reduction": PatchCoreFeatureReduction.NONE,
    "distance": PatchCoreDistance.EUCLIDEAN,
}
PROPOSED = {
    "algorithm": PatchCoreAlgorithm.ONLINE,
    "aggregation": PatchCoreAggregation.KMEANS,
    "feature_reduction": PatchCoreFeatureReduction.PCA,
    "distance": PatchCoreDistance.MAHALANOBIS,
}


@dataclass(frozen=True)
class Variation:
    """A row: MHPatchCore's arguments that make it what it is, and the passes it takes."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    passes: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a variation came to: its figures for each category, and their mean."""

    variation: Variation
    figures: tuple[Figures, ...]
    mean: dict[str, Any]

    def as_row(self) -> dict[str, Any]:
        """The variation and its mean figures, flat; `categories` holds the figures of each."""
        plain = {name: getattr(value, "value", value) for name, value in self.variation.arguments.items()}
        per_second = {"images_per_second": 1000 / self.mean["ms_per_image"]}
        row = {"row": self.variation.name, **plain, "passes": self.variation.passes, **self.mean, **per_second}
        return {**row, "categories": [asdict(figures) for figures in self.figures]}


def grid() -> list[Variation]:
    """PatchCore as published; the proposed model on a stream and from all at once; the former with one thing changed.

    "Batch proposed" is the proposed space and bank from all data at once: scikit-learn's PCA, Mahalanobis, and
    scikit-learn's MiniBatchKMeans.
    """
    online, aggregation = "online", PatchCoreAggregation
    return [
        Variation("vanilla PatchCore", VANILLA),
        Variation("online proposed", PROPOSED),
        Variation("batch proposed", PROPOSED | {"algorithm": PatchCoreAlgorithm.VANILLA}),
        Variation(f"{online}, PCA off", PROPOSED | {"feature_reduction": PatchCoreFeatureReduction.NONE}),
        Variation(f"{online}, greedy", PROPOSED | {"aggregation": aggregation.GREEDY}),
        Variation(f"{online}, no aggregation", PROPOSED | {"aggregation": aggregation.NONE}),
        Variation(f"{online}, Euclidean", PROPOSED | {"distance": PatchCoreDistance.EUCLIDEAN}),
        Variation(f"{online}, three passes", PROPOSED, passes=3),
    ]


def full_grid() -> list[Variation]:
    """All 24 combinations of the four choices."""
    choices = (PatchCoreAlgorithm, PatchCoreAggregation, PatchCoreFeatureReduction, PatchCoreDistance)
    reductions = {PatchCoreFeatureReduction.NONE: "all", PatchCoreFeatureReduction.PCA: "PCA"}
    return [
        Variation(
            f"{one[0].value} {one[1].value} {reductions[one[2]]} {one[3].value[:5]}.",
            dict(zip(VANILLA, one, strict=True)),
        )
        for one in product(*choices)
    ]


def sampling() -> list[Variation]:
    """PatchCore as published, with all patches, a tenth and a hundredth, chosen greedily or at random."""
    shares = [(1.0, "identity"), (0.1, "greedy_coreset"), (0.01, "greedy_coreset"), (0.1, "random")]
    return [
        Variation(
            f"{share:.0%}".replace("%", " %") + {"greedy_coreset": " greedy", "random": " random"}.get(sampler, ""),
            VANILLA | {"sampler": sampler} | ({"coreset_percentage": share} if share < 1 else {}),
        )
        for share, sampler in shares
    ]


def ablate(
    variations: Sequence[Variation],
    categories: Iterable[Category],
    backbone: nn.Module,
    arguments: dict[str, Any],
    protocol: Protocol,
) -> list[Outcome]:
    """Every variation on every category. Features are extracted once a category and shared.

    The seconds are as if they were not: to each pass and image the backbone's are added. `peak_mib` is the model's
    alone, without the backbone's.

    Args:
        arguments: MHPatchCore's that all variations share. Where they leave `coreset_percentage` out, VANILLA's bank
            gets as many rows as ONLINE's `bank_size`, so that the algorithms differ and not the sizes of their banks.
    """
    found: list[list[Figures]] = [[] for _ in variations]
    arguments = {**arguments, "backbone": backbone}
    extractor = MHPatchCore(**arguments, device=protocol.device)
    for category in categories:
        split = split_category(category, arguments["input_shape"], extractor.extract, protocol, keep=True)
        for source in split.sources:
            source.load()
        share = {"coreset_percentage": equal_share(split, extractor.config["bank_size"])}
        bar = tqdm(variations, desc=f"{category.name}: rows", unit="row", leave=False, disable=None)
        for variation, figures in zip(bar, found, strict=True):
            settings = share | arguments | variation.arguments
            try:
                model = MHPatchCore(**settings, device=protocol.device, seed=protocol.seed)
                figures.append(evaluate_model(model, category, split, protocol, variation.passes)[0])
            except ValueError as error:
                raise ValueError(f'row "{variation.name}" on {category.name}: {error}') from error
    return [Outcome(v, tuple(rows), mean_figures(rows)) for v, rows in zip(variations, found, strict=True)]


def equal_share(split: Split, bank_size: int) -> float:
    """The share of the patches learned that makes a bank of bank_size rows."""
    h, w = split.learn.grid
    return min(bank_size / (len(split.learn) * h * w), MOST)


def distinct_notes(outcomes: Iterable[Outcome]) -> list[str]:
    """Why figures are missing, each note of a category once: most hold for every variation."""
    return list(dict.fromkeys(f"{f.category}: {note}" for o in outcomes for f in o.figures for note in f.notes))


def by_auroc(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The best first."""
    return sorted(outcomes, key=lambda outcome: -float(outcome.mean["image_auroc"]))
