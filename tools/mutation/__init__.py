"""What `tools/mutate.py` consists of."""
