from pathlib import Path

import pytest

from worker.bench.options import SCORES_MAX, BenchOptions, Plan, check_options, line_counts, worker_config
from worker.configuration import load_settings
from worker.errors import ConfigurationError
from worker.settings import line_configs


def test_counts_of_lines_are_distinct_ascending_and_begin_with_one() -> None:
    assert line_counts("64,8,8") == (1, 8, 64)
    assert line_counts("1") == (1,)


@pytest.mark.parametrize("text", ["0", "1,-2", "many", "", "1,,8", "257"])
def test_other_counts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected counts from 1 to 256, such as 1,8,64"):
        line_counts(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (BenchOptions(backbone="m:f"), "--backbone m:f needs --layers A,B"),
        (BenchOptions(json=Path("no/such/folder/f.json")), "--json no/such/folder/f.json: there is no folder"),
    ],
)
def test_bad_options_end_the_run_before_it_starts(options: BenchOptions, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        check_options(options)


def test_a_worker_gets_its_defaults_but_for_what_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    plan = Plan(("line-000", "line-001"), learn=24, calibrate=32)
    options = BenchOptions("resnet18", "random:0", ("layer1", "layer2"), bank_size=50, device="cpu")
    file.write_text(worker_config(options, plan, "redis://127.0.0.1:7777/0", 8888, tmp_path / 'a "b"'))
    settings = load_settings(file, environ={})
    assert [(c.name, c.learning.images, c.calibration.images, c.bank_size) for c in line_configs(settings)] == [
        ("line-000", 24, 32, 50),
        ("line-001", 24, 32, 50),
    ]
    assert not settings.learning.converge
    assert (settings.model.backbone, settings.model.weights, settings.model.layers) == (
        "resnet18",
        "random:0",
        ("layer1", "layer2"),
    )
    assert (settings.worker.device, settings.http.port) == ("cpu", 8888)
    assert settings.streams.scores_max == SCORES_MAX
    assert settings.snapshots.directory == tmp_path / 'a "b"' / "snapshots"
