"""Which tokens of a grid attend to which others: one file a pattern."""
