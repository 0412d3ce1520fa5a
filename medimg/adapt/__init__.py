"""
Models for scanners and sites that they were not trained on.

The methods are passed to ``medimg.fine_tune(adapt=...)``: with images of the target and without their labels
(:class:`CORAL`, :class:`MMD`, :class:`DANN`, :class:`CDAN`, :class:`MultiSource`, :class:`AdaBN`), or against
small changes of any picture (:class:`PGD`). Their losses are functions that can be used alone.
"""

from medimg.adapt.adversarial import (
    adversarial_loss,
    entropy_weights,
    gradient_reversal,
    mdan_objective,
    multilinear_map,
    ramp,
)
from medimg.adapt.base import Adaptation, AdaptationTerm, Side
from medimg.adapt.confusing import CDAN, DANN
from medimg.adapt.distances import proxy_a_distance
from medimg.adapt.domains import domains_of
from medimg.adapt.losses import coral_loss, mmd_loss, moment_distance
from medimg.adapt.matching import CORAL, MMD
from medimg.adapt.multisource import MultiSource
from medimg.adapt.normalization import AdaBN
from medimg.adapt.robust import PGD

__all__ = [
    "CDAN",
    "CORAL",
    "DANN",
    "MMD",
    "PGD",
    "AdaBN",
    "Adaptation",
    "AdaptationTerm",
    "MultiSource",
    "Side",
    "adversarial_loss",
    "coral_loss",
    "domains_of",
    "entropy_weights",
    "gradient_reversal",
    "mdan_objective",
    "mmd_loss",
    "moment_distance",
    "multilinear_map",
    "proxy_a_distance",
    "ramp",
]
