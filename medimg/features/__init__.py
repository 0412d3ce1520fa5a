"""Embeddings of images and datasets."""
