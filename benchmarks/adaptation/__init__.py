"""
Adaptation to another scanner or site, measured on real images: ``python -m benchmarks.adaptation``.

Source and target are different patients. All methods train with the settings that ``fine_tune`` has by
default, on the same images in the same order; none sees a label of the target. Each run is a line of
``results/adaptation.jsonl``, with ``--resume`` those that are there are not repeated, and ``--page`` writes
the tables of the documentation from it.
"""
