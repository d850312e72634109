"""Feature extractors, one file a kind; see `artok.metrics.features`."""
