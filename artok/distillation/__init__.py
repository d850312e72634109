"""Few-step students of diffusion models: one file a method, the losses of a student given a frozen teacher."""
