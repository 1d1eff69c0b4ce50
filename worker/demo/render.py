"""The demo's parts as a folder in the MVTec layout: `python -m worker.demo.render FOLDER`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from worker.demo.parts import Part, rendered_parts


def write_folder(folder: Path, parts: list[Part]) -> None:
    """Write train/good, test/KIND and ground_truth/KIND/*_mask.png; pictures to calibrate on are learned from, too."""
    for part in parts:
        number = part.id.rpartition("/")[2]
        where = folder / "test" / str(part.kind) if part.split == "test" else folder / "train" / "good"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{number}.jpg").write_bytes(part.read())
        if (mask := part.read_mask()) is not None:
            truth = folder / "ground_truth" / str(part.kind)
            truth.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(truth / f"{number}_mask.png")


def main(
    folder: Annotated[Path, typer.Argument(help="Made if it is not there; must be empty if it is.")],
    learn: Annotated[int, typer.Option(min=1, help="Pictures in train/good.")] = 300,
    good: Annotated[int, typer.Option(min=1, help="Good pictures in test.")] = 100,
    per_kind: Annotated[int, typer.Option(min=1, help="Pictures of each kind of defect.")] = 25,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Render brushed metal discs, some with a missing hole, a dent or a scratch, in the MVTec layout."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        typer.echo(f"{folder} is there already and not an empty folder; give another", err=True)
        raise typer.Exit(2)
    write_folder(folder, rendered_parts(learn, 0, good, per_kind, seed))
    typer.echo(f"{folder}: {learn} to learn from, {good} good and {3 * per_kind} defective ones to score")


if __name__ == "__main__":
    typer.run(main)
