"""Models of tokens, one file a family."""
