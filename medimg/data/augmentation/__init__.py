"""Augmentation of batches, and views of images at prediction."""
