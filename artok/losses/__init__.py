"""Losses that compare images with their reconstructions."""
