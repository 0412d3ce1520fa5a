"""DICOM: headers, frames and codecs, pixel values, assembly of stacks."""
