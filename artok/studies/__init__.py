"""Several runs compared, and the report they write."""
