"""A critic that tells real images from made ones: for tokenizers as a loss, for a GAN as its opponent."""
