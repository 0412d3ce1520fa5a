"""Results and models for other systems."""
