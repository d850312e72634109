"""Maps aligned with the images, one kind a file: what a generator's `control` condition is made of."""
