"""
Classify slices of chest CT: a table of labels in; a checkpoint, predictions and a report out.

The data is a folder with labels.csv, whose columns are file, label and patient_id; a file is one slice or a
folder with one series. Without --data, synthetic CT is written as DICOM first.

    python examples/ct_classification.py --data scans --backbone resnet18 --epochs 5
"""
