"""Images that are preprocessed once: shards to train from, and a manifest of what became of each source."""
