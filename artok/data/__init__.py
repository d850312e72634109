"""Images, labels and cached tokens; one file per source."""
