"""Evaluation of classifiers: metrics with confidence intervals over patients."""
