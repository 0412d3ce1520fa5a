"""Reading: from paths to series and volumes. Nothing here imports torch."""
