"""Bytes and where they come from: files, archives, compressed streams."""
