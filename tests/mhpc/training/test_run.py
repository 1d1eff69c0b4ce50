import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mhpc.cli import app

TOY = "tests.mhpc.training.toy_teacher:toy_teacher"


def mhpc_train(output: Path, *more: str) -> tuple[int, str]:
    arguments = ["train", "--teacher", TOY, "--teacher-layers", "fine,coarse", "--output", str(output)]
    arguments += ["--steps", "2", "--batch", "2", "--crop", "32", "--pictures", "2", *more]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_train_reproduces_a_short_run_bit_for_bit(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for output in (one, other):
        code, said = mhpc_train(output)
        assert code == 0, said
        assert hashlib.sha256(output.read_bytes()).hexdigest() in said
    assert one.read_bytes() == other.read_bytes()


def test_resuming_a_finished_run_writes_the_same_weights(tmp_path: Path) -> None:
    output = tmp_path / "tiny.safetensors"
    assert mhpc_train(output)[0] == 0
    first = output.read_bytes()
    output.unlink()
    code, said = mhpc_train(output, "--resume")
    assert code == 0, said
    assert output.read_bytes() == first


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--crop", "40"), "expected a multiple of 16"),
        (("--resume",), "there is no checkpoint"),
        (("--teacher-layers", "fine"), "1 teacher layers given; expected 2"),
        (("--from-teacher", "--teacher-shift", "4"), "teacher_shift is 4"),
    ],
)
def test_train_refuses_what_it_cannot_use_with_exit_code_2(
    tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    code, said = mhpc_train(tmp_path / "tiny.safetensors", *options)
    assert code == 2
    assert complaint in said


def test_a_teacher_to_start_from_that_is_laid_out_otherwise_is_a_model_error(tmp_path: Path) -> None:
    code, said = mhpc_train(tmp_path / "tiny.safetensors", "--from-teacher")
    assert code == 4
    assert "the teacher has 2 convolutions, expected at least 23" in said
