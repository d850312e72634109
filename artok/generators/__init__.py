"""Generators, one file per family."""
