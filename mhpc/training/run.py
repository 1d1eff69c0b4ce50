"""One training run with progress: draw the pictures, distil, write the weights."""

import hashlib
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mhpc.training.distill import Distillation, Recipe, export
from mhpc.training.pictures import Crops, photographs, series
from mhpc.training.teacher import Teacher, load_teacher

REPORT_STEPS = 100


def train(recipe: Recipe, output: Path, *, resume: bool, device: str) -> str:
    """Train by `recipe`, write `output`, return its SHA-256. The checkpoint lies beside it, `.checkpoint` appended.

    Raises `ValueError` or `FileNotFoundError` for what cannot be used: the teacher, its layers, a checkpoint, a device.
    """
    checkpoint = output.with_name(output.name + ".checkpoint")
    where = _device(device)
    _check(recipe)
    if resume and not checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint} to resume; leave --resume out")
    teacher = Teacher(load_teacher(recipe.teacher), recipe.teacher_layers, where)
    photos = photographs()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        drawing = progress.add_task("drawing pictures", total=recipe.pictures)
        generated = series(recipe.pictures, recipe.seed, on_picture=lambda: progress.advance(drawing))
        crops = Crops(generated, photos, recipe.crop + abs(recipe.teacher_shift), recipe.seed)
        distillation = Distillation(recipe, teacher, crops, where)
        if resume:
            distillation.resume(checkpoint)
        training = progress.add_task("distilling", total=recipe.steps, completed=distillation.step_)
        window: list[float] = []

        def report(step: int, loss: float) -> None:
            window.append(loss)
            progress.update(training, completed=step)
            if step % REPORT_STEPS == 0 or step == recipe.steps:
                progress.console.print(f"step {step}: loss {sum(window) / len(window):.4f}")
                window.clear()

        distillation.run(checkpoint, report)
    export(distillation.student, output)
    return hashlib.sha256(output.read_bytes()).hexdigest()


def _check(recipe: Recipe) -> None:
    if recipe.crop % 16:
        raise ValueError(f"crop is {recipe.crop}; expected a multiple of 16, the stride of layer3")
    if len(recipe.teacher_layers) != 2:
        raise ValueError(f"{len(recipe.teacher_layers)} teacher layers given; expected 2, at strides 8 and 16")
    if recipe.from_teacher and recipe.teacher_shift:
        raise ValueError(
            f"teacher_shift is {recipe.teacher_shift}; expected 0 with from_teacher, whose layer2 is the teacher's"
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, and torch sees no CUDA device; give --device cpu")
    return device
