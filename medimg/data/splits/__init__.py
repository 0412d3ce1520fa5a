"""Splits that keep patients apart."""
