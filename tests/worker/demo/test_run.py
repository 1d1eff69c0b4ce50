import dataclasses
import tomllib
from pathlib import Path

import pytest

from worker.configuration import load_settings
from worker.demo.parts import rendered_parts
from worker.demo.run import DemoOptions, run_demo, worker_config
from worker.errors import ConfigurationError
from worker.settings import Settings, line_configs

PARTS = rendered_parts(learn=200, calibrate=40, good=1, per_kind=0)


def settings(tmp_path: Path, options: DemoOptions) -> Settings:
    file = tmp_path / "config.toml"
    folder = tmp_path / 'a "quoted" \\ folder'
    file.write_text(worker_config(options, PARTS, "redis://127.0.0.1:7777/0", 8888, folder), encoding="utf-8")
    return load_settings(file, environ={})


def test_the_worker_is_told_to_learn_and_to_calibrate_on_what_will_come(tmp_path: Path) -> None:
    loaded = settings(tmp_path, DemoOptions())
    (line,) = line_configs(loaded)
    assert (line.name, line.learning.images, line.calibration.images) == ("demo", 200, 40)
    assert line.calibration.false_positive_rate == DemoOptions().false_positive_rate
    assert (loaded.http.host, loaded.http.port) == ("127.0.0.1", 8888)
    assert loaded.redis.url.get_secret_value() == "redis://127.0.0.1:7777/0"
    assert loaded.snapshots.directory == tmp_path / 'a "quoted" \\ folder' / "snapshots"
    assert (loaded.model.backbone, loaded.model.weights_source) == ("tiny", "bundled")
    assert line.scoring.heat_map


def test_backbone_weights_and_layers_are_handed_on(tmp_path: Path) -> None:
    model = settings(tmp_path, DemoOptions(backbone="resnet18", weights="random:0", layers=("layer1", "layer2"))).model
    assert (model.backbone, model.weights, model.layers) == ("resnet18", "random:0", ("layer1", "layer2"))
    assert settings(tmp_path, DemoOptions(backbone="resnet18")).model.weights_source == "pretrained"
    assert settings(tmp_path, DemoOptions(backbone="m:f", layers=("a",))).model.weights_source is None


def test_the_configuration_says_no_more_than_the_demo_needs(tmp_path: Path) -> None:
    text = worker_config(DemoOptions(), PARTS, "redis://127.0.0.1:7777/0", 8888, tmp_path)
    assert "weights" not in tomllib.loads(text)["model"]
    assert "bank_size" not in text  # the worker's own default


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"backbone": "m:f"}, "--backbone m:f needs --layers A,B"),
        ({"rate": -1.0}, "--rate -1.0: expected images per second"),
        ({"json": Path("no/such/folder/f.json")}, "--json no/such/folder/f.json: there is no folder"),
        ({"json": Path(__file__).parent}, "--json .* is a folder, expected a file to write"),
        ({"report": Path(__file__)}, "--report .*: not a folder that can be written"),
        ({"images": Path("no/such/folder")}, "no/such/folder: no such folder"),
    ],
)
def test_bad_options_end_the_demo_before_it_starts(tmp_path: Path, change: dict[str, object], text: str) -> None:
    options = dataclasses.replace(DemoOptions(report=tmp_path / "report"), **change)  # type: ignore[arg-type]  # of mixed types
    with pytest.raises(ConfigurationError, match=text):
        run_demo(options)
