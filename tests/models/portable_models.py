"""Models with strong logits, and calibrations of every method, for tests of exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import medimg
from medimg import Calibration, Ensemble, Preprocess, TransferClassifier
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.operating_points import OperatingPoint
from medimg.models.backbones.heads import feature_count
from medimg.models.digest import members_digest, parameters_digest

NETWORK = "portable"
ENCODER = "portable_encoder"
RECIPE = Preprocess(size=32, window="percentile")
GRAY = Preprocess(size=(32, 24), window="percentile", channels="single", mean=0.4, std=0.2)
CURVE = ((-3.0, -0.5, 0.25, 2.0), (-2.0, -0.75, -0.25, 1.5))


def make_network() -> nn.Module:
    """Few layers, so that exporting takes little."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Encoder(nn.Module):
    """Patches, and one layer of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        logits: torch.Tensor = self.head(self.layer(tokens).mean(dim=1))
        return logits


def portable_model(seed: int = 0, *, backbone: str = NETWORK, **fields: Any) -> TransferClassifier:
    """A model in evaluation mode whose logits are several units."""
    settings: dict[str, Any] = {"classes": ("a", "b"), "weights": None, "preprocess": RECIPE, **fields}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TransferClassifier(backbone, **settings)
        nn.init.normal_(model.head.weight, std=2.0)
        if model.head.bias is not None:
            nn.init.normal_(model.head.bias)
    return model.eval()


def register() -> None:
    medimg.register_backbone(NETWORK, make_network, size=32)
    medimg.register_backbone(ENCODER, Encoder, size=32)


def calibration_fields(method: str, task: str, classes: int) -> dict[str, Any]:
    """Fields of a calibration by which a wrong sign, order or axis changes probabilities."""
    each = tuple(0.5 + 0.4 * n for n in range(classes))
    several = task == "multilabel" or method == "vector"
    found: dict[str, Any] = {
        "method": method,
        "temperature": each if several else (1.7,),
        "offset": tuple(0.3 - 0.2 * n for n in range(classes)),
    }
    if method in ("platt", "vector"):
        found["bias"] = tuple(0.2 * n - 0.1 for n in range(classes))
    if method == "isotonic":
        count = 1 if task == "multiclass" and classes == 2 else classes
        found["curves"] = tuple(
            (tuple(x + 0.1 * n for x in CURVE[0]), tuple(y - 0.2 * n for y in CURVE[1])) for n in range(count)
        )
    return found


def calibrate(
    model: TransferClassifier, method: str, *, unit: str = "series", detector: bool = False
) -> TransferClassifier:
    """Give a model a calibration, with thresholds, sets and, if asked for, out-of-distribution scores."""
    names = model.classes[1:] if (model.task, len(model.classes)) == ("multiclass", 2) else model.classes
    points = tuple(OperatingPoint(name, 0.4, 0.9, 0.8, 9, 9) for name in names)
    count = 1 if model.task == "multiclass" else len(model.classes)
    model.calibration = Calibration(
        unit=unit,
        items=40,
        patients=20,
        loss=(0.7, 0.5),
        operating_point="youden",
        points=points,
        coverage=0.9,
        quantiles=(0.8,) * count,
        bins=(),
        parameters_sha256=parameters_digest(model),
        members_sha256=members_digest(model),
        outliers=make_detector(feature_count(model)) if detector else None,
        **calibration_fields(method, model.task, len(model.classes)),
    )
    return model


def make_detector(features: int) -> MahalanobisDetector:
    generator = np.random.default_rng(0)
    rows = generator.normal(0, 0.3, (60, features)).astype(np.float32)
    held_out = generator.normal(0, 0.6, (50, features)).astype(np.float32)
    return MahalanobisDetector.fit(rows, np.arange(60) % 2, held_out)


def strengthen(model: TransferClassifier, images: NDArray[np.float32], *, deviation: float = 3.0) -> float:
    """
    Let all layers of a random network matter, and logits have a standard deviation over images (N, C, H, W).

    Return the spread of its embeddings over the images, as a fraction of their size: of embeddings that are
    nearly equal, logits amplify what single precision rounds.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.backbone.modules():
            for key, value in module.named_parameters(recurse=False):
                _activate(module, key, value, generator)
        inputs = model.preprocess.normalize(torch.from_numpy(images))
        _fit_statistics(model.backbone, inputs)
        bags = inputs if model.pool == "none" else inputs[:, None]
        embeddings = torch.cat([model.eval().embed(one[None]) for one in bags])
        weight = torch.randn(len(model.classes), embeddings.shape[1], generator=generator)
        weight *= deviation / (embeddings @ weight.T).std(dim=0)[:, None]
        model.head.weight.copy_(weight.reshape(model.head.weight.shape))
        assert model.head.bias is not None
        model.head.bias.copy_(-(embeddings @ weight.T).mean(dim=0))
    return float(embeddings.std(dim=0).norm() / embeddings.norm(dim=1).mean())


def _activate(module: nn.Module, key: str, value: torch.Tensor, generator: torch.Generator) -> None:
    """Scale weights so that signals keep their size, and replace constants, such as scales of 0 or 1e-6."""
    if not value.numel():
        return
    inputs = value[0].numel() if value.ndim > 1 else 1
    noise = torch.randn(value.shape, generator=generator)
    if value.numel() == 1 or float(value.std()) <= 1e-12:
        is_matrix = value.ndim > 1 and inputs > 1
        scale = torch.where(value == 0, 0.0, value.clamp_min(0.2))
        value.copy_(noise * inputs**-0.5 if is_matrix else scale + 0.05 * noise)
    elif isinstance(module, nn.Linear | nn.Conv2d) and key == "weight":
        # most convolutions have a ReLU behind them, which takes half of the signal
        gain = 2**0.5 if isinstance(module, nn.Conv2d) else 1.0
        value.mul_(gain * inputs**-0.5 / value.std())


def _fit_statistics(network: nn.Module, inputs: torch.Tensor) -> None:
    """Set the statistics of batch normalization to those of the images."""
    norms = [m for m in network.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean of all batches
        module.train()
    if norms:
        network(inputs)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        module.eval()


def make_ensemble(**fields: Any) -> Ensemble:
    """Two members with different calibrations, and a calibration of their mean."""
    task = fields.get("task", "multiclass")
    members = [portable_model(seed, **fields) for seed in (1, 2)]
    calibrate(members[0], "temperature")
    ensemble = Ensemble(members)
    calibrate(ensemble, "platt" if task == "multilabel" else "isotonic", detector=True)
    return ensemble


#: Models of all kinds, in evaluation mode.
MODELS: dict[str, Callable[[], TransferClassifier]] = {
    "images": lambda: portable_model(backbone=ENCODER),
    "attention": lambda: calibrate(
        portable_model(pool="attention", classes=("a", "b", "c")), "vector", detector=True
    ),
    "max, labels": lambda: calibrate(
        portable_model(pool="max", task="multilabel", classes=("x", "y", "z")), "platt", detector=True
    ),
    "one channel": lambda: calibrate(
        portable_model(preprocess=GRAY, in_channels=1, classes=("a", "b", "c")),
        "isotonic",
        unit="image",
        detector=True,
    ),
    "ensemble": lambda: make_ensemble(pool="mean"),
}


def blurred(count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Images (count, C, H, W) that differ in more than noise."""
    coarse = torch.from_numpy(intensities((count, shape[0], 5, 5)))
    fine = nn.functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1)
    return fine.numpy()


def intensities(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)
