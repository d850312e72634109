"""Images to tokens and back; one file per kind."""
