"""From a volume to tensors: one recipe, the same for training and prediction."""

from medimg.prep.convert import to_tensor
from medimg.prep.recipe import Preprocess
from medimg.prep.rendering import Rendered

__all__ = ["Preprocess", "Rendered", "to_tensor"]
