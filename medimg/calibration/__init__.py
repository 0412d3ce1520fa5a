"""Calibrated probabilities, thresholds, prediction sets and out-of-distribution scores."""
