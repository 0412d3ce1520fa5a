"""
Domain adaptation for scanners and sites without labels, and adversarial training.

The methods are passed to ``medimg.fine_tune(adapt=...)``. :class:`CORAL`, :class:`MMD`, :class:`DANN`,
:class:`CDAN`, :class:`MultiSource` and :class:`AdaBN` use unlabeled images of the target domain; :class:`PGD`
makes a model robust against small perturbations of any image; :class:`Auto` chooses between several methods.
The loss functions can also be used alone.
"""

from medimg.adapt.adabn import AdaBN
from medimg.adapt.adversarial_losses import (
    adversarial_loss,
    entropy_weights,
    gradient_reversal,
    mdan_objective,
    multilinear_map,
    ramp,
)
from medimg.adapt.auto import Auto
from medimg.adapt.base import Adaptation, AdaptationTerm, Side
from medimg.adapt.dann import CDAN, DANN
from medimg.adapt.discrepancy import CORAL, MMD
from medimg.adapt.distances import coral_loss, mmd_loss, moment_distance, proxy_a_distance
from medimg.adapt.domain_labels import domains_of
from medimg.adapt.multi_source import MultiSource
from medimg.adapt.pgd import PGD
from medimg.adapt.target_scores import deep_embedded_risk, mutual_information

__all__ = [
    "CDAN",
    "CORAL",
    "DANN",
    "MMD",
    "PGD",
    "AdaBN",
    "Adaptation",
    "AdaptationTerm",
    "Auto",
    "MultiSource",
    "Side",
    "adversarial_loss",
    "coral_loss",
    "deep_embedded_risk",
    "domains_of",
    "entropy_weights",
    "gradient_reversal",
    "mdan_objective",
    "mmd_loss",
    "moment_distance",
    "multilinear_map",
    "mutual_information",
    "proxy_a_distance",
    "ramp",
]
