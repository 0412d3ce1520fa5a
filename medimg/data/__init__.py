"""Labeled images: datasets, splits, leakage checks, many images into tensors, and a cache on disk."""
