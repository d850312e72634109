"""Published checkpoints in, and artok's models out in formats that others read.

`artok import` reads a file (`reading`, `pickles`), finds the family whose keys it has (one file per family, each with a
`FAMILY`), and writes a run directory (`importing`). `artok export` (`exporting`) writes what others read.
"""
