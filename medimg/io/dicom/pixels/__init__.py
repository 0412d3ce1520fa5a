"""Pixel data: encapsulation, codecs, frames."""
