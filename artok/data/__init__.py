"""Images, labels and cached tokens; one file a source."""
