import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.helpers import encoded, picture, small_settings
from worker.engine import Engine
from worker.features import FeatureCache
from worker.message import Image, Rejected
from worker.metrics import Metrics
from worker.opening import Opening


@pytest.fixture
def opening(engine: Engine) -> Opening:
    return Opening(small_settings(), engine, FeatureCache(), Metrics(), {})


def test_what_is_decoded_together_is_what_each_is_by_itself(opening: Opening, engine: Engine) -> None:
    H, W = engine.settings.input_shape
    fitting, other, grey = picture(1, H, W), picture(2, H + 3, W - 5), picture(3, H, W)[:, :, :1]
    images = [
        Image("fits", "jpeg", encoded(fitting, "JPEG")),
        Image("broken", "jpeg", encoded(fitting, "JPEG")[:200]),
        Image("another size", "jpeg", encoded(other, "JPEG")),
        Image("no JPEG", "png", encoded(fitting)),
        Image("grey", "raw", grey.tobytes(), shape=(H, W, 1)),
        Image("CMYK", "jpeg", encoded(fitting, "JPEG", "CMYK")),
    ]
    found = opening.prepared(images)
    assert [type(x) is Rejected for x in found] == [False, True, False, False, False, False]
    pixels = {image.id: x for image, x in zip(images, found, strict=True) if isinstance(x, Tensor)}
    for image in images:
        if image.id in pixels:
            assert torch.equal(pixels[image.id], opening.decode(image))
            assert pixels[image.id].shape == (3, H, W)
    np.testing.assert_array_equal(pixels["no JPEG"].permute(1, 2, 0).numpy(), fitting)
    np.testing.assert_array_equal(pixels["grey"].permute(1, 2, 0).numpy(), np.repeat(grey, 3, 2))


def test_a_picture_that_is_not_decoded_leaves_nothing_of_itself_in_another(opening: Opening, engine: Engine) -> None:
    H, W = engine.settings.input_shape
    good = Image("good", "jpeg", encoded(picture(1, H, W), "JPEG"))
    bad = Image("bad", "jpeg", good.data[: len(good.data) // 2])
    first, rejected, last = opening.prepared([good, bad, good])
    assert isinstance(rejected, Rejected)
    assert (rejected.id, rejected.reason, rejected.payload) == ("bad", "truncated", bad.data)
    assert isinstance(first, Tensor)
    assert isinstance(last, Tensor)
    assert torch.equal(first, last)
