"""From a volume to tensors: one recipe for training and prediction."""
