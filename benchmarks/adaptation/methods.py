"""The methods that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.adaptation.shifts import Shift
from medimg import adapt

__all__ = ["BASELINES", "METHODS", "VARIANTS", "Method"]


@dataclass(frozen=True, slots=True)
class Method:
    """A method with its settings, and the network that it is compared on."""

    make: Callable[[Any], adapt.Adaptation | None]
    backbone: str = "squeezenet1_1"
    #: Further arguments of ``fine_tune``.
    options: tuple[tuple[str, Any], ...] = ()
    #: Whether it needs training images of several domains.
    multi_source: bool = False

    def suits(self, shift: Shift) -> bool:
        """Return whether the training images of a shift suffice."""
        return not self.multi_source or len(set(shift.train.domains)) > 1


#: Methods by the names that the table shows, each with its default settings.
METHODS: Final = {
    "source only": Method(lambda _: None),
    "CORAL": Method(adapt.CORAL),
    "MMD": Method(adapt.MMD),
    "DANN": Method(adapt.DANN),
    "CDAN": Method(adapt.CDAN),
    'MultiSource, "m3sda"': Method(
        lambda target: adapt.MultiSource(target, "m3sda", domain="column"), multi_source=True
    ),
    'MultiSource, "mdan"': Method(
        lambda target: adapt.MultiSource(target, "mdan", domain="column"), multi_source=True
    ),
    "PGD": Method(lambda _: adapt.PGD()),
    "source only, MobileNet": Method(lambda _: None, "mobilenet_v2"),
    "AdaBN, MobileNet": Method(adapt.AdaBN, "mobilenet_v2"),
}
#: The method without adaptation of each network.
BASELINES: Final = {"squeezenet1_1": "source only", "mobilenet_v2": "source only, MobileNet"}
#: Settings that were tried for new defaults, on the tuning patients and seeds.
VARIANTS: Final = {
    "MMD, ramped": Method(lambda target: adapt.MMD(target, ramped=True)),
    "MMD 3, ramped": Method(lambda target: adapt.MMD(target, weight=3.0, ramped=True)),
    "MMD 3, capped": Method(lambda target: adapt.MMD(target, weight=3.0, cap=1.0)),
    "CORAL 1, ramped": Method(lambda target: adapt.CORAL(target, weight=1.0, ramped=True)),
    "CORAL 1, capped": Method(lambda target: adapt.CORAL(target, weight=1.0, cap=0.5)),
    "DANN 0.1": Method(lambda target: adapt.DANN(target, weight=0.1)),
    "CDAN 0.3": Method(lambda target: adapt.CDAN(target, weight=0.3)),
    "m3sda, ramped": Method(
        lambda target: adapt.MultiSource(target, "m3sda", domain="column", ramped=True), multi_source=True
    ),
    "mdan 0.3": Method(
        lambda target: adapt.MultiSource(target, "mdan", domain="column", weight=0.3), multi_source=True
    ),
    "source only, average": Method(lambda _: None, options=(("ema", 0.99),)),
    "MMD, average": Method(adapt.MMD, options=(("ema", 0.99),)),
}
