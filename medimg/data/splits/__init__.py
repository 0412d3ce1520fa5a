"""Splits and folds by patient."""
