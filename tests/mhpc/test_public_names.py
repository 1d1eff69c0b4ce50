"""The two samples of the design, word for word: they ask for pretrained weights, so torch hub's cache is prefilled."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader

SIDE = 224


@pytest.fixture
def hub_with_wide_resnet50(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that holds wide_resnet50_2's state dict, random, under the name that torchvision looks for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.Wide_ResNet50_2_Weights.IMAGENET1K_V1
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = torchvision.models.wide_resnet50_2(weights=None).state_dict()
    torch.save(state, checkpoints / weights.url.rpartition("/")[2])


def images(B: int, seed: int) -> Tensor:
    return torch.rand(B, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("hub_with_wide_resnet50")
def test_the_first_sample_runs_as_written(tmp_path: Path) -> None:
    device, path = torch.device("cpu"), tmp_path / "model.safetensors"
    train_dataloader: Any = DataLoader(list(images(4, 0)), batch_size=2)  # type: ignore[arg-type]  # a list serves as a map-style dataset
    items = [
        {"image": image, "is_anomaly": i % 2, "mask": torch.zeros(1, SIDE, SIDE)}
        for i, image in enumerate(images(3, seed=1))
    ]
    test_dataloader: Any = DataLoader(items, batch_size=2)  # type: ignore[arg-type]  # a list serves as a map-style dataset
    # isort: off
    # fmt: off
    from mhpc.core.mh_patch_core import (MHPatchCore, PatchCoreAlgorithm, PatchCoreAggregation,
                                         PatchCoreFeatureReduction, PatchCoreDistance)
    from mhpc.core.backbones import BackboneName
    model = MHPatchCore(backbone=BackboneName.wideresnet50, embedding_layers=["layer2", "layer3"], device=device,
                        input_shape=(224, 224), pretrain_embed_dimension=1024, target_embed_dimension=1024, patchsize=3,
                        algorithm=PatchCoreAlgorithm.VANILLA, aggregation=PatchCoreAggregation.GREEDY,
                        feature_reduction=PatchCoreFeatureReduction.NONE, distance=PatchCoreDistance.EUCLIDEAN,
                        coreset_percentage=0.1)
    model.fit(train_dataloader)
    scores, masks, labels_gt, masks_gt = model.predict(test_dataloader)  # type: ignore[misc]  # four values, from a loader
    # fmt: on
    # isort: on
    assert scores.shape == (3,)
    assert masks.shape == (3, SIDE, SIDE)
    assert labels_gt == [0, 1, 0]
    assert len(masks_gt) == 3
    assert model.learner_.memory_.shape == (4 * 28 * 28 // 10, 1024)
    prediction = model.predict(images(3, seed=1))
    torch.testing.assert_close(prediction.scores, scores)
    model.save(path)
    loaded = MHPatchCore.load(path, device=device)
    assert torch.equal(loaded.predict(images(3, seed=1)).scores, prediction.scores)


def test_partial_fit_runs_as_written() -> None:
    # isort: off
    from mhpc.core.mh_patch_core import MHPatchCore
    from mhpc.core.backbones import BackboneName

    # isort: on
    model = MHPatchCore(BackboneName.tiny, weights="bundled", input_shape=(64, 64), bank_size=50)
    small = images(4, 0)[:, :, :64, :64]
    model.partial_fit(small)
    prediction = model.predict(small)
    assert prediction.scores.shape == (4,)
    assert prediction.masks.shape == (4, 64, 64)


def test_the_second_sample_runs_as_written() -> None:
    device, percentage = torch.device("cpu"), 0.1
    batch = torch.randn(300, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.randn(500, 200, generator=torch.Generator().manual_seed(1))
    # isort: off
    # fmt: off
    from mhpc.mahalanobis import OnlineCovariance, CovarianceCholesky
    cov = OnlineCovariance(num_features=128, dtype=torch.float64)
    cov.update(batch)
    other = OnlineCovariance(num_features=128, dtype=torch.float64).update(batch + 1)
    cov_matrix = cov.covariance(unbiased=True)
    L = CovarianceCholesky(jitter=0.0).compute(cov_matrix)
    cov.merge(other)

    from mhpc import IncrementalPCA, MiniBatchKMeans
    from mhpc.sampler import IdentitySampler, RandomSampler, GreedyCoresetSampler, ApproximateGreedyCoresetSampler
    chosen = GreedyCoresetSampler(percentage=0.1, device=device, dimension_to_project_features_to=128).run(features)
    approximate = ApproximateGreedyCoresetSampler(percentage, device, number_of_starting_points=10,
                                                  dimension_to_project_features_to=128)
    # fmt: on
    # isort: on
    torch.testing.assert_close(cov_matrix, torch.cov(batch.T), rtol=0, atol=1e-12)
    torch.testing.assert_close(L @ L.T, cov_matrix)
    torch.testing.assert_close(cov.covariance(), torch.cov(torch.cat([batch, batch + 1]).T), rtol=0, atol=1e-12)
    assert chosen.shape == approximate.run(features).shape == RandomSampler(0.1).run(features).shape == (50, 200)
    assert IdentitySampler().run(features).shape == (500, 200)
    assert IncrementalPCA(3).partial_fit(features).transform(features).shape == (500, 3)
    assert MiniBatchKMeans(4).partial_fit(features).predict(features).shape == (500,)
