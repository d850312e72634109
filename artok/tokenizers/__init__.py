"""Images to tokens and back; one file a kind."""
