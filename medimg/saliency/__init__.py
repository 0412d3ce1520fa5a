"""Saliency maps (Grad-CAM)."""
