import pytest
import torch
import torchvision
from torch import Tensor, nn

from mhpc.core.backbones import BackboneError
from mhpc.core.tiny import LAYER3, TinyBackbone
from mhpc.training.inherit import inherit
from tests.mhpc.training.toy_teacher import SeparableTeacher, separable_teacher

SIDE = 192


def images(side: int = SIDE, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def heir_of(teacher: nn.Module) -> TinyBackbone:
    student = TinyBackbone().eval()
    inherit(student, teacher, images(seed=1))
    return student


def teachers_maps(teacher: SeparableTeacher, x: Tensor) -> tuple[Tensor, Tensor]:
    maps: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, name=name: maps.update({name: output}))
        for name, layer in (("fine", teacher.fine), ("coarse", teacher.coarse))
    ]
    teacher(x)
    for handle in handles:
        handle.remove()
    return maps["fine"], maps["coarse"]


def without_border(maps: Tensor, cells: int) -> Tensor:
    """Student and teacher pad on other sides."""
    return maps[..., cells:-cells, cells:-cells]


@torch.inference_mode()
def test_maps_at_stride_8_are_the_teachers() -> None:
    teacher = separable_teacher()
    student = heir_of(teacher)
    x = images()
    ours = student.layer2(student.layer1(student.stem(x)))
    theirs = teachers_maps(teacher, x)[0]
    torch.testing.assert_close(without_border(ours, 5), without_border(theirs, 5), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_teacher_that_is_as_wide_is_copied_whole() -> None:
    teacher = separable_teacher(width=LAYER3)
    student = heir_of(teacher)
    x = images(496)
    ours, theirs = student(x), teachers_maps(teacher, x)[1]
    torch.testing.assert_close(without_border(ours, 11), without_border(theirs, 11), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_of_channels_that_come_twice_one_is_kept_and_nothing_is_lost() -> None:
    narrow = separable_teacher(width=LAYER3)
    twice = separable_teacher(width=2 * LAYER3)
    state = twice.state_dict()
    for name, source in narrow.state_dict().items():
        rows, C, *kernel = state[name].shape if source.dim() == 4 else (len(state[name]), 0)
        if kernel == [1, 1] and C == 2 * LAYER3:  # each input comes twice: half of the weight to either
            source = torch.cat([source, source], dim=1) / 2
        state[name] = torch.cat([source] * (rows // len(source)))
    twice.load_state_dict(state)
    x = images(496)
    ours, theirs = heir_of(twice)(x), teachers_maps(narrow, x)[1]
    ours, theirs = (without_border(m, 11).transpose(0, 1).flatten(1) for m in (ours, theirs))  # [C, cells]
    closest = torch.cdist(theirs, ours).amin(1)
    assert float(closest.norm() / theirs.norm()) < 0.02


@pytest.mark.parametrize(
    ("teacher", "complaint"),
    [
        (torchvision.models.resnet50(weights=None), "it can start only from a teacher of its own layout"),
        (torchvision.models.alexnet(weights=None), r"has 5 convolutions, expected at least 23"),
    ],
)
def test_a_teacher_of_another_layout_is_refused(teacher: nn.Module, complaint: str) -> None:
    with pytest.raises(BackboneError, match=complaint):
        heir_of(teacher)


def test_batch_norm_that_is_not_folded_is_refused() -> None:
    with pytest.raises(BackboneError, match="fold the batch norm of student and teacher"):
        inherit(TinyBackbone(batch_norm=True), separable_teacher(), images())
