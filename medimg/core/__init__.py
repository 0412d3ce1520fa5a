"""Geometry, volumes and windows, without input, output or torch."""
