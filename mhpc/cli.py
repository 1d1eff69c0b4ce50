"""The command line of the library."""

from pathlib import Path
from typing import Annotated

import typer

from mhpc.evaluation import cli
from mhpc.evaluation.failures import check_device, refusals

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


@app.callback()
def mhpc() -> None:
    """PatchCore with Mahalanobis distance, learned in one pass."""


@app.command()
def train(
    teacher: Annotated[str, typer.Option(help='The teacher: "module:function".')],
    teacher_layers: Annotated[str, typer.Option(help="Its two layers, at strides 8 and 16, comma-separated.")],
    output: Annotated[Path, typer.Option(help="Where the float16 safetensors file is written.")],
    teacher_shift: Annotated[
        int, typer.Option(help="Pixels by which the teacher's cells lie to the lower right of the student's.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Crops in a step.")] = 32,
    crop: Annotated[int, typer.Option(min=32, help="Side of a crop in pixels; 16 divides it.")] = 160,
    pictures: Annotated[int, typer.Option(min=1, help="Generated pictures, besides the photographs.")] = 1500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside the output.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=1.0, help="The highest, after warming up.")] = 3e-3,
    teacher_bfloat16: Annotated[
        bool, typer.Option("--teacher-bfloat16", help="Products of what is not trained in bfloat16.")
    ] = False,
    from_teacher: Annotated[
        bool, typer.Option("--from-teacher", help="Start from its weights, pruned; it is laid out as MobileNet v1.")
    ] = False,
) -> None:
    """Distil the bundled backbone from a teacher, on generated pictures and packaged photographs."""
    from mhpc.training.distill import Recipe
    from mhpc.training.run import train as run

    layers = tuple(layer.strip() for layer in teacher_layers.split(",") if layer.strip())
    recipe = Recipe(
        teacher=teacher,
        teacher_layers=layers,
        teacher_shift=teacher_shift,
        steps=steps,
        batch=batch,
        crop=crop,
        pictures=pictures,
        seed=seed,
        learning_rate=learning_rate,
        teacher_bfloat16=teacher_bfloat16,
        from_teacher=from_teacher,
    )
    with refusals("train"):
        check_device(device)
        try:
            digest = run(recipe, output, resume=resume, device=device)
        except FileNotFoundError as error:  # a path that was given names nothing
            raise ValueError(str(error)) from error
    typer.echo(f"{output}  sha256 {digest}")


app.command()(cli.evaluate)
app.command()(cli.ablate)
app.command()(cli.coverage)
