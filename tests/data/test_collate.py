"""Batches of series of unequal length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import medimg
from medimg.errors import DatasetError


def bags() -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(n, 3, 32, 32, generator=generator), n % 2) for n in (2, 4, 1)]


def test_bags_are_padded_as_the_classifier_takes_them() -> None:
    items = bags()
    images, labels, mask = medimg.collate(items)
    assert labels is not None
    assert mask is not None
    assert images.shape == (3, 4, 3, 32, 32)
    assert mask.sum(dim=1).tolist() == [2, 4, 1]
    assert not images[~mask].any()
    assert labels.tolist() == [0, 0, 1]
    for pool in ("mean", "max", "attention"):
        model = medimg.TransferClassifier(
            "squeezenet1_1",
            classes=["a", "b"],
            weights=None,
            pool=pool,
            preprocess=medimg.Preprocess(size=32),
        ).eval()
        with torch.no_grad():
            together = model(images, mask)
            alone = torch.cat([model(bag[None]) for bag, _ in items])
        assert torch.allclose(together, alone, atol=1e-4)


def test_equal_items_need_no_mask() -> None:
    image = torch.rand(3, 8, 8)
    for item in (image, image[None], torch.rand(1, 4, 8, 8), torch.rand(5)):
        batch = medimg.collate([(item, torch.tensor([0.0, 1.0])), (item, torch.tensor([1.0, 1.0]))])
        assert torch.equal(batch.images, torch.stack([item, item]))
        assert batch.mask is None
        assert batch.labels is not None
        assert batch.labels.shape == (2, 2)
    assert medimg.collate([image, image]).labels is None


def test_it_is_the_collate_fn_of_a_loader() -> None:
    loader: DataLoader[Any] = DataLoader(bags(), batch_size=2, collate_fn=medimg.collate, num_workers=0)  # type: ignore[arg-type]
    shapes = [(tuple(batch.images.shape), batch.mask is None) for batch in loader]
    assert shapes == [((2, 4, 3, 32, 32), False), ((1, 1, 3, 32, 32), True)]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "found none"),
        ([(torch.zeros(2, 3, 8, 8), 0), (torch.zeros(2, 3, 8, 9), 0)], "one size"),
        ([(torch.zeros(3, 8, 8), 0), (torch.zeros(2, 3, 8, 8), 0)], "one size"),
        ([(torch.zeros(3, 8, 8), 0), torch.zeros(3, 8, 8)], "labels for all"),
        ([(torch.zeros(3, 8, 8), "cat")], "labels must be"),
        ([("image.png", 0)], "expected items"),
        ([5], "expected items"),
        ([(torch.tensor(1.0), 0)], "a number"),
    ],
)
def test_other_items_are_refused(items: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        medimg.collate(items)
