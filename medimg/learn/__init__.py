"""Transfer learning: classifiers on pretrained backbones, their training, their checkpoints."""

from medimg.learn.calibrating import calibrate
from medimg.learn.calibration import Calibration
from medimg.learn.checkpoint import load
from medimg.learn.classifier import TransferClassifier
from medimg.learn.embedding import Embeddings, embed
from medimg.learn.finetune import fine_tune
from medimg.learn.history import FitResult
from medimg.learn.probe import HeadFit, fit_head
from medimg.learn.rates import RateSearch, lr_find
from medimg.learn.registry import register_backbone
from medimg.learn.shift import domain_shift
from medimg.learn.shift_report import ShiftReport

__all__ = [
    "Calibration",
    "Embeddings",
    "FitResult",
    "HeadFit",
    "RateSearch",
    "ShiftReport",
    "TransferClassifier",
    "calibrate",
    "domain_shift",
    "embed",
    "fine_tune",
    "fit_head",
    "load",
    "lr_find",
    "register_backbone",
]
