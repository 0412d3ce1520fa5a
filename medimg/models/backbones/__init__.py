"""Backbones: architectures, heads, stages, weights."""
