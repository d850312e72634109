"""Cost on paper: tokens, parameters, FLOPs, memory, time, from the real modules without numbers."""
