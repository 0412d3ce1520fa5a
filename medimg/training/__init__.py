"""Fine-tuning, linear probes and calibration of classifiers."""
