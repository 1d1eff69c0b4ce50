from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mhpc.core.tiny import TinyBackbone, folded
from mhpc.training.distill import Distillation, Recipe, export, learning_rate
from mhpc.training.pictures import Crops, series
from mhpc.training.teacher import Teacher
from tests.mhpc.training.toy_teacher import separable_teacher, toy_teacher

CPU = torch.device("cpu")
RECIPE = Recipe(
    teacher="tests.mhpc.training.toy_teacher:toy_teacher",
    teacher_layers=("fine", "coarse"),
    teacher_shift=0,
    steps=4,
    batch=2,
    crop=32,
    pictures=3,
    seed=0,
)


FROM_TEACHER = replace(RECIPE, teacher="separable", steps=2, crop=64, from_teacher=True)


def distillation(recipe: Recipe = RECIPE) -> Distillation:
    network = separable_teacher() if recipe.from_teacher else toy_teacher()
    teacher = Teacher(network, recipe.teacher_layers, CPU)
    pictures = series(recipe.pictures, recipe.seed, side=48)
    crops = Crops(pictures, [], recipe.crop + abs(recipe.teacher_shift), recipe.seed)
    return Distillation(recipe, teacher, crops, CPU)


def weights(run: Distillation) -> dict[str, torch.Tensor]:
    return run.modules.state_dict()


def assert_equal_weights(one: Distillation, other: Distillation) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


@pytest.mark.parametrize("recipe", [RECIPE, FROM_TEACHER])
def test_two_runs_of_one_recipe_agree_bit_for_bit(recipe: Recipe) -> None:
    one, other = distillation(recipe), distillation(recipe)
    one.run()
    other.run()
    assert one.step_ == recipe.steps
    assert_equal_weights(one, other)


def test_another_seed_gives_another_student() -> None:
    one, other = distillation(), distillation(replace(RECIPE, seed=1))
    assert not torch.equal(next(one.student.parameters()), next(other.student.parameters()))


def test_a_start_from_the_teacher_trains_layer3_alone_and_is_better_than_a_random_one(tmp_path: Path) -> None:
    run = distillation(FROM_TEACHER)
    before = {name: tensor.clone() for name, tensor in run.student.state_dict().items()}
    first = run.step()
    changed = {name.split(".")[0] for name, t in run.student.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"layer3"}
    other = distillation(FROM_TEACHER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        other.student.layer3.load_state_dict(TinyBackbone().layer3.state_dict())
    assert first < 0.8 * other.step()
    export(run.student, tmp_path / "tiny.safetensors")
    assert load_file(tmp_path / "tiny.safetensors").keys() == TinyBackbone().state_dict().keys()


@pytest.mark.parametrize("recipe", [RECIPE, FROM_TEACHER])
def test_a_resumed_run_ends_as_an_unbroken_one(recipe: Recipe, tmp_path: Path) -> None:
    unbroken = distillation(recipe)
    unbroken.run()
    broken = distillation(recipe)
    broken.step()
    broken.save(tmp_path / "c.safetensors")
    resumed = distillation(recipe)
    resumed.resume(tmp_path / "c.safetensors")
    assert resumed.step_ == 1
    resumed.run()
    assert_equal_weights(unbroken, resumed)


def test_a_checkpoint_of_another_recipe_is_refused_naming_the_difference(tmp_path: Path) -> None:
    distillation().save(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="batch is 3, the checkpoint's 2"):
        distillation(replace(RECIPE, batch=3)).resume(tmp_path / "c.safetensors")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    export(TinyBackbone(batch_norm=True), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is no training checkpoint"):
        distillation().resume(tmp_path / "weights.safetensors")


def test_distilling_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    run = distillation(replace(RECIPE, steps=30, warmup_steps=5))
    same = run.crops.batch(1, 2)
    monkeypatch.setattr(run.crops, "batch", lambda index, size: same)
    losses: list[float] = []
    run.run(on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_the_training_heads_stay_out_of_the_exported_file(tmp_path: Path) -> None:
    run = distillation()
    run.step()
    export(run.student, tmp_path / "tiny.safetensors")
    state = load_file(tmp_path / "tiny.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    loaded = TinyBackbone()
    loaded.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(images), folded(run.student)(images), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("shift", "student_from", "teacher_from"), [(4, 4, 0), (-3, 0, 3), (0, 0, 0)])
def test_the_teacher_sees_the_crop_moved_by_its_shift(shift: int, student_from: int, teacher_from: int) -> None:
    run = distillation(replace(RECIPE, teacher_shift=shift))
    student_view, teacher_view = run._views(1, 2)
    whole = run.crops.batch(1, 2)
    assert torch.equal(student_view, whole[..., student_from : student_from + 32, student_from : student_from + 32])
    assert torch.equal(teacher_view, whole[..., teacher_from : teacher_from + 32, teacher_from : teacher_from + 32])


def test_teacher_maps_at_other_strides_are_refused() -> None:
    with pytest.raises(ValueError, match="choose teacher layers at strides 8 and 16"):
        distillation(replace(RECIPE, teacher_layers=("fine", "fine"))).step()


def test_the_learning_rate_warms_up_and_then_falls_to_zero() -> None:
    recipe = replace(RECIPE, steps=1000, warmup_steps=10)
    rates = [learning_rate(recipe, step) for step in range(1001)]
    assert rates[0] == pytest.approx(3e-4)
    assert max(rates) == rates[10] == pytest.approx(3e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[1000] == pytest.approx(0, abs=1e-12)
