"""Transfer learning: classifiers on pretrained backbones, their training, their checkpoints."""

from medimg.learn.checkpoint import load
from medimg.learn.classifier import TransferClassifier
from medimg.learn.finetune import fine_tune
from medimg.learn.history import FitResult

__all__ = ["FitResult", "TransferClassifier", "fine_tune", "load"]
