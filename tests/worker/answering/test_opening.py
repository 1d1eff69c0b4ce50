import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.helpers import encoded, item, message, picture, small_settings
from worker.answering.features import FeatureCache
from worker.answering.opening import Opening
from worker.engine import Engine
from worker.message import Image, Rejected, encode_batch
from worker.metrics import Metrics
from worker.streams.line_streams import Entry


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


def dense(grey: int = 0) -> bytes:
    """A PNG of a few kilobytes that is a megapixel."""
    return encoded(np.full((1000, 1000), grey, np.uint8))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the pictures that are decoded, each time."""
    decoded: list[str] = []
    monkeypatch.setattr("worker.answering.opening.failpoint", lambda _, identity: decoded.append(identity))
    return decoded


def test_a_picture_that_takes_longer_than_its_bytes_tell_is_not_decoded_again_for_learning(
    opening: Opening, engine: Engine, decoded: list[str]
) -> None:
    broken = dense()[:500]
    batch = message(item("dense", data=dense()), item("broken", data=broken), item("small"))
    images = opening.images(entry := Entry("1-0", batch), [])
    found = opening.prepared(images)
    assert [type(x) is Rejected for x in found] == [False, True, False]
    expected = engine.forward([x for x in found if isinstance(x, Tensor)])
    decoded.clear()
    torch.testing.assert_close(torch.cat(list(opening.extract("a", entry))), expected)
    assert [image.id for image in opening.usable("a", entry)] == ["dense", "small"]
    assert decoded == ["small", "small"]


def test_learning_itself_decodes_such_a_picture_once(opening: Opening, decoded: list[str]) -> None:
    entry = Entry("1-0", message(item("dense", data=dense()), item("broken", data=dense()[:500]), item("small")))
    list(opening.extract("a", entry))
    assert [image.id for image in opening.usable("a", entry)] == ["dense", "small"]
    assert decoded == ["dense", "broken", "small", "small"]


def test_the_pixels_of_so_many_such_pictures_are_kept_as_there_is_room_for(
    engine: Engine, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    H, W = engine.settings.input_shape
    monkeypatch.setattr("worker.answering.opening.KEPT_BYTES", 2 * 3 * H * W)
    opening = Opening(small_settings(), engine, FeatureCache(), Metrics(), {})
    batch = message(*(item(str(n), data=dense(n)) for n in range(3)))
    opening.prepared(opening.images(Entry("1-0", batch), []))
    opening.usable("a", Entry("1-0", message(item("2", data=dense(2)), item("1", data=dense(1)))))
    assert decoded == ["0", "1", "2"]
    opening.usable("a", Entry("1-0", message(item("0", data=dense(0)))))
    assert decoded == ["0", "1", "2", "0"]


def test_learning_leaves_to_a_thread_what_it_would_take_long_to_decode(
    opening: Opening, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.answering.opening.ITSELF_BYTES", 2 * 3_000_000 // 16)  # two megapixels
    few, many = (Entry(f"{n}-0", message(*(item(str(i), data=dense(i)) for i in range(n)), item("a"))) for n in (2, 3))
    assert opening.too_long("a", few) == []
    images = opening.too_long("a", many)
    assert [image.id for image in images] == ["0", "1", "2"]
    opening.cache.put("a", many.id, torch.zeros(4, 64, 384))
    assert opening.too_long("a", many) == []
    assert opening.cache.pop("a", many.id) is not None
    assert opening.too_long("a", many) == images
    opening.prepared(images)
    assert opening.too_long("a", many) == []


def test_the_same_bytes_of_another_shape_are_another_picture(opening: Opening) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 3 * 300 * 400, np.uint8).tobytes()
    wide, high = (Image(str(shape), "raw", pixels, shape) for shape in ((300, 400, 3), (400, 300, 3)))
    opening.keep(wide, *opening.prepared([wide]))
    _, (_, _, found) = opening._decoded(Entry("1-0", encode_batch([wide, high])))
    (expected,) = opening.prepared([high])
    assert isinstance(expected, Tensor)
    assert torch.equal(found, expected)


def test_pictures_of_many_bytes_are_too_long_and_kept_once_they_are_decoded_for_learning(
    opening: Opening, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = encoded(np.random.default_rng(0).integers(0, 256, (600, 600), np.uint8))  # as many bytes as pixels
    entry = Entry("1-0", message(item("noise", data=noise), item("a")))
    assert opening.too_long("a", entry) == []
    monkeypatch.setattr("worker.answering.opening.ITSELF_BYTES", len(noise) - 1)
    images = opening.too_long("a", entry)
    opening.keep(images[0], *opening.prepared(images))
    assert [image.id for image in opening.usable("a", entry)] == ["noise", "a"]
    assert decoded == ["noise", "a"]


def test_where_nothing_is_to_be_learned_no_pixels_are_kept(opening: Opening, decoded: list[str]) -> None:
    images = opening.images(entry := Entry("1-0", message(item("dense", data=dense()))), [])
    for keep, times in ((True, 1), (False, 3), (True, 4)):
        opening.let_keep(keep)
        opening.prepared(images)
        opening.usable("a", entry)
        assert decoded == times * ["dense"]
