"""Discriminators of real and generated images with their losses and penalties, for tokenizers and for GANs."""
