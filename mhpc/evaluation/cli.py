"""The commands `mhpc evaluate`, `mhpc ablate` and `mhpc coverage`. Thin; what is heavy is imported when it is run."""

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mhpc.evaluation.failures import refusals
from mhpc.evaluation.options import Bounds, Choices, Features, Output, Plane, Protocol, Sampling, Scoring, grouped

FolderArgument = Annotated[Path, typer.Argument(help="In the MVTec layout: a category, or a folder of them.")]

PercentageOption = Annotated[
    float | None,
    typer.Option(
        "--percentage", "-p", metavar="SHARE", help="Of the patches, in vanilla's bank.", show_default="as online's"
    ),
]

ROW_NOTE = (
    '"online proposed" is online, k-means, PCA, Mahalanobis, in one pass; "online, ..." changes the one thing that it '
    "names; \"batch proposed\" is scikit-learn's PCA, Mahalanobis and scikit-learn's MiniBatchKMeans on all data at "
    'once; "vanilla PatchCore" is greedy, without PCA, Euclidean.'
)
FULL_ROW_NOTE = "A row is algorithm, aggregation, all directions or PCA's, distance."
BANK_NOTE = (
    "Banks of vanilla have as many rows as online's, unless -p says otherwise or nothing is aggregated. Peak memory is "
    "the model's, beside the backbone's and the features'; seconds count the backbone."
)


@grouped
def evaluate(
    folder: FolderArgument,
    choices: Choices,
    bounds: Bounds,
    sampling: Sampling,
    features: Features,
    scoring: Scoring,
    protocol: Protocol,
    output: Output,
) -> None:
    """Accuracy and cost of a model on each category of a folder."""
    from mhpc.core.mh_patch_core import MHPatchCore
    from mhpc.evaluation.evaluate import evaluate_model, mean_figures, split_category
    from mhpc.evaluation.models import check_used, model_arguments, settled
    from mhpc.evaluation.mvtec import read_categories
    from mhpc.evaluation.tables import COST, MERIT, Column, check_output, figures_table, report

    with refusals("evaluate"):
        check_output(output)
        choices = settled(choices, sampling)
        check_used(choices, bounds, sampling)
        protocol.start()
        arguments = model_arguments(bounds, features, scoring, sampling, choices)
        categories = read_categories(folder, protocol.category)
        model = MHPatchCore(**arguments, device=protocol.device, seed=protocol.seed)
        found = []
        for category in categories:
            split = split_category(category, features.input_shape, model.extract, protocol)
            found.append(evaluate_model(model, category, split, protocol, choices.passes or 1)[0])
        mean = mean_figures(found)
        rows: list[dict[str, Any]] = [asdict(figures) for figures in found]
        shown = [*rows, {"category": "mean", **mean}]
        document = {**described("evaluate", model.config, protocol), "categories": rows, "mean": mean}
        table = figures_table(_title(model.config), Column("category", "category"), (*MERIT, *COST), shown, "mean")
        notes = [
            f"{figures.category}: {_counts(figures)}{''.join(f'; {n}' for n in figures.notes)}" for figures in found
        ]
        report([table], notes, shown, document, output)


@grouped
def ablate(
    folder: FolderArgument,
    features: Features,
    scoring: Scoring,
    bounds: Bounds,
    protocol: Protocol,
    output: Output,
    percentage: PercentageOption = None,
    full: Annotated[bool, typer.Option("--full", help="All 24 combinations, in place of the eight rows.")] = False,
) -> None:
    """What each choice is worth: a table of variations, and one of samplings.

    The features of a category are extracted once and kept in memory for all rows.
    """
    from mhpc.core.backbones import load_backbone
    from mhpc.evaluation import ablation
    from mhpc.evaluation.models import model_arguments
    from mhpc.evaluation.mvtec import read_categories
    from mhpc.evaluation.tables import COST, MERIT, SAMPLING, Column, check_output, figures_table, report

    with refusals("ablate"):
        check_output(output)
        protocol.start()
        arguments = model_arguments(bounds, features, scoring, Sampling(percentage=percentage))
        categories = read_categories(folder, protocol.category)
        backbone = load_backbone(features.backbone, arguments["weights"])
        rows, samplings = ablation.full_grid() if full else ablation.grid(), ablation.sampling()
        outcomes = ablation.ablate([*rows, *samplings], categories, backbone, arguments, protocol)
        grid = [o.as_row() for o in ablation.by_auroc(outcomes[: len(rows)])]
        sampled = [o.as_row() for o in outcomes[len(rows) :]]
        name = Column("row", "")
        tables = [
            figures_table("Ablation, sorted by image AUROC", name, (*MERIT[:-1], *COST), grid, "online proposed"),
            figures_table("Sampling (vanilla PatchCore)", name, SAMPLING, sampled),
        ]
        document = {**described("ablate", arguments, protocol), "ablation": grid, "sampling": sampled}
        table_of = [{"table": "ablation", **row} for row in grid] + [{"table": "sampling", **row} for row in sampled]
        notes = [FULL_ROW_NOTE if full else ROW_NOTE, BANK_NOTE, *ablation.distinct_notes(outcomes)]
        report(tables, notes, table_of, document, output)


@grouped
def coverage(
    folder: FolderArgument,
    output: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    choices: Choices,
    bounds: Bounds,
    features: Features,
    scoring: Scoring,
    protocol: Protocol,
    percentage: Annotated[
        float, typer.Option("--percentage", "-p", metavar="SHARE", help="Of the patches, which are chosen.")
    ] = 0.01,
    plane: Annotated[Plane, typer.Option(case_sensitive=False, help="In which patches are shown.")] = Plane.TSNE,
) -> None:
    """Pictures: what a coreset covers, greedy beside random; and a sheet of heat maps.

    The percentage is also that of the bank that makes the heat maps, where the algorithm is vanilla.
    """
    from mhpc.core.mh_patch_core import MHPatchCore
    from mhpc.evaluation.models import check_used, model_arguments, settled
    from mhpc.evaluation.mvtec import read_categories

    with refusals("coverage"):
        try:
            from mhpc.evaluation.pictures import draw_category
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0]
            raise ValueError(f"pictures need {package}: pip install 'mhpc[plots]'") from None
        choices = settled(choices, Sampling())
        check_used(choices, bounds, Sampling())
        protocol.start()
        arguments = model_arguments(bounds, features, scoring, Sampling(percentage=percentage), choices)
        categories = read_categories(folder, protocol.category)
        model = MHPatchCore(**arguments, device=protocol.device, seed=protocol.seed)
        for category in categories:
            for path in draw_category(model, category, output, protocol, percentage, plane, choices.passes or 1):
                typer.echo(path)


def described(command: str, config: dict[str, Any], protocol: Protocol) -> dict[str, Any]:
    """What a document says of how its figures came about."""
    from importlib.metadata import version

    plain = {name: value.value if isinstance(value, Enum) else value for name, value in config.items()}
    versions = {name: version(name) for name in ("mhpc", "torch", "scikit-learn")}
    return {"command": command, "versions": versions, "model": plain, "protocol": asdict(protocol)}


def _title(config: dict[str, Any]) -> str:
    choices = ("algorithm", "aggregation", "feature_reduction", "distance")
    return f"{config['backbone']}: " + ", ".join(config[name].value for name in choices)


def _counts(figures: Any) -> str:
    threshold = "" if figures.threshold is None else f", threshold {figures.threshold:.3f}"
    return (
        f"{figures.learned} pictures learned, {figures.calibrated} held out to calibrate{threshold}, "
        f"{figures.good} good and {figures.defective} defective scored, bank of {figures.bank_rows}"
    )
