"""The command line: parses arguments, calls the commands, and prints errors as one sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from artok import __version__
from artok.allocator import keep_freed_memory
from artok.commands.options import (
    OUT,
    PAGE,
    PLOTS,
    ConfigFile,
    Device,
    Fresh,
    Out,
    Overrides,
    PrintConfig,
    Run,
    SamplingSettings,
    Settings,
    note_unfinished,
)
from artok.commands.plan import plan
from artok.errors import ArtokError, ConfigError, RunError, describe_failure
from artok.files import check_arguments

# Heavy imports stay inside the commands, so that --help and a mistyped argument answer at once.

app = typer.Typer(
    name="artok",
    help="Train image tokenizers and generators of their tokens, sample from them, and measure them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"artok {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="and exit")] = False,
) -> None:
    """Options before a command."""


@app.command()
def configs() -> None:
    """List the shipped configs, each with the first line of its header."""
    from artok.config import SHIPPED

    for root in SHIPPED:
        for path in sorted(root.rglob("*.yaml")):
            header = path.read_text().splitlines()[0].lstrip("# ")
            typer.echo(f"{path.relative_to(root).with_suffix('')!s:<28} {header}")


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = None,
    fresh: Fresh = False,
    extend: Annotated[
        bool, typer.Option(help="resume with another training.images where the learning rate depends on it")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="list and read every data file anew, where a start relies on a cached manifest")
    ] = False,
    print_config: PrintConfig = False,
) -> None:
    """Train a tokenizer or a generator, or resume a stopped training."""
    from artok.config import dump, load
    from artok.training.experiment import Experiment, default_folder
    from artok.training.run import leave_processes
    from artok.training.run import train as run

    experiment = load(Experiment, config, [*(overrides or []), *(["data.verify=true"] if verify else [])])
    if print_config:
        typer.echo(dump(experiment).rstrip())
        return
    folder = out or default_folder(experiment)
    finished = run(experiment, folder, fresh, device, extend)
    leave_processes()
    if not finished:
        typer.echo(f"stopped and saved; run the same command again to resume {folder}", err=True)
        raise typer.Exit(130)


@app.command()
def encode(
    tokenizer: Run,
    overrides: Annotated[list[str] | None, typer.Argument(help="data settings on top, as key=value")] = None,
    split: Annotated[str, typer.Option(help="train or test")] = "train",
    copies: Annotated[int, typer.Option(min=1, help="encodings per image: one plain, the others augmented")] = 1,
    out: Out = None,
    device: Device = None,
) -> None:
    """Write the tokens of a data set, by default the tokenizer's own, for generators to train on."""
    from artok.device import resolve_device
    from artok.training.encode import encode_command

    note_unfinished(tokenizer)
    folder, cache = encode_command(tokenizer, overrides or [], split, copies, out, resolve_device(device))
    typer.echo(f"{len(cache):,} images, {cache.index.copies} rows per image, {cache.index.layout}: {folder}")


@app.command()
def sample(
    run: Run,
    overrides: SamplingSettings = None,
    labels: Annotated[str, typer.Option(help="classes by number or name, separated by commas; all unless given")] = "",
    prompt: Annotated[list[str] | None, typer.Option(help="what an image is to show; may be repeated")] = None,
    prompts: Annotated[Path | None, typer.Option(help="a file of prompts, one on each line")] = None,
    negative: Annotated[str | None, typer.Option(help="what guidance leads away from")] = None,
    control: Annotated[list[Path] | None, typer.Option(help="a picture to make the control of; repeatable")] = None,
    control_map: Annotated[list[Path] | None, typer.Option(help="a ready map as control; repeatable")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="a run that enlarges these images; repeatable")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="images per label, prompt or control")] = 8,
    cfg_scale: Annotated[float | None, typer.Option(min=0, help="classifier-free guidance; 1 is none")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, hidden=True)] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    truncation: Annotated[float | None, typer.Option(min=0, help="largest number in a GAN's latents")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="sampling steps, where a family has a choice")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="write videos of so many frames, as they are made")] = None,
    continued: Annotated[Path | None, typer.Option("--continue", help="a clip that the videos begin with")] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="frames per second of the videos")] = 8.0,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    out: Out = None,
    device: Device = None,
) -> None:
    """Write samples: one PNG per image, a sheet of all, and a GIF of their generation; or videos of any length."""
    from artok.commands.sample import Request, sample_videos
    from artok.commands.sample import sample as run_sample

    note_unfinished(run)
    flags = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "cfg_scale": cfg_scale, "seed": seed}
    flags |= {"truncation": truncation, "steps": steps, "guidance": guidance}
    folder = out or Path("samples") / Path(run).name
    request = Request(labels, prompt or (), prompts, negative, control or (), control_map or (), n)
    if frames is not None or continued is not None:
        if stage:
            raise ConfigError("a stage enlarges images and no videos; leave out --stage, or --frames and --continue")
        made = sample_videos(run, overrides or [], flags, request, batch, folder, device, frames, continued, fps)
        typer.echo(f"{made} are in {folder}")
        return
    images = run_sample(run, overrides or [], flags, request, batch, folder, device, stage or [])
    typer.echo(f"{len(images)} images, grid.png and generation.gif are in {folder}")


@app.command()
def edit(
    run: Run,
    image: Annotated[Path, typer.Argument(help="the picture")],
    overrides: SamplingSettings = None,
    mask: Annotated[str, typer.Option(help="a picture, white where hidden; or left, top, box, outpaint...")] = "left",
    label: Annotated[str, typer.Option(help="class of the result, by number or name")] = "",
    prompt: Annotated[str | None, typer.Option(help="what the result is to show")] = None,
    control: Annotated[list[Path] | None, typer.Option(help="a picture to make the control of")] = None,
    control_map: Annotated[list[Path] | None, typer.Option(help="a ready map as control")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="results")] = 4,
    feather: Annotated[float, typer.Option(min=0, max=64, help="pixels over which results fade into the known")] = 0.0,
    cfg_scale: Annotated[float | None, typer.Option(min=0, help="classifier-free guidance; 1 is none")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    out: Out = None,
    device: Device = None,
) -> None:
    """Make the hidden part of a picture anew: inpainting, outpainting, another class."""
    from artok.commands.edit import edit as run_edit

    note_unfinished(run)
    folder = out or Path("edits") / Path(run).name
    flags = {"cfg_scale": cfg_scale, "seed": seed}
    told = (label, prompt, control or [], control_map or [])
    made = run_edit(run, image, mask, overrides or [], flags, *told, n, feather, folder, device)
    typer.echo(f"{len(made)} results, original.png, mask.png and sheet.png are in {folder}")


@app.command()
def reconstruct(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="image files, or video files for a tokenizer of videos")],
    out: Out = None,
    device: Device = None,
) -> None:
    """Reconstruct images or clips: original, reconstruction, difference and token map side by side."""
    from artok.device import resolve_device
    from artok.evaluation.reconstruct import reconstruct as show
    from artok.saved import load_tokenizer

    note_unfinished(run)
    tokenizer, _ = load_tokenizer(run)
    folder = out or Path("reconstructions") / Path(run).name
    for result in show(tokenizer.to(resolve_device(device)), images, folder):
        bits = f", {result.bits:,.0f} bits ({result.bits_per_pixel:.3f} per pixel)" if result.bits is not None else ""
        typer.echo(f"{result.path.name}: PSNR {result.psnr:.2f} dB, SSIM {result.ssim:.3f}{bits}")
    typer.echo(f"written to {folder}")


@app.command()
def evaluate(
    run: Run,
    n: Annotated[int | None, typer.Option("-n", min=2, help="number of images; default all held-out ones")] = None,
    extractor: Annotated[str, typer.Option(help="classifier, motion, pixels, inception, or timm:NAME")] = "classifier",
    overrides: Settings = None,
    device: Device = None,
    reference: Annotated[Path | None, typer.Option(help="an .npz with mu and sigma, or images, as ADM's")] = None,
    base: Annotated[str | None, typer.Option(help="a run whose samples a stage enlarges, not held-out images")] = None,
    edit: Annotated[bool, typer.Option("--edit", help="edit held-out images too (evaluation.edits)")] = False,
    rollout: Annotated[bool, typer.Option("--rollout", help="continue held-out clips (evaluation.rollout)")] = False,
) -> None:
    """Measure a tokenizer or a generator on held-out data, and write results.json into its folder."""
    from artok.device import resolve_device
    from artok.evaluation.edits import MASKS
    from artok.evaluation.evaluate import evaluate as measure
    from artok.metrics.results import side_by_side
    from artok.training.progress import Progress

    asked = [f"evaluation.edits=[{','.join(MASKS)}]"] * edit + ["evaluation.rollout={}"] * rollout + (overrides or [])
    results = measure(run, n, extractor, asked, str(resolve_device(device)), Progress("evaluate"), reference, base)
    typer.echo(str(side_by_side([results])))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run directories, evaluated")],
    out: Annotated[Path | None, PAGE] = None,
    title: Annotated[str, typer.Option(help="default the names of the runs")] = "",
    plots: Annotated[Path | None, PLOTS] = None,
    device: Device = None,
) -> None:
    """Write one HTML page about runs: samples, reconstructions, table of metrics, learning curves, how to reproduce."""
    from artok.commands.report import report as write
    from artok.device import resolve_device

    typer.echo(f"open {write(runs, out, title, str(resolve_device(device)), plots)} in a browser")


@app.command("import")
def import_(
    file: Annotated[str | None, typer.Argument(help="a published file or folder, or hub:NAME (see --list)")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings that the file does not hold, as key.sub=value")
    ] = None,
    family: Annotated[str | None, typer.Option(help="default: detected from the keys")] = None,
    out: Out = None,
    tokenizer: Annotated[str | None, typer.Option(help="run of the generator's tokenizer")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="side of the images; default the usual one")] = None,
    part: Annotated[str | None, typer.Option(help="part of the file, such as model; default the EMA weights")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="pattern of keys to leave out")] = None,
    scale: Annotated[float | None, typer.Option(help="factor on a KL autoencoder's latents for generators")] = None,
    list_all: Annotated[bool, typer.Option("--list", help="the published checkpoints that hub:NAME knows")] = False,
) -> None:
    """Import a published checkpoint as a run: VQGAN, LlamaGen, VAR, MAR, DiT, and the autoencoders they use."""
    from artok.interop.hub import PREFIX, import_published, table
    from artok.interop.importing import ImportOptions, import_file

    if list_all or file is None:
        if not list_all:
            raise ConfigError("name a published file or folder, or hub:NAME; 'artok import --list' shows the names")
        typer.echo(table())
        return
    options = ImportOptions(family, tokenizer, size, tuple(overrides or []), part, tuple(ignore or []), scale)
    folder = out or Path("runs") / Path(file.removeprefix(PREFIX)).stem
    if file.startswith(PREFIX):
        import_published(file, folder, options, typer.echo)
    else:
        import_file(Path(file), folder, options, typer.echo)
    typer.echo(f"written to {folder}")


@app.command()
def export(
    run: Run,
    form: Annotated[str, typer.Option("--format", help="safetensors, hub, diffusers, onnx or npz")] = "safetensors",
    out: Out = None,
    repo: Annotated[str | None, typer.Option(help="hub: user/name to push to")] = None,
    private: Annotated[bool, typer.Option(help="hub: make the repository private")] = False,
    licence: Annotated[str | None, typer.Option(help="for the model card, such as apache-2.0")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="npz: samples")] = 50_000,
    batch: Annotated[int, typer.Option(min=1, help="npz: samples at a time")] = 64,
    overrides: Annotated[list[str] | None, typer.Argument(help="npz: sampling settings on top, as key=value")] = None,
    device: Annotated[str | None, typer.Option(help="npz: cpu, cuda, cuda:1 or mps")] = None,
) -> None:
    """Export a run: a folder with a model card, the hub, diffusers, ONNX, or samples for ADM's evaluator."""
    from artok.commands.export import export_samples
    from artok.interop.exporting import export as write

    note_unfinished(run)
    folder = out or Path("exports") / f"{Path(run).name}-{form}"
    if form == "npz":
        made = [str(export_samples(run, folder, n, batch, overrides or [], device))]
    else:
        made = write(run, form, folder, repo, private, licence, typer.echo)
    for path in made:
        typer.echo(path)


@app.command()
def demo(
    out: Annotated[Path, OUT] = Path("runs/demo"),
    families: Annotated[
        str, typer.Option(help="raster, var, maskgit, mar, dit, gan, separated by commas; all unless given")
    ] = "",
    sweep: Annotated[
        bool | None, typer.Option("--sweep/--no-sweep", help="a sweep over tokenizers; default with all families")
    ] = None,
    device: Device = None,
    fresh: Fresh = False,
) -> None:
    """The whole pipeline on real digits in a few minutes: train, generate, measure, and write a page."""
    from artok.commands.demo import demo as show
    from artok.device import study_device

    page = show(out, tuple(filter(None, families.replace(" ", "").split(","))), study_device(device), fresh, sweep)
    if page is not None:
        typer.echo(f"open {page} in a browser")


app.command()(plan)


@app.command()
@app.command("sweep", help="The same as compare, for a study with a grid over a tokenizer's settings.")
def compare(
    study: Annotated[str, typer.Argument(help="a YAML file, or a shipped study such as digits-quick or digits-sweep")],
    overrides: Overrides = None,
    out: Out = None,
    measure: Annotated[str | None, typer.Option(hidden=True, help="measure only this part")] = None,
    device: Device = None,
    fresh: Fresh = False,
    print_config: PrintConfig = False,
) -> None:
    """Train and measure entries or a grid of tokenizers at one budget and several seeds, and write one page."""
    from artok.commands.compare import compare as run
    from artok.commands.compare import run_part
    from artok.config import dump
    from artok.device import study_device
    from artok.studies.config import load_study

    wanted = load_study(study, overrides or [])
    if print_config:
        typer.echo(dump(wanted).rstrip())
        return
    folder = out or Path("runs") / wanted.name
    if measure is not None:
        run_part(wanted, folder, measure, study_device(device))
        return
    try:
        page = run(wanted, folder, study_device(device), fresh)
    except KeyboardInterrupt:
        fail(f"stopped and saved; run the same command again to resume {folder}", 130)
    if page is not None:
        typer.echo(f"open {page} in a browser")


def main() -> None:
    """Entry point. A user's mistake gives one sentence and exit code 2, a failure while running exit code 1."""
    keep_freed_memory()
    try:
        check_arguments(sys.argv)
        app()
    except ArtokError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        reason = describe_failure(error)
        if reason is None:
            raise
        fail(reason, RunError.exit_code)


def fail(text: str, code: int) -> NoReturn:
    print(f"artok: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)
