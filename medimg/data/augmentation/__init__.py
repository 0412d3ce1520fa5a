"""Augmentation of batches of images."""
