"""Text encoders: texts become ids or features, and these the vectors that a generator reads; one file a kind."""
