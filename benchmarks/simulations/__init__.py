"""Simulated studies of known truth."""
