"""DICOM headers: attributes, instances and frames, without pixels."""
