"""Sources to predict on, and the table of predictions, without torch."""
