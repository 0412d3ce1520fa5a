"""From stored values to modality values and windows."""
