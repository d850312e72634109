"""Bottlenecks: continuous vectors in, codes out; one file a kind."""
