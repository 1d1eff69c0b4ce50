from pathlib import Path

import pytest
import torch

from mhpc.core.patch_features import PatchFeatures
from worker.bench import bare as bare_module
from worker.bench.bare import MIN_CALLS, calls_per_second, fastest, gemm_flops, main, measure
from worker.bench.figures import Trial
from worker.bench.pictures import jpeg_parts, write_parts
from worker.configuration import load_settings
from worker.errors import ModelError


def test_the_fastest_variant_is_found_one_choice_after_the_other() -> None:
    speeds = {Trial("float32", 8, 2): 90.0, Trial("bfloat16", 8, 2): 150.0}
    speeds |= {Trial("bfloat16", 1, 2): 60.0, Trial("bfloat16", 32, 2): 170.0, Trial("bfloat16", 32, 1): 100.0}
    tried = fastest(speeds.__getitem__, (1, 8, 32), [(2, 1), (1, 1)], 8)
    assert tried[-1] == (Trial("bfloat16", 32, 2), 170.0)
    assert dict(tried) == speeds
    speeds[Trial("bfloat16", 32, 1, 2)] = 180.0
    tried = fastest(speeds.__getitem__, (1, 8, 32), [(2, 1), (1, 1), (1, 2)], 8)
    assert tried[-1] == (Trial("bfloat16", 32, 1, 2), 180.0)
    assert dict(tried) == speeds


def test_a_call_is_made_a_few_times_however_long_it_takes() -> None:
    calls: list[int] = []
    assert calls_per_second(lambda: calls.append(1), 0.0, torch.device("cpu")) > 0
    assert len(calls) == MIN_CALLS + 1


@pytest.mark.parametrize(("name", "waits"), [("cuda:1", 2), ("cpu", 0)])
def test_the_device_that_is_measured_is_waited_for(name: str, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[torch.device | None]()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # whatever else the process computes on
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    device = torch.device(name)
    calls_per_second(lambda: None, 0.0, device)
    assert waited == waits * [device]


def test_the_rate_of_products_is_a_number_of_operations() -> None:
    assert gemm_flops(16, torch.device("cpu"), seconds=0.01) > 1e6


def test_the_loop_is_measured_with_what_the_floor_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bare_module.BATCHES, "cpu", (1, 8))
    settings = load_settings(None, {"worker": {"device": "cpu"}}, environ={})
    bare = measure(settings, jpeg_parts(4), seconds=0.1)
    assert bare.images_per_second > 0
    assert bare.patches == 28 * 28
    variant = {"precision": bare.precision, "batch": bare.batch, "threads": bare.threads, "passes": bare.passes}
    assert any(variant.items() <= tried.items() for tried in bare.tried)
    assert (torch.get_num_threads() > 1) == any(tried["passes"] > 1 for tried in bare.tried)


def test_layers_that_are_not_there_are_a_models_error() -> None:
    settings = load_settings(None, {"model": {"layers": ["layer9"]}, "worker": {"device": "cpu"}}, environ={})
    with pytest.raises(ModelError, match="layer9"):
        measure(settings, jpeg_parts(1), seconds=0.1)


def test_a_device_that_fails_ends_the_process_with_its_code_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise torch.AcceleratorError("the device is gone\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(PatchFeatures, "_forward", fails)
    config, parts = tmp_path / "config.toml", tmp_path / "parts"
    config.write_text('[worker]\ndevice = "cpu"\n[[lines]]\nname = "a"\n')
    write_parts(parts, jpeg_parts(1))
    with pytest.raises(SystemExit) as ended:
        main(str(config), str(parts), str(tmp_path / "out"), "0.1")
    assert ended.value.code == 5
    told = capsys.readouterr().err
    assert told.startswith("cpu failed: the device is gone CUDA")
    assert told.endswith("or choose another with --device\n")
