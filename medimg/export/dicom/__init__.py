"""Structured reports, secondary captures, parametric maps and segmentations."""
