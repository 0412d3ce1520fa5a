"""Everything that runs on a device, on a pretended GPU: no tensor of the CPU meets one of the GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import medimg
import medimg.errors
from benchmarks import gpu
from medimg import ImageDataset, Preprocess, TransferClassifier, adapt
from medimg.data.dataloader import EpochSampler, make_training_loader, normalize_stored
from tests.gpu.pretended_gpu import pretended_gpu
from tests.models.fakes import images
from tests.models.small_network import make_network

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: test_device uses it")
_SETTINGS: dict[str, Any] = {
    "head_epochs": 1, "epochs": 1, "batch_size": 4, "precision": "32-true", "progress": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _pretended() -> Iterator[None]:
    with pretended_gpu():
        yield


@pytest.fixture
def model() -> TransferClassifier:
    torch.manual_seed(0)
    found = TransferClassifier(
        make_network(), classes=["a", "b"], weights=None, preprocess=Preprocess(size=64), pool="mean"
    )
    found.weights_name = None
    return found


def stored_images(count: int = 12, *, colors: bool = False, first: int = 0) -> ImageDataset:
    rng = np.random.default_rng(first)
    values = rng.integers(0, 256, (count, 64, 64, *((3,) if colors else ())), np.uint8)
    labels = np.arange(count) % 2
    return ImageDataset.from_arrays(
        values,
        labels,
        classes=["a", "b"],
        patients=list(range(first, first + count)),
        preprocess=Preprocess(size=64),
    )


def test_tensors_of_two_devices_do_not_meet() -> None:
    there, here = torch.zeros(3, device="cuda"), torch.ones(3)
    assert there.device == torch.device("cuda", 0)
    assert here.to("cuda").cpu().device.type == "cpu"
    mistakes: list[Any] = [
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[there.long()],
        lambda: np.asarray(there),
        there.numpy,
        there.pin_memory,
        lambda: torch.nn.Linear(3, 3).to("cuda")(here),
    ]
    for mistake in mistakes:
        with pytest.raises((RuntimeError, TypeError)):
            mistake()


@pytest.mark.parametrize(
    "options",
    [
        {"augment": "auto", "ema": 0.9, "label_smoothing": 0.1, "balance": "loss"},
        {"mixup": 0.2, "balance": "sampler", "accumulate": 2, "channels_last": True},
        {"augment": None, "patience": 1, "layer_decay": 0.5},
    ],
    ids=["augment, average", "mixup", "plain"],
)
def test_training(model: TransferClassifier, options: dict[str, Any]) -> None:
    for home in ("cpu", "cuda"):
        trained = copy.deepcopy(model).to(home)
        medimg.fine_tune(trained, images(9), images(5, prefix="val"), **{**_SETTINGS, **options})
        assert {value.device.type for value in trained.state_dict().values()} == {home}


def test_training_on_bags_and_several_labels(model: TransferClassifier) -> None:
    bags = images(6, unit="series", lengths=(2, 3, 1, 4, 2, 2))
    medimg.fine_tune(model, bags, grad_slices=2, **_SETTINGS)
    labels = np.eye(2, dtype=np.float32)[np.arange(6) % 2]
    several = TransferClassifier(
        make_network(), classes=["a", "b"], weights=None, preprocess=Preprocess(size=64), task="multilabel"
    )
    data = type(bags)(labels, task="multilabel")
    medimg.fine_tune(several, data, balance="loss", label_smoothing=0.1, **_SETTINGS)


@pytest.mark.parametrize(
    "method",
    [adapt.DANN, adapt.CDAN, adapt.CORAL, adapt.MMD, adapt.AdaBN],
    ids=lambda method: str(method.__name__),
)
def test_adaptation(model: TransferClassifier, method: Any) -> None:
    target = images(8, prefix="target", seed=3)
    settings = {**_SETTINGS, "head_epochs": 0}
    medimg.fine_tune(model, images(8), images(4, prefix="val"), adapt=method(target), **settings)


def test_adversarial_images(model: TransferClassifier) -> None:
    medimg.fine_tune(model, images(8), adapt=adapt.PGD(), **_SETTINGS)


@pytest.mark.parametrize("colors", [False, True])
def test_stored_images_are_normalized_on_the_device(colors: bool) -> None:
    data = stored_images(colors=colors)
    plain, stored = (
        list(
            make_training_loader(
                data,
                batch_size=4,
                workers=0,
                pin_memory=True,
                sampler=EpochSampler(12, seed=0),
                stored=stored,
            )
        )
        for stored in (False, True)
    )
    for expected, found in zip(plain, stored, strict=True):
        assert found.stored
        assert found.images.is_pinned()
        assert 3 * found.images.nbytes <= expected.images.nbytes * (3 if colors else 1)
        moved = normalize_stored(found._replace(images=found.images.to("cuda")), data.preprocess)
        assert moved.images.device.type == "cuda"
        assert torch.equal(moved.images.cpu(), expected.images)
        assert torch.equal(found.labels, expected.labels)


class _Black(ImageDataset):
    """Changes its items."""

    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return torch.zeros_like(image), label


class _Around:
    """Changes the items of another dataset, and passes on whatever else it has."""

    def __init__(self, data: ImageDataset) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        image, label = self._data[index]
        return torch.zeros_like(image), label


@pytest.mark.parametrize("make", [lambda data: data, _Around], ids=["subclass", "around"])
@pytest.mark.parametrize("stored", [False, True])
def test_items_are_those_of_the_users_own_class(make: Any, stored: bool) -> None:
    data = stored_images()
    if make is not _Around:
        data.__class__ = _Black
    loader = make_training_loader(
        make(data), batch_size=4, workers=0, pin_memory=False, sampler=EpochSampler(12, seed=0), stored=stored
    )
    for batch in loader:
        assert not batch.stored
        assert not batch.images.any()


def test_batches_of_gray_and_color_images_are_normalized_before() -> None:
    recipe = Preprocess(size=64)
    data = ImageDataset.concat([stored_images(2), stored_images(2, colors=True)], patients="separate")
    loader = make_training_loader(
        data, batch_size=4, workers=0, pin_memory=False, sampler=EpochSampler(4, seed=0), stored=True
    )
    (batch,) = loader
    assert not batch.stored
    expected = torch.stack([data[int(n)][0] for n in batch.indices])
    assert torch.equal(normalize_stored(batch, recipe).images, expected)


def test_training_from_stored_images_is_that_of_the_cpu(model: TransferClassifier) -> None:
    settings = {**_SETTINGS, "augment": None}
    rows = []
    for accelerator in ("cpu", "auto"):
        settings["trainer_kwargs"] = {"accelerator": accelerator}
        result = medimg.fine_tune(copy.deepcopy(model), stored_images(), stored_images(first=12), **settings)
        rows.append([(row["train_loss"], row["val_loss"]) for row in result.history])
    assert rows[0] == rows[1]


def test_metrics_and_saliency(model: TransferClassifier) -> None:
    data = stored_images()
    there = copy.deepcopy(model).to("cuda")
    assert np.allclose(there.predict_proba(data), model.predict_proba(data), atol=1e-6)
    medimg.evaluate(there, data, saliency=True)
    with pytest.warns(medimg.errors.MedimgWarning, match="no better than chance"):
        medimg.calibrate(there, data)
    medimg.fit_head(there, data)
    medimg.lr_find(there, data, batch_size=4, steps=10)
    medimg.embed(there, data)


def test_the_benchmark() -> None:
    sizes = gpu.Sizes("cuda", (1, 6, 64, 64), 4, 4, 6, 1, 0, "resnet18")
    assert gpu.measure_preprocessing(sizes)["largest_difference"] < 1e-5
    assert gpu.measure_training(sizes)["share_of_tensors"] > 0
