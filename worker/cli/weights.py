"""`mhpc-worker weights`: a backbone's weights as a file, for plants that reach no network."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.options import JsonFlag, examples

if TYPE_CHECKING:
    from worker.weights import Weights

weights = typer.Typer(no_args_is_help=True, help="Fetch a backbone's weights into a file, or verify such a file.")


def complete_backbone(incomplete: str) -> list[str]:
    """For a shell: backbones of that beginning."""
    from mhpc.core.backbones import BackboneName

    return [name.value for name in BackboneName if name.value.startswith(incomplete)]


@weights.command(
    epilog=examples(
        "weights fetch resnet18 --output resnet18.safetensors",
        "weights fetch wide_resnet50_2 -o weights/wide.safetensors --json",
    )
)
def fetch(
    backbone: Annotated[
        str, typer.Argument(help="Its name, such as wide_resnet50_2.", autocompletion=complete_backbone)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    as_json: JsonFlag = False,
) -> None:
    """Download torchvision's weights once, and write them as safetensors.

    The download is checked by the hash in its name; what torch hub's cache has
    already is taken from there, and where its hash is another, that is noted.
    Beside the file goes FILE.sha256, which sha256sum --check reads. Carry both
    to the plant, verify them there, and say weights = "FILE" in the
    configuration.
    """
    from worker.weights import fetch

    found = fetch(backbone, output)
    _tell(found, as_json)
    if not as_json:
        typer.echo(f"written: {found.file} and {found.file}.sha256")


@weights.command(
    epilog=examples("weights verify resnet18.safetensors", "weights verify own.safetensors --backbone resnet18 --json")
)
def verify(
    file: Annotated[Path, typer.Argument(help="A safetensors file.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="The backbone that it is for; else as the file says.", autocompletion=complete_backbone),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check that a file is as it was written, and fits its backbone; exit code 4 if not."""
    from worker.weights import verify

    _tell(verify(file, backbone), as_json)


def _tell(found: "Weights", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found._asdict()))
        return
    source = f", from {found.source}" if found.source else ""
    typer.echo(f"{found.backbone}: {found.tensors} tensors, {found.bytes / 1e6:.1f} MB{source}")
    for text in found.checked:
        typer.echo(f"ok    {text}")
    for text in found.missing:
        typer.echo(f"note  {text}")
