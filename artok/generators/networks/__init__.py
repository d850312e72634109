"""Networks of diffusion models over a grid of tokens."""
