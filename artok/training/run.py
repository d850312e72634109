"""Trains an experiment into a run directory: builds the task, checks the folder, runs the loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed, nn

from artok.conditioning.encoders.frozen import FrozenEncoder
from artok.data.base import Split
from artok.data.order import choose_rows
from artok.data.tokens import TokenCache
from artok.device import resolve_device
from artok.discard import check_discardable, discard
from artok.errors import ConfigError, RunError, lacks_memory
from artok.locks import hold_lock
from artok.metrics import cost
from artok.saved import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Facts,
    Saved,
    check_layout,
    copy_model,
    find_saved,
    fingerprint,
    load_tokenizer,
    whole_state,
    write_config,
    write_weights,
)
from artok.tokenizers.base import Tokenizer
from artok.training import checkpoints
from artok.training.distillation import DistillationTask
from artok.training.encode import open_or_encode, store_captions
from artok.training.experiment import Experiment, check_codebook
from artok.training.initial import load_initial
from artok.training.loop import Trainer
from artok.training.monitor import FEWEST, Monitor
from artok.training.needs import advise_on_memory, check_needs
from artok.training.post_training import DecoderTask
from artok.training.progress import Progress
from artok.training.same_run import check_same_facts, check_same_run
from artok.training.settings import settle_precision
from artok.training.task import Task
from artok.training.tasks import GeneratorTask, TokenData, TokenizerTask

LOCK = ".training"  # lock file of a training
UNCAPTIONED = 0.5  # largest share of images without a caption that a text model is trained on
PATIENCE = timedelta(hours=4)  # of processes that wait while one of them samples or encodes


def train(
    experiment: Experiment,
    folder: Path,
    fresh: bool = False,
    device: torch.device | str | None = None,
    extend: bool = False,
) -> bool:
    """Train an experiment into a run directory, or resume a stopped training.

    fresh: discard what the directory holds. device: as in `resolve_device`. extend: resume with another
    `training.images` also where the learning rate depends on it. Returns whether training finished; False after Ctrl-C
    or SIGTERM, after saving. RunError: training failed. Other errors are raised before anything is written.
    """
    accelerator = make_accelerator(experiment, folder, device)
    progress = Progress(experiment.name, quiet=not accelerator.is_main_process)

    def check() -> None:
        if fresh:
            check_discardable(folder)
        else:
            check_same_run(experiment, folder, extend)

    def wait() -> None:
        if fresh:
            raise RunError(f"another process trains in {folder}, which --fresh would discard; wait for its end")
        check()
        progress.say(f"another process trains in {folder}; waiting for its end to resume from there")

    if note := describe_launch(accelerator.distributed_type):
        progress.say(note)
    check()
    task = build_task(experiment, folder, accelerator, progress)
    if experiment.init is not None and (fresh or not checkpoints.list_checkpoints(folder / "checkpoints")):
        load_initial(task.players["model"], experiment.init, experiment.generator, task.facts, progress.say)
    task.prepare()
    trainer = Trainer(task, folder, accelerator, progress)
    progress.say(
        f"{experiment.name}: {describe_parameters(task.players['model'])}, {describe_length(experiment)}, "
        f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''} on {accelerator.device}, "
        f"{accelerator.mixed_precision.replace('no', 'fp32')}, into {folder}"
    )
    with ExitStack() as held:
        held.enter_context(deterministic(experiment.training.deterministic))
        if accelerator.is_main_process:
            held.enter_context(hold_lock(folder / LOCK, wait))
            check()  # again, since another process may have begun the folder meanwhile
            newest = None if fresh else checkpoints.find_latest(folder / "checkpoints")
            if newest is None or int(newest.name) < experiment.training.images:
                progress.say(check_needs(trainer.modules, experiment.training, folder, accelerator.device))
            if not fresh:
                check_same_facts(task.facts, folder)
        accelerator.wait_for_everyone()
        try:
            finished = trainer.run(lambda: begin_folder(folder, experiment, task, fresh), fresh)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            told = advise_on_memory(experiment.training, accelerator.num_processes)
            raise RunError(f"training needs more memory than {accelerator.device} has; {told}") from None
        for tracker in accelerator.trackers:
            tracker.finish()
    return finished


def leave_processes() -> None:
    """Leave the other processes of a launch after the last training; they cannot be met again."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def make_accelerator(experiment: Experiment, folder: Path, name: torch.device | str | None = None) -> Accelerator:
    """An Accelerator on the named device; each process of a launch on several GPUs takes its own GPU.

    ConfigError: the precision or a tracker is not available, or one GPU was named for several processes.
    """
    device = resolve_device(name)
    single = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if device.index is not None and not single:
        raise ConfigError(f"device {device} names one device for several processes; give its kind, {device.type}")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    precision = settle_precision(experiment.training.precision, device)
    trackers: list[Any] = list(experiment.training.trackers)
    AcceleratorState._reset_state(single)  # it is a singleton; a second training has its own precision and device
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            log_with=trackers or None,
            project_dir=str(folder),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
    except ValueError as error:  # an unknown or missing tracker
        raise ConfigError(f"training.trackers {trackers}: {error}") from None


def describe_launch(used: DistributedType) -> str | None:
    """A sentence when `accelerate launch` was asked to shard the model and does not, as on a CPU."""
    for name, wanted in (("FSDP", DistributedType.FSDP), ("DEEPSPEED", DistributedType.DEEPSPEED)):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1") and used != wanted:
            alone = "which accelerate does on GPUs only; here every process holds the whole model"
            return f"note: the launch asks for {wanted.value}, {alone}"
    return None


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Refuse operations that are not deterministic inside the context (training.deterministic)."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need on a GPU
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def describe_length(experiment: Experiment) -> str:
    training = experiment.training
    return f"{training.images:,} images in {training.steps():,} steps of {training.global_batch}"


def describe_parameters(model: nn.Module) -> str:
    total, trained = (cost.parameters(model, trained_only=only) for only in (False, True))
    return f"{total:,} parameters" + ("" if trained == total else f", {trained:,} of them trained")


# ---------------------------------------------------------------------------------------------- the task


def build_task(experiment: Experiment, folder: Path, accelerator: Accelerator, progress: Progress) -> Task:
    """Build the task of an experiment, with data, tokenizer and generator checked against each other."""
    torch.manual_seed(experiment.seed)
    device = accelerator.device
    if experiment.generator is None:
        train_split, test_split = experiment.data.open("train"), experiment.data.open("test")
        progress.notes(train_split, test_split)
        kind = TokenizerTask if experiment.post_training is None else DecoderTask
        task = kind(experiment, train_split, test_split, device)
        check_codebook(task.tokenizer.layout, len(train_split))
        return task
    tokenizer, saved = load_frozen_tokenizer(experiment)
    check_layout(experiment.generator, tokenizer.layout)
    train_split = experiment.data.open("train")
    progress.notes(train_split)
    mark = fingerprint(tokenizer)
    check_captions(experiment, train_split)
    held_out = open_or_encode(tokenizer, mark, experiment.data, "test", 1, None, device, progress)
    source: Any = train_split
    if not experiment.tokens.online:
        copies = experiment.tokens.copies
        given = Path(experiment.tokens.cache) if experiment.tokens.cache else None
        source = open_or_encode(tokenizer, mark, experiment.data, "train", copies, given, device, progress)
    facts = experiment.facts(train_split, mark)
    watch = None
    if accelerator.is_main_process and experiment.training.monitor_images:
        watch = make_monitor(experiment, train_split, source, held_out, device, progress)
    torch.manual_seed(experiment.seed)
    trained = (GeneratorTask if experiment.distill is None else DistillationTask)(
        experiment, TokenData(tokenizer, saved, facts, source, held_out), device, watch
    )
    encoder = trained.generator.conditioner.encoder
    if isinstance(encoder, FrozenEncoder):
        store_captions(encoder, [each for each in (source, held_out) if isinstance(each, TokenCache)], progress)
    return trained


def check_captions(experiment: Experiment, split: Split) -> None:
    """Raise a ConfigError when the generator hears text, and the data have none or for few images only."""
    assert experiment.generator is not None
    if not experiment.generator.hears_text:
        return
    for name, part in (("train", split), ("test", experiment.data.open("test"))):
        missing = part.uncaptioned if part.captioned else len(part)
        if missing > UNCAPTIONED * len(part):
            many = (
                "has no captions" if missing == len(part) else f"has captions for {len(part) - missing:,} images only"
            )
            raise ConfigError(
                f"the generator is conditioned on text, but the {name} split of data kind {experiment.data.kind}, of "
                f"{len(part):,} images, {many}: name data with captions (data.caption_column), have them made from "
                "class names (data.caption_templates), or take 'text' out of generator.conditioning"
            )


def make_monitor(
    experiment: Experiment,
    train_split: Split,
    source: TokenCache | Split,
    held_out: TokenCache,
    device: torch.device,
    progress: Progress,
) -> Monitor | None:
    """The monitor of a generator's diversity, or None when there are too few images."""
    training, data = experiment.training, experiment.data
    images = min(training.monitor_images, len(train_split), len(held_out))
    if images < FEWEST:
        progress.say(f"no monitor of collapse: it needs {FEWEST} images of the model, held out and to train on")
        return None
    if train_split.sequential:  # a stream has one reader
        train_split = data.open("train")
    labels = source.labels if isinstance(source, TokenCache) else None
    splits = train_split, data.open("test"), labels, held_out.labels
    told = None
    if held_out.captions is not None or held_out.index.control:
        rows = choose_rows(len(held_out), images)
        told = held_out.batch(rows, rows)
    return Monitor(training.monitor_extractor, images, *splits, data.size, device, told)


def load_frozen_tokenizer(experiment: Experiment) -> tuple[Tokenizer, Saved]:
    """Load the tokenizer that a generator's experiment names, checked against the experiment's images."""
    if isinstance(experiment.tokenizer, str):
        tokenizer, saved = load_tokenizer(experiment.tokenizer)
    else:
        tokenizer = experiment.tokenizer.build(experiment.image).eval()
        if any(True for _ in tokenizer.parameters()):
            raise ConfigError(
                f"tokenizer kind {experiment.tokenizer.kind} has to be trained before the generator: "
                "train it by itself, then name its run directory as 'tokenizer'"
            )
        facts = Facts(image=experiment.image, classes=(), data="", version="")
        saved = Saved(tokenizer=experiment.tokenizer, facts=facts)
    tokenizer.fit(experiment.image)
    if tokenizer.layout.image != experiment.image:
        raise ConfigError(
            f"the tokenizer {experiment.tokenizer} was trained on images of {tokenizer.layout.image} "
            f"(channels, *size), but data gives {experiment.image}"
        )
    return tokenizer, saved


# ---------------------------------------------------------------------------------------------- the folder


def begin_folder(folder: Path, experiment: Experiment, task: Task, fresh: bool) -> None:
    """Write the resolved config, and a generator's tokenizer, before the first step."""
    if fresh:
        discard(folder)
    if isinstance(task, GeneratorTask):
        if isinstance(experiment.tokenizer, str):
            source = find_saved(experiment.tokenizer)
            copy_model(source / TOKENIZER if (source / TOKENIZER).exists() else source, folder / TOKENIZER)
        else:
            write_weights(whole_state(task.tokenizer), folder / TOKENIZER / WEIGHTS)
            write_config(folder / TOKENIZER / CONFIG, task.saved_tokenizer)
    write_config(folder / CONFIG, experiment, task.facts)
