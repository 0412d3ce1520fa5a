"""Stored values to modality values and windows."""
