"""GAN generator networks, from a random vector to a grid of tokens; one file per kind."""
