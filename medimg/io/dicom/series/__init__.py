"""From frames to series, and from series to volumes."""
