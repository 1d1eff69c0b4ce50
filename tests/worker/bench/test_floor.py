import pytest

from worker.bench.floor import Shape, floor_of, products

SHAPE = Shape(patches=784, width=384, components=100, anchors=6000)


def test_products_are_counted_in_multiplications_and_additions() -> None:
    assert products(SHAPE, learning=False) == pytest.approx(
        {"whitening": 2 * 784 * 384 * 100, "neighbours": 0.05 * 2 * 784 * 100 * 6000}
    )
    assert products(SHAPE, learning=True)["scatter"] == pytest.approx(0.25 * 2 * 784 * 384**2)


def test_on_a_cpu_the_times_add_up() -> None:
    floor = floor_of(SHAPE, False, forward=200, decode=1000, flop_per_second=1e11, overlapped=False)
    products_ms = sum(floor.flop.values()) / 1e8
    assert floor.milliseconds == pytest.approx(5 + 1 + products_ms)
    assert floor.images_per_second == pytest.approx(1000 / floor.milliseconds)


def test_beside_a_gpu_the_longer_of_computing_and_decoding_counts() -> None:
    slow, fast = (floor_of(SHAPE, False, 2000, decode, 1e13, overlapped=True) for decode in (500, 5000))
    assert slow.milliseconds == pytest.approx(2)
    assert fast.milliseconds == pytest.approx(0.5 + fast.products_ms)
