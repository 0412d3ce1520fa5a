"""A model as one network from intensities to calibrated probabilities, which exporters can trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor, nn

from medimg.models.backbones.heads import head_logits
from medimg.models.pooling import GatedAttention, pool_embeddings

if TYPE_CHECKING:
    from medimg.calibration.logit_map import Curve, LogitMap
    from medimg.calibration.mahalanobis import MahalanobisDetector
    from medimg.models.classifier import TransferClassifier

__all__ = ["PortableNetwork", "list_outputs"]

#: Logarithm of the least probability of float64, below which an ensemble's probabilities are cut.
_LEAST_LOG: Final = -708.0


def list_outputs(model: TransferClassifier) -> tuple[str, ...]:
    """Return the names of the outputs of a model's network."""
    has_detector = model.calibration is not None and model.calibration.outliers is not None
    optional = {"ood": has_detector, "weights": model.pool != "none"}
    return ("logits", "probabilities", *(name for name, there in optional.items() if there))


class PortableNetwork(nn.Module):
    """
    Normalization, backbone, pooling, head and calibration as one network, of a model in evaluation mode.

    It takes intensities, 0 to 1: images (N, C, H, W), or with pooling bags (B, N, C, H, W). It returns logits
    and calibrated probabilities (N or B, K); of a model with an out-of-distribution detector its scores (N or
    B,); with pooling the weights of the slices (B, N), which sum to 1.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, model: TransferClassifier) -> None:
        super().__init__()
        mean, std = model.preprocess.normalization
        self.task, self.pool, self.channels = model.task, model.pool, model.preprocess.n_channels
        self.size = model.preprocess.hw
        shifts = [-m / s for m, s in zip(mean, std, strict=True)]
        # the same two steps as in preprocessing
        self.register_buffer("factor", torch.tensor([1.0 / s for s in std]).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(shifts).view(1, -1, 1, 1))
        members = getattr(model, "members", (model,))
        self.members = nn.ModuleList(_Member(one) for one in members)
        self.is_ensemble = hasattr(model, "members")
        calibration = model.calibration
        self.calibration: nn.Module | None = None
        self.detector: nn.Module | None = None
        if self.is_ensemble and calibration is not None:
            self.calibration = CalibrationLayer(calibration.logit_map, model.task, len(model.classes))
        if calibration is not None and calibration.outliers is not None:
            self.detector = DetectorLayer(calibration.outliers)

    @property
    def _each(self) -> list[_Member]:
        return cast("list[_Member]", list(self.members))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return logits, probabilities, and what else :func:`list_outputs` names."""
        bags = images.shape[:2]
        slices = images.flatten(0, 1) if self.pool != "none" else images
        slices = slices * self.factor + self.shift
        several = []
        for member in self._each:
            embeddings = member.backbone(slices)
            several.append(embeddings if self.pool == "none" else embeddings.reshape(*bags, -1))
        pooled = [member.pool(one) for member, one in zip(self._each, several, strict=True)]
        logits = [member.logits(one) for member, one in zip(self._each, pooled, strict=True)]
        if not self.is_ensemble:
            raw, calibrated = logits[0], self._each[0].calibrate(logits[0])
        else:
            raw = self._join([member.calibrate(one) for member, one in zip(self._each, logits, strict=True)])
            calibrated = raw if self.calibration is None else self.calibration(raw)
        found = [raw, calibrated.softmax(dim=1) if self.task == "multiclass" else calibrated.sigmoid()]
        if self.detector is not None:
            found.append(self.detector(torch.cat(pooled, dim=1)))
        if self.pool != "none":
            found.append(self._weigh(several))
        return tuple(found)

    def _join(self, logits: list[Tensor]) -> Tensor:
        """Return the logits of the mean of the probabilities of several logits (n, K)."""
        each = torch.stack(logits)
        several = each.new_tensor(float(len(logits))).log()
        if self.task == "multiclass":
            return (each.log_softmax(dim=2).logsumexp(dim=0) - several).clamp_min(_LEAST_LOG)
        present = nn.functional.logsigmoid(each).logsumexp(dim=0)
        return (present - nn.functional.logsigmoid(-each).logsumexp(dim=0)).clamp(_LEAST_LOG, -_LEAST_LOG)

    def _weigh(self, several: list[Tensor]) -> Tensor:
        """Return the weights (B, N) of the slices by their embeddings (B, N, F) of each member."""
        embeddings = torch.cat(several, dim=2)
        if self.pool == "attention":
            each = [
                cast("GatedAttention", member.attention).weights(one)
                for member, one in zip(self._each, several, strict=True)
            ]
            return torch.stack(each).mean(dim=0)
        if self.pool == "max":
            highest = (embeddings == embeddings.amax(dim=1, keepdim=True)).to(embeddings.dtype)
            return (highest / highest.sum(dim=1, keepdim=True)).mean(dim=2)
        ones = torch.ones_like(embeddings[:, :, 0])
        return ones / ones.sum(dim=1, keepdim=True)


class _Member(nn.Module):
    """One model's backbone, pooling, head and calibration."""

    attention: GatedAttention | None

    def __init__(self, model: TransferClassifier) -> None:
        super().__init__()
        self.backbone, self.head, self.attention = model.backbone, model.head, model.attention
        self._pool = model.pool
        calibration = model.calibration
        self._calibration: nn.Module | None = None
        if calibration is not None:
            self._calibration = CalibrationLayer(calibration.logit_map, model.task, len(model.classes))

    def pool(self, embeddings: Tensor) -> Tensor:
        """Return the pooled embeddings (B, F) of slices (B, N, F)."""
        return (
            embeddings
            if self._pool == "none"
            else pool_embeddings(embeddings, None, self._pool, self.attention)
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return logits (n, K) of embeddings (n, F)."""
        return head_logits(self.head, embeddings)

    def calibrate(self, logits: Tensor) -> Tensor:
        """Return calibrated logits (n, K)."""
        return logits if self._calibration is None else self._calibration(logits)


class CalibrationLayer(nn.Module):
    """The map of :class:`medimg.calibration.logit_map.LogitMap`, in single precision."""

    offset: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, logit_map: LogitMap, task: str, classes: int) -> None:
        super().__init__()
        self._task, self._classes = task, classes
        whole = torch.ones(classes)
        self.register_buffer("offset", torch.tensor(logit_map.offset or (0.0,)) * whole)
        # a product of float64 numbers that is rounded once
        self.register_buffer("scale", (1.0 / torch.tensor(logit_map.temperature).double()).float() * whole)
        self.register_buffer("bias", torch.tensor(logit_map.bias or (0.0,)) * whole)
        self.curves = nn.ModuleList(_CurveLayer(curve) for curve in logit_map.curves)

    def forward(self, logits: Tensor) -> Tensor:
        """Return calibrated logits (n, K) of logits (n, K)."""
        moved = logits + self.offset
        if not len(self.curves):
            return moved * self.scale + self.bias
        margins = self._find_margins(moved)
        mapped = torch.stack([curve(margins[:, n]) for n, curve in enumerate(self.curves)], dim=1)
        if self._task == "multilabel":
            return mapped
        if self._classes == 2:
            return torch.cat([torch.zeros_like(mapped), mapped], dim=1)
        return nn.functional.logsigmoid(mapped)

    def _find_margins(self, logits: Tensor) -> Tensor:
        """Return the log-odds of each class against the rest."""
        if self._task == "multilabel":
            return logits
        if self._classes == 2:
            return logits[:, 1:] - logits[:, :1]
        others = [
            torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1).logsumexp(dim=1)
            for k in range(self._classes)
        ]
        return logits - torch.stack(others, dim=1)


class _CurveLayer(nn.Module):
    """A piecewise linear curve, extended by the slope from its first to its last knot."""

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        x, y = (torch.tensor(values, dtype=torch.float64) for values in curve)
        span = float(x[-1] - x[0])
        self._outer = float(y[-1] - y[0]) / span if span > 0 else 0.0
        self.interpolate = _Interpolation(x, y)

    def forward(self, values: Tensor) -> Tensor:
        """Return mapped values (n,)."""
        inside = values.clamp(self.interpolate.lowest, self.interpolate.highest)
        mapped: Tensor = self.interpolate(inside)
        return mapped + self._outer * (values - inside)


class _Interpolation(nn.Module):
    """Linear interpolation between knots (Q,), which ascend; constant outside, as of `numpy.interp`."""

    x: Tensor
    y: Tensor
    slopes: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.lowest, self.highest = float(x[0]), float(x[-1])
        # a jump has no slope: of equal knots the last one counts
        gaps = (x[1:] - x[:-1]).clamp_min(torch.finfo(torch.float64).tiny)
        slopes = torch.where(x[1:] > x[:-1], (y[1:] - y[:-1]) / gaps, 0.0)
        self.register_buffer("x", x.float())
        self.register_buffer("y", y.float())
        self.register_buffer("slopes", torch.cat([slopes, slopes.new_zeros(1)]).float())

    def forward(self, values: Tensor) -> Tensor:
        """Return interpolated values (n,)."""
        clamped = values.clamp(self.lowest, self.highest)
        index = ((clamped[:, None] >= self.x).to(torch.int64).sum(dim=1) - 1).clamp_min(0)
        return self.y[index] + self.slopes[index] * (clamped - self.x[index])


class DetectorLayer(nn.Module):
    """
    The percentiles of :class:`medimg.calibration.mahalanobis.MahalanobisDetector`, in single precision.

    The part of a difference beyond the axes is computed itself, not as a difference of squares.
    """

    means: Tensor
    axes: Tensor
    gains: Tensor

    def __init__(self, detector: MahalanobisDetector) -> None:
        super().__init__()
        tensors = detector.tensors()
        self.register_buffer("means", tensors["means"])
        self.register_buffer("axes", tensors["axes"])
        self.register_buffer("gains", 1.0 / tensors["variances"])
        knots = tensors["knots"].double()
        self.percentile = _Interpolation(knots, torch.linspace(0, 1, len(knots), dtype=torch.float64))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the fraction (n,) of held-out images that are nearer, of embeddings (n, F)."""
        several = []
        for mean in self.means:
            difference = embeddings - mean
            along = difference @ self.axes.T
            beyond = difference - along @ self.axes
            several.append((along**2) @ self.gains[:-1] + (beyond**2).sum(dim=1) * self.gains[-1])
        found: Tensor = self.percentile(torch.stack(several).amin(dim=0))
        return found
