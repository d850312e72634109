"""What one step computes, the loop around it, checkpoints."""
