"""Preprocessed images kept on disk."""
