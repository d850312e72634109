"""The training loop for all tasks, under accelerate. Progress is counted in images seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain, compress
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from artok.data.base import note_skipped
from artok.errors import ConfigError, RunError
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.noise import fold
from artok.saved import WEIGHTS, whole_state, write_weights
from artok.training import checkpoints
from artok.training.ema import Ema
from artok.training.health import diagnose, verdict
from artok.training.interrupt import Interrupt, catch_signals
from artok.training.log import LOG, NONFINITE, Log
from artok.training.meter import Meter
from artok.training.progress import Progress
from artok.training.settings import Optimizer, Training
from artok.training.sharding import Twin, check_shardable, clip_gradients, gathered, name_blocks
from artok.training.shards import Shards
from artok.training.task import Step, Task


class Trainer:
    """A task with its optimizers, averaged weights and run directory."""

    def __init__(self, task: Task, folder: Path, accelerator: Accelerator, progress: Progress) -> None:
        self.task, self.folder, self.accelerator, self.progress = task, folder, accelerator, progress
        self.training: Training = task.experiment.training
        self.seed = task.experiment.seed
        processes = accelerator.num_processes
        if self.training.global_batch % (processes * self.training.gradient_accumulation_steps):
            raise ConfigError(
                f"training.global_batch {self.training.global_batch} must be a multiple of {processes} processes "
                f"times gradient_accumulation_steps {self.training.gradient_accumulation_steps}"
            )
        if self.training.gradient_checkpointing and not sum(
            set_gradient_checkpointing(module, True) for module in task.players.values()
        ):
            raise ConfigError(
                "training.gradient_checkpointing is on, but no part of this model supports it; switch it off"
            )
        self.twin = self.make_twin()
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for player, module in task.players.items():
            if self.training.compile:
                module.compile()
            optimizer = make_optimizer(module, self.settings(player))
            if self.twin is not None:
                name_blocks(module)
            self.modules[player], self.optimizers[player] = accelerator.prepare(module, optimizer)
        self.ema = Ema(self.modules["model"], self.training.ema) if self.training.ema else None
        checkpoints.keep_windows(accelerator, task.windows)
        shards = Shards(self.modules, self.optimizers, self.ema, task.windows)
        self.trained = checkpoints.Trained(accelerator, self.modules, self.ema, shards)
        self.seen, self.skipped, self.began = 0, 0, 0.0

    def make_twin(self) -> Twin | None:
        """What stands for a model that is going to be sharded. ConfigError: it cannot be."""
        if self.accelerator.distributed_type.value != "FSDP":
            return None
        if not getattr(self.accelerator, "is_fsdp2", False):
            raise ConfigError("artok shards by FSDP2: set fsdp_version: 2 in accelerate's config, of accelerate 1.6 on")
        check_shardable(self.task.players, self.task.experiment.distill is not None)
        model, *others = self.task.players.values()
        return Twin(model, others)

    @property
    def together(self) -> list[nn.Module]:
        """The sharded players that have to be whole during a step."""
        return list(self.modules.values()) if self.task.calls_past_forward else []

    def settings(self, player: str) -> Optimizer:
        return self.training.optimizer if player == "model" else self.training.critic

    # -------------------------------------------------------------------------------------- the loop

    def run(self, begin: Callable[[], None], fresh: bool) -> bool:
        """Train from the newest checkpoint, if not `fresh`, to the end. Returns False when a signal stopped it first.

        begin: called by the main process before the first step, once data could be read; it begins the folder.
        """
        saved = self.folder / "checkpoints"
        resumed = None if fresh else checkpoints.restore(self.trained, saved, self.progress.say)
        if self.accelerator.is_main_process:
            checkpoints.clear_leftovers(self.folder, self.training.keep_last)
        self.seen = resumed or 0
        done = self.seen >= self.training.images
        if resumed is not None:
            what = "is finished:" if done else "resumes at"
            self.progress.say(f"{self.folder} {what} {self.seen:,} of {self.training.images:,} images")
        if done:
            self.end_log()
            return True
        if resumed is None:
            with gathered(self.together):
                replaced = self.task.begin()
            if self.ema:
                self.ema.restart(replaced)
        self.began = time.process_time()
        world = self.accelerator.process_index, self.accelerator.num_processes
        with (
            closing(self.task.batches(self.seen, *world)) as batches,
            catch_signals() as interrupt,
            self.progress.over(self.seen, self.training.images),
        ):
            first = next(batches)
            if self.accelerator.is_main_process:
                begin()
                self.log = Log(self.folder / LOG, -1 if resumed is None else self.seen)
            self.accelerator.wait_for_everyone()
            if self.training.trackers:
                self.accelerator.init_trackers("artok")
            machine = {"device": str(self.accelerator.device), "threads": torch.get_num_threads()}
            scope = {"processes": self.accelerator.num_processes, "wanted": self.training.images}
            self.record("start" if resumed is None else "resume", scope | machine)
            finished = self.loop(chain([first], batches), interrupt)
            checkpoints.finish(self.trained)
        self.check_health(finished)
        return finished

    def end_log(self) -> None:
        """Write the last line of a finished run's log, if a kill prevented it."""
        if self.accelerator.is_main_process and (self.folder / LOG).exists():
            self.log = Log(self.folder / LOG, self.seen)
            if not any(event["event"] == "end" for event in self.log.events):
                self.check_health(True)

    def loop(self, batches: Iterator[Any], interrupt: Interrupt) -> bool:
        training, meter = self.training, Meter()
        while self.seen < training.images:
            torch.manual_seed(fold("step", self.seed, self.seen, self.accelerator.process_index))
            self.step(next(batches), meter)
            before, self.seen = self.seen, self.seen + training.global_batch
            meter.steps += 1
            meter.images += training.global_batch
            self.progress.advance(self.seen)
            stopping = interrupt.should_stop(self.accelerator, self.seen // training.global_batch)
            last = self.seen >= training.images
            if stopping or last or crosses(before, self.seen, training.log_every):
                self.report(meter)
            if last or crosses(before, self.seen, training.validate_every):
                self.validate()
                self.check_health()
            if last or crosses(before, self.seen, training.monitor_every or training.validate_every):
                self.monitor()
            if last or crosses(before, self.seen, training.preview_every):
                self.preview()
            if training.snapshot_every and not last and crosses(before, self.seen, training.snapshot_every):
                self.write_weights(self.folder / checkpoints.SNAPSHOTS / f"{self.seen:012d}.safetensors")
            if stopping or last or crosses(before, self.seen, training.checkpoint_every):
                if meter.steps:
                    self.report(meter)  # also checks that the weights to save are finite
                self.save()
            if stopping and not last:
                return False
            if not meter.steps:
                meter.restart_clock()
        return True

    def step(self, batch: Any, meter: Meter) -> None:
        """One optimizer step for each player that takes part in this step."""
        parts = self.task.split(batch, self.training.gradient_accumulation_steps)
        turn = self.seen // self.training.global_batch
        for player, module in self.modules.items():
            if not self.task.plays(player, turn):
                continue
            optimizer, settings, joined = self.optimizers[player], self.settings(player), self.task.joins_after(player)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate_at(self.seen - joined, self.training.images - joined)
            with gathered(self.together), self.only(player):
                self.pass_parts(player, parts, meter)
            norm = clip_gradients(self.accelerator, module, optimizer, settings.grad_clip)
            if norm is not None:
                meter.add({f"{player}_gradient_norm": norm}, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        replaced = self.task.settle(self.mean_over_processes)
        if self.ema and self.task.plays("model", turn):
            self.ema.update(turn)
            self.ema.restart(replaced)

    def pass_parts(self, player: str, parts: list[Any], meter: Meter) -> None:
        """Add the gradients of a player over the parts of a batch."""
        module = self.modules[player]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(module):
                with self.accelerator.autocast():
                    step: Step = self.task.losses(self.modules, player, part, self.seen)
                total = torch.stack(list(step.losses.values())).sum()
                self.accelerator.backward(total / len(parts))
            meter.add({**step.losses, **step.monitors, f"{player}_loss": total}, 1 / len(parts))

    def mean_over_processes(self, value: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    @contextmanager
    def only(self, player: str) -> Iterator[None]:
        """Freeze the other players, so that they get no gradients."""
        others = [p for name, module in self.modules.items() if name != player for p in module.parameters()]
        frozen = [parameter for parameter in others if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    # -------------------------------------------------------------------------------------- reports and checkpoints

    def record(self, event: str, values: dict[str, Any]) -> None:
        """Write an event to the log and its numbers to the trackers."""
        numbers = {name: value for name, value in values.items() if isinstance(value, float | int)}
        self.accelerator.log({f"{event}/{name}": value for name, value in numbers.items()}, step=self.seen)
        if self.accelerator.is_main_process:
            self.log.write(event, self.seen, values)

    def report(self, meter: Meter) -> None:
        values = meter.read(self.accelerator) | self.task.figures()
        watched = ("_loss",) if self.accelerator.scaler else ("_loss", "_gradient_norm")  # fp16 skips such steps
        bad = [name for name, value in values.items() if name.endswith(watched) and not math.isfinite(value)]
        rate = self.training.optimizer.rate_at(self.seen, self.training.images)
        skipped = self.count_skipped()
        spent = torch.tensor(time.process_time() - self.began, device=self.accelerator.device)  # since start or resume
        cores = round(float(self.mean_over_processes(spent)), 2)
        self.record("train", values | {"lr": rate, "skipped": len(skipped), "core_seconds": cores})
        if len(skipped) > self.skipped:
            self.progress.skipped(skipped[self.skipped :])
            self.skipped = len(skipped)
        if bad:
            self.stop_nonfinite(bad[0])
        self.progress.show(self.seen, values)

    def count_skipped(self) -> list[str]:
        """The unreadable images that any process met, with reasons. DataError: there are too many."""
        split = self.task.images
        if split is None:
            return []
        self.progress.notes(split)
        if self.accelerator.num_processes > 1:
            for met in gather_object([dict(split.skipped)]):
                note_skipped(split, met)
        return list(split.skipped.values())

    def require_finite(self) -> None:
        """Raise a RunError when a weight, a buffer or an average is not finite."""
        if wrong := self.trained.find_nonfinite():
            self.stop_nonfinite(wrong)

    def stop_nonfinite(self, name: str) -> NoReturn:
        """Raise the RunError of a number that is not finite."""
        self.record(NONFINITE, {"text": f"{name} is no finite number"})
        self.check_health()
        newest = checkpoints.find_latest(self.folder / "checkpoints")
        kept = f"the last good checkpoint is {newest}" if newest else "there was no checkpoint yet"
        raise RunError(
            f"{name} is no finite number after {self.seen} images, so training stopped; {kept}. "
            "Start anew with --fresh and a lower training.optimizer.lr, or with precision fp32"
        )

    @contextmanager
    def shared_weights(self) -> Iterator[nn.Module]:
        """The model in eval mode with the weights to evaluate and share: the EMA, if there is one.

        A sharded model is gathered in every process, so that one may work on it while the others wait.
        """
        module = self.modules["model"]
        with ExitStack() as stack:
            if self.ema:
                stack.enter_context(self.ema.applied())
            if self.twin is not None:
                plain = stack.enter_context(self.twin.filled(module))
                stack.enter_context(self.task.using(plain))
            else:
                plain = self.accelerator.unwrap_model(module)
                module.eval()
                stack.callback(module.train)
            yield plain

    def validate(self) -> None:
        with self.shared_weights():
            values = self.task.validate()
        self.record("validation", values)
        self.progress.show(self.seen, values, "held out")

    def monitor(self) -> None:
        with self.shared_weights():
            values = self.task.monitor() if self.accelerator.is_main_process else {}
        self.accelerator.wait_for_everyone()
        if values:
            self.record("monitor", values)
            shown = {name: value for name, value in values.items() if not name.endswith("_floor")}
            self.progress.show(self.seen, shown, "samples")
            self.check_health()

    def check_health(self, finished: bool | None = None) -> None:
        """Print a warning for each new finding in the log, and at the end of a call all findings."""
        findings = diagnose(self.log.events) if self.accelerator.is_main_process else []
        known = [event["kind"] for event in self.log.events if event["event"] == "warning"] if findings else []
        for finding in findings:
            if finding.kind not in known:
                self.record("warning", asdict(finding))
                self.progress.say(f"{self.progress.name} {self.seen:>9,} images, {finding.kind}: {finding.text}")
        if finished is not None:
            self.record("end" if finished else "stop", {"health": verdict(findings)})
        if finished:
            self.progress.say(f"{self.folder}: {verdict(findings)}")

    def preview(self) -> None:
        with self.shared_weights():
            if self.accelerator.is_main_process:
                folder = self.folder / "samples"
                folder.mkdir(parents=True, exist_ok=True)
                self.task.preview(folder / f"{self.seen:012d}.png")
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint to resume from, and the weights to use and share."""
        self.require_finite()
        with self.shared_weights():
            measured = self.task.measure()
        self.write_weights(self.folder / WEIGHTS)  # first, since a run with its last checkpoint counts as finished
        checkpoints.save(
            self.trained,
            self.folder / "checkpoints",
            self.seen,
            self.training.keep_last,
            lambda: self.record("checkpoint", measured),
        )

    def write_weights(self, path: Path) -> None:
        """Write the weights to use and share. RunError: they are not finite."""
        self.require_finite()
        with self.shared_weights() as model:
            state = whole_state(model)
            if self.accelerator.is_main_process:  # inside the context, since on a CPU the state shares their memory
                write_weights(state, path)


def crosses(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every


def make_optimizer(module: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices and convolutions only, except those that a module lists as `undecayed`.

    `undecayed` names parameters, or parts whose parameters are all spared.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    named = [getattr(part, name) for part in module.modules() for name in getattr(part, "undecayed", ())]
    spared = {id(p) for each in named for p in (each.parameters() if isinstance(each, nn.Module) else (each,))}
    decays = [p.ndim >= 2 and id(p) not in spared for p in trained]
    groups = [
        {"params": list(compress(trained, decays)), "weight_decay": settings.weight_decay},
        {"params": [p for p, decay in zip(trained, decays, strict=True) if not decay], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
