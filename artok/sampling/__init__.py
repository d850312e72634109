"""Sampling: truncation of logits, guidance, noise schedules and solvers."""
