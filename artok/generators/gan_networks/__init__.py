"""Networks that turn one random vector into a whole grid of tokens, for a GAN; one file a kind."""
