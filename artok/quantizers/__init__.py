"""Quantizers: continuous vectors to codes and back; one file per kind."""
