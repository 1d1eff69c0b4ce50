"""Patch features of made-up parts."""

import torch
from torch import Tensor

from mhpc.core.learner import OnePassLearner

P, D, K = 16, 8, 60


def pictures(B: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Patch features [B, P, D] of parts: each position looks its own way, with some noise."""
    positions = torch.randn(P, D, generator=torch.Generator().manual_seed(99)) * 3
    return positions + torch.randn(B, P, D, generator=torch.Generator().manual_seed(seed)) + shift


def defective(B: int, seed: int = 0) -> Tensor:
    """The same, one patch of each out of place."""
    features = pictures(B, seed)
    features[torch.arange(B), torch.arange(B) % P] += 20 / D**0.5
    return features


def learner(bank_size: int = K, top_k: int = 1) -> OnePassLearner:
    return OnePassLearner(bank_size, top_k=top_k)


def assert_same(a: OnePassLearner, b: OnePassLearner) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
