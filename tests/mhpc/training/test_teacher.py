import pytest
import torch

from mhpc.training.teacher import Teacher, load_teacher
from tests.mhpc.training.toy_teacher import toy_teacher

TOY = "tests.mhpc.training.toy_teacher"


def test_targets_are_standardised_per_channel() -> None:
    teacher = Teacher(load_teacher(f"{TOY}:toy_teacher"), ("fine", "coarse"), torch.device("cpu"))
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    teacher.standardise(images)
    for maps, channels in zip(teacher.targets(images), (5, 7), strict=True):
        assert maps.shape[1] == channels
        torch.testing.assert_close(maps.mean(dim=(0, 2, 3)), torch.zeros(channels), atol=1e-4, rtol=0)
        torch.testing.assert_close(maps.std(dim=(0, 2, 3)), torch.ones(channels), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("toy_teacher", 'expected "package.module:function"'),
        ("no_such_package:f", "is its folder on PYTHONPATH"),
        (f"{TOY}:no_such_function", "is its folder on PYTHONPATH"),
        (f"{TOY}:no_network", "gave str, expected a torch.nn.Module"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_refused(reference: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_teacher(reference)


def test_an_unknown_teacher_layer_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(ValueError, match="teacher has no layer block5; its children are fine, coarse"):
        Teacher(toy_teacher(), ("fine", "block5"), torch.device("cpu"))
