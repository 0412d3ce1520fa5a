"""Classifiers on pretrained backbones, and their checkpoints."""
