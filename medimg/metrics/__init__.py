"""Metrics, curves and confidence intervals, on arrays alone."""
