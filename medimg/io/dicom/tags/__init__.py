"""Attributes of a header, as users name them and as they may be shown."""
