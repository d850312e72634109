"""What artok computes where official code recorded a tensor, family by family."""
