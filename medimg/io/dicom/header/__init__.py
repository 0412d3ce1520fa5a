"""Attributes of DICOM headers: one file at a time."""
