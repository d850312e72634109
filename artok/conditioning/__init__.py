"""What turns a condition into vectors that a generator reads; one file a kind."""
