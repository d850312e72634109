"""`python -m artok`."""

from artok.cli import main

main()
