import torch

from worker.answering.features import FeatureCache


def test_features_that_were_put_are_given_once() -> None:
    cache = FeatureCache()
    features = torch.ones(2, 3, 4)
    cache.put("a", "1-0", features)
    assert cache.pop("b", "1-0") is None
    assert cache.pop("a", "1-0") is features
    assert cache.pop("a", "1-0") is None
    assert cache.size == 0


def test_the_oldest_features_stay_where_room_is_short_since_learning_wants_them_next() -> None:
    cache = FeatureCache(capacity=1000)
    for number in range(5):
        cache.put("a", f"{number}-0", torch.zeros(100))  # 400 bytes
        assert cache.size <= 1000
    assert [cache.pop("a", f"{number}-0") is not None for number in range(5)] == [True, True, False, False, False]
    assert cache.size == 0


def test_the_entries_next_in_turn_are_counted_until_they_are_of_so_many_images() -> None:
    cache = FeatureCache()
    for number, images in enumerate((3, 3, 1)):
        cache.put("a", f"{number}-0", torch.zeros(images, 2, 4))
    assert [cache.entries("a", images) for images in (1, 3, 4, 6, 7, 100)] == [1, 1, 2, 2, 3, 3]
    assert cache.entries("b", 8) == 0


def test_a_line_that_learns_no_more_frees_its_room_alone() -> None:
    cache = FeatureCache(capacity=1000)
    cache.put("a", "1-0", torch.zeros(100))
    cache.put("b", "1-0", torch.zeros(100))
    cache.drop("a")
    assert cache.pop("a", "1-0") is None
    assert cache.pop("b", "1-0") is not None


def test_features_larger_than_the_room_are_not_kept_and_push_nothing_out() -> None:
    cache = FeatureCache(capacity=1000)
    cache.put("a", "1-0", torch.zeros(100))
    cache.put("a", "2-0", torch.zeros(1000))
    assert cache.pop("a", "2-0") is None
    assert cache.pop("a", "1-0") is not None


def test_features_put_again_take_the_place_of_the_old_ones() -> None:
    cache = FeatureCache()
    cache.put("a", "1-0", torch.zeros(100))
    cache.put("a", "1-0", torch.ones(50))
    assert cache.size == 200
    cache.put("a", "1-0", torch.ones(10))
    again = cache.pop("a", "1-0")
    assert again is not None
    assert len(again) == 10
