"""Figures and views of images in a notebook."""
