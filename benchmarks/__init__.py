"""What medimg and its peers take for the same work, in time and memory: ``python -m benchmarks``."""
