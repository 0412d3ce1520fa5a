"""Values: geometry, volumes, windows. No input or output, no torch."""
