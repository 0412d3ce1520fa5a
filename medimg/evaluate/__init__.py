"""
Evaluating a classifier: metrics with intervals over patients, and a report to read.

Importing this package makes ``medimg.evaluate`` the package, where the public name is the function. Therefore
the package can be called: ``medimg.evaluate(model, dataset)`` works either way.
"""

import sys
from types import ModuleType
from typing import Any

from medimg.evaluate.bootstrap import Estimate
from medimg.evaluate.comparison import Comparison, compare
from medimg.evaluate.crossval import CrossValidation, cross_validate
from medimg.evaluate.evaluation import evaluate
from medimg.evaluate.explanation import Explanation
from medimg.evaluate.paired import Difference, ModelComparison, compare_models
from medimg.evaluate.report import Report
from medimg.evaluate.saliency import explain

__all__ = [
    "Comparison",
    "CrossValidation",
    "Difference",
    "Estimate",
    "Explanation",
    "ModelComparison",
    "Report",
    "compare",
    "compare_models",
    "cross_validate",
    "evaluate",
    "explain",
]


class _CallablePackage(ModuleType):
    """A package that does what its function of the same name does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
