"""Decoding of frames, and the array of a volume."""
