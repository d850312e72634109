"""Published checkpoints in, and artok's models out in formats that others read.

`artok import` reads a file (`reading`, `pickles`), finds its family by its keys (one file per family, each with a
`FAMILY`), and writes a run directory (`importing`). `artok export` (`exporting`) writes formats of other libraries.
"""
