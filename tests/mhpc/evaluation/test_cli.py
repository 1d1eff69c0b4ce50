import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]  # publishes no types
from typer.testing import CliRunner, Result

from mhpc.cli import app
from mhpc.core.mh_patch_core import MHPatchCore
from mhpc.evaluation.options import Output, SamplerName
from mhpc.evaluation.tables import check_output
from mhpc.sampler import make_sampler
from tests.mhpc.evaluation.parts import SIDE, write_category

SMALL = ("--input-size", str(SIDE), "--images", "8", "--pretrain-dimension", "32", "--target-dimension", "32")
QUICK = (*SMALL, "--bank-size", "100")
VANILLA = (*SMALL, "--algorithm", "VANILLA", "--aggregation", "Greedy")


def mhpc(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "80"})


def refusal(*arguments: object, code: int = 2) -> str:
    result = mhpc(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_evaluate_prints_a_table_and_what_it_held_out(plates: Path) -> None:
    result = mhpc("evaluate", plates, *QUICK)
    assert result.exit_code == 0, result.output
    for text in ("AUROC", "AUPRO", "MiB", "plates", "mean", "8 pictures learned, 20 held out to calibrate, threshold"):
        assert text in " ".join(result.stdout.split())
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_evaluate_writes_json_and_csv_of_each_category_and_the_mean(tmp_path: Path) -> None:
    for name in ("bolts", "nuts"):
        write_category(tmp_path / "parts" / name, train=41, good=3, defective=3)
    files = ("--json", tmp_path / "figures.json", "--csv", tmp_path / "figures.csv")
    assert mhpc("evaluate", tmp_path / "parts", *QUICK, *files).exit_code == 0
    document: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    assert [figures["category"] for figures in document["categories"]] == ["bolts", "nuts"]
    aurocs = [figures["image_auroc"] for figures in document["categories"]]
    assert document["mean"]["image_auroc"] == pytest.approx(sum(aurocs) / 2)
    assert document["model"]["backbone"] == "tiny"
    assert document["model"]["algorithm"] == "online"
    rows = list(csv.DictReader((tmp_path / "figures.csv").read_text().splitlines()))
    assert [row["category"] for row in rows] == ["bolts", "nuts", "mean"]
    assert [float(row["image_auroc"]) for row in rows[:2]] == aurocs


def test_one_of_several_categories_can_be_named(tmp_path: Path) -> None:
    for name in ("bolts", "nuts"):
        write_category(tmp_path / name, train=4, good=2, defective=2)
    result = mhpc("evaluate", tmp_path, *QUICK, "--category", "nuts", "--csv", "-")
    assert [row["category"] for row in csv.DictReader(io.StringIO(result.stdout))] == ["nuts", "mean"]
    assert "no threshold: 4 pictures in train/good" in " ".join(result.stderr.split())


def test_json_on_stdout_stands_alone_and_the_table_goes_to_stderr(plates: Path) -> None:
    result = mhpc("evaluate", plates, *QUICK, "--json", "-")
    assert json.loads(result.stdout)["command"] == "evaluate"
    assert "AUPRO" in result.stderr


@pytest.mark.parametrize("sampler", list(SamplerName))
def test_every_sampler_of_the_library_has_its_option(plates: Path, sampler: SamplerName) -> None:
    make_sampler(sampler.value, 0.5)
    share = () if sampler is SamplerName.identity else ("-p", "0.1")
    result = mhpc("evaluate", plates, *VANILLA, "--sampler", sampler.value.upper(), *share, "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["categories"][0]["bank_rows"]
    assert rows == (8 * 64 if sampler is SamplerName.identity else 51)


@pytest.mark.parametrize(
    ("options", "algorithm", "aggregation"),
    [
        ((), "online", "kmeans"),
        (("--sampler", "approx_greedy_coreset", "-p", "0.1"), "vanilla", "greedy"),
        (("-p", "0.1"), "vanilla", "greedy"),
        (("--algorithm", "vanilla"), "vanilla", "greedy"),
        (("--aggregation", "kmeans", "-p", "0.1"), "vanilla", "kmeans"),
    ],
)
def test_a_coreset_is_vanillas_and_vanillas_bank_is_a_coreset_unless_said_otherwise(
    plates: Path, options: tuple[str, ...], algorithm: str, aggregation: str
) -> None:
    result = mhpc("evaluate", plates, *SMALL, *options, "--json", "-")
    assert result.exit_code == 0, result.output
    model = json.loads(result.stdout)["model"]
    assert [model["algorithm"], model["aggregation"]] == [algorithm, aggregation]


def test_the_options_reach_the_model(plates: Path) -> None:
    options = ("--algorithm", "vanilla", "--aggregation", "kmeans", "--reduction", "none", "--distance", "mahalanobis")
    more = ("-p", "0.2", "--jitter", "0.5", "--num-nn", "2", "--top-k", "3", "--patchsize", "5", "--patchstride", "2")
    pooled = ("--pretrain-dimension", "32", "--target-dimension", "40", "--seed", "7", "--layers", "layer2, layer3")
    result = mhpc("evaluate", plates, *options, *more, *pooled, "--input-size", SIDE, "--images", "8", "--json", "-")
    assert result.exit_code == 0, result.output
    model = json.loads(result.stdout)["model"]
    assert {name: model[name] for name in ("algorithm", "aggregation", "feature_reduction", "distance")} == {
        "algorithm": "vanilla", "aggregation": "kmeans", "feature_reduction": "none", "distance": "mahalanobis",
    }  # fmt: skip
    values = ("coreset_percentage", "jitter", "anomaly_score_num_nn", "top_k", "patchsize", "patchstride", "seed")
    assert [model[name] for name in values] == [0.2, 0.5, 2, 3, 5, 2, 7]
    assert [model["pretrain_embed_dimension"], model["target_embed_dimension"]] == [32, 40]
    assert model["embedding_layers"] == ["layer2", "layer3"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--algorithm", "online", "--sampler", "random"), "--sampler would have no effect: it is for --algorithm van"),
        (("--algorithm", "online", "-p", "0.1"), "it is for --algorithm vanilla; online is bounded by --bank-size"),
        (("--algorithm", "vanilla", "--bank-size", "9"), "--bank-size would have no effect"),
        (("--algorithm", "vanilla", "--passes", "3"), "--passes 3 would have no effect"),
        (("--aggregation", "kmeans", "--sampler", "random"), "it is for --aggregation greedy"),
        (("--algorithm", "vanilla", "--aggregation", "none", "-p", "0.1"), "none keeps every patch"),
        ((*VANILLA, "--sampler", "identity", "-p", "0.1"), "identity keeps every patch"),
        (("--reduction", "none", "--pca-variance-ratio", "0.9"), "it is for --reduction pca"),
        (("--distance", "euclidean", "--jitter", "0.1"), "it is for --distance mahalanobis"),
        (("--passes", "2"), "--passes is 2, expected 1 or 3"),
        (("--weights", "x", "--backbone", "a.b:c"), "brings its own"),
        (("--false-positive-rate", "1"), "expected a value in (0, 1)"),
        ((*VANILLA, "-p", "1.5"), "Percentage value not in (0, 1)."),
        (("--json", "-", "--csv", "-"), 'both ask for stdout ("-")'),
        (("--json", "/nowhere/at/all.json"), "there is no folder /nowhere/at to write it in"),
        (("--json", "/"), "/ is a folder, expected a file to write"),
        (("--csv", "/proc/all.csv"), "/proc/all.csv cannot be written: No such file or directory"),
        (("--category", "bolts"), "has no category bolts; it has plates"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(
    plates: Path, options: tuple[str, ...], complaint: str
) -> None:
    said = refusal("evaluate", plates, *options)
    assert said.startswith("mhpc evaluate: ")
    assert complaint in said


@pytest.mark.parametrize("command", [("evaluate",), ("ablate",), ("coverage", "--output", "unused")])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--backbone", "a.b:c"), "the layers of a.b:c are not known"),
        (("--backbone", "a.b:c", "--layers", "x"), "No module named 'a'"),
        (("--backbone", "resnet19"), "backbone 'resnet19' is unknown"),
        (("--layers", "layer9"), "layer9"),
        (("--weights", "nowhere.safetensors"), "weights 'nowhere.safetensors' cannot be read"),
    ],
)
def test_a_model_that_cannot_be_used_ends_a_command_with_4(
    plates: Path, command: tuple[str, ...], options: tuple[str, ...], complaint: str
) -> None:
    said = refusal(*command, plates, *options, code=4)
    assert said.startswith(f"mhpc {command[0]}: ")
    assert complaint in said


@pytest.mark.parametrize("command", [("evaluate",), ("ablate",), ("coverage", "--output", "unused")])
def test_a_device_that_is_not_there_ends_a_command_with_5(plates: Path, command: tuple[str, ...]) -> None:
    said = refusal(*command, plates, "--device", "abacus", code=5)
    assert said.startswith(f"mhpc {command[0]}: device 'abacus' cannot be used (")


def test_a_device_that_runs_out_of_memory_ends_a_command_with_5(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")

    monkeypatch.setattr(MHPatchCore, "extract", full)
    assert refusal("evaluate", plates, *QUICK, code=5) == (
        "mhpc evaluate: the device failed (CUDA out of memory. Tried to allocate 2.00 GiB.); give it less at a time, "
        "or another --device\n"
    )


def test_the_look_whether_a_file_can_be_written_leaves_what_is_there_and_makes_nothing(tmp_path: Path) -> None:
    old, pipe = tmp_path / "old.json", tmp_path / "pipe"
    old.write_text("{}")
    os.mkfifo(pipe)  # which nobody reads yet
    for path in (old, pipe, tmp_path / "new.csv", Path("-")):
        check_output(Output(json=path))
    assert old.read_text() == "{}"
    assert sorted(tmp_path.iterdir()) == [old, pipe]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_a_full_disk_ends_a_command_with_1(plates: Path, option: str) -> None:
    result = mhpc("evaluate", plates, *QUICK, option, "/dev/full")
    assert result.exit_code == 1
    assert result.stderr == "mhpc evaluate: /dev/full cannot be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_ends_the_drawing_of_pictures_with_1(plates: Path, tmp_path: Path) -> None:
    (tmp_path / "plates-coverage.png").symlink_to("/dev/full")
    said = refusal("coverage", plates, *QUICK, "--plane", "pca", "--output", tmp_path, code=1)
    assert "No space left on device" in said


@pytest.mark.parametrize("command", [("evaluate",), ("ablate",), ("coverage", "--output", "unused")])
def test_a_folder_of_another_layout_is_refused_in_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    said = refusal(*command, tmp_path)
    assert said.startswith(f"mhpc {command[0]}: ")
    assert "expected train/good" in said


def test_a_picture_that_breaks_off_is_refused_in_one_line_that_names_it(category: Path) -> None:
    path = category / "test" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:-2000])
    assert "test/good/001.png does not open" in refusal("evaluate", category, *QUICK)


def test_ablate_prints_the_grid_sorted_and_the_sampling_table(few: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "grid.json", "--csv", tmp_path / "grid.csv")
    result = mhpc("ablate", few, *QUICK, *files)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "grid.json").read_text())
    aurocs = [row["image_auroc"] for row in document["ablation"]]
    assert len(aurocs) == 8
    assert aurocs == sorted(aurocs, reverse=True)
    assert [row["row"] for row in document["sampling"]] == ["100 %", "10 % greedy", "1 % greedy", "10 % random"]
    rows = list(csv.DictReader((tmp_path / "grid.csv").read_text().splitlines()))
    assert [row["table"] for row in rows] == ["ablation"] * 8 + ["sampling"] * 4
    assert [rows[-1]["sampler"], rows[0]["sampler"]] == ["random", ""]
    assert "online proposed" in result.stdout
    assert " ".join(result.stdout.split()).count("few: no threshold: 6 pictures in train/good, 40 are needed") == 1
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_ablate_runs_all_24_combinations(few: Path) -> None:
    result = mhpc("ablate", few, *QUICK, "--full", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["ablation"]
    assert len({(r["algorithm"], r["aggregation"], r["feature_reduction"], r["distance"]) for r in rows}) == 24


def test_coverage_draws_both_pictures(plates: Path, tmp_path: Path) -> None:
    result = mhpc("coverage", plates, *QUICK, "--plane", "pca", "-p", "0.1", "--output", tmp_path / "new" / "pictures")
    assert result.exit_code == 0, result.output
    names = ["plates-coverage.png", "plates-heatmaps.png"]
    assert [Path(line).name for line in result.stdout.split()] == names
    for name in names:
        with Image.open(tmp_path / "new" / "pictures" / name) as picture:
            assert min(picture.size) > 800


def test_coverage_without_matplotlib_names_the_extra(plates: Path, no_matplotlib: Callable[[], None]) -> None:
    no_matplotlib()
    said = refusal("coverage", plates, "--output", "unused")
    assert said == "mhpc coverage: pictures need matplotlib: pip install 'mhpc[plots]'\n"


def test_threads_bound_torch_and_the_linear_algebra_of_numpy(plates: Path) -> None:
    torch.set_num_threads(2)
    with threadpool_limits(2):
        assert mhpc("evaluate", plates, *QUICK, "--threads", "1").exit_code == 0
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
