"""Costs before training: tokens, parameters, FLOPs, memory and time, from the real modules on the meta device."""
