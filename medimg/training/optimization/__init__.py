"""How weights are updated: optimizer, learning-rate schedule, early stopping."""
