"""Options that several commands of the command line take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artok.files import read_place

ConfigFile = Annotated[str, typer.Argument(help="a YAML file, or a shipped config such as digits/vq (see 'configs')")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings on top, as key.sub=value")]
Run = Annotated[str, typer.Argument(help="a run directory, a published checkpoint such as var-d16, or a hub name")]
Settings = Annotated[list[str] | None, typer.Argument(help="settings on top, as key=value and data.key=value")]
SamplingSettings = Annotated[list[str] | None, typer.Argument(help="sampling settings on top, as key=value")]
OUT = typer.Option(parser=read_place, metavar="PATH", help="folder to write to")
PAGE = typer.Option(parser=read_place, metavar="PATH", help="page to write; default report.html in the run or here")
PLOTS = typer.Option(parser=read_place, metavar="PATH", help="folder for the plots of the page as PNG")
Out = Annotated[Path | None, OUT]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; a GPU if there is one unless given")]
Fresh = Annotated[bool, typer.Option(help="discard the run or study that the folder holds")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved YAML and do nothing else")]


def note_unfinished(run: str) -> None:
    """Say of a run that its training has not ended."""
    from artok.saved import describe_unfinished, find_saved

    note = describe_unfinished(find_saved(run))
    if note is not None:
        typer.echo(f"note: {note}", err=True)
