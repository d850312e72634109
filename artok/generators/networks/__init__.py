"""Networks of a diffusion model over a whole grid of tokens."""
