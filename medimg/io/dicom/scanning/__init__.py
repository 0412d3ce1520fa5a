"""Headers of many DICOM files, read fast."""
