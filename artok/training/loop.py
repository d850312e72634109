"""The training loop for all tasks, under accelerate. Progress is counted in images seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from artok.errors import ConfigError, RunError
from artok.nn.gradient_checkpointing import set_gradient_checkpointing
from artok.noise import SEEDS, fold
from artok.saved import WEIGHTS, whole_state, write_weights
from artok.training import checkpoints
from artok.training.best import BEST, begin_best, is_better, require_measured
from artok.training.ema import Ema
from artok.training.health import diagnose, verdict
from artok.training.interrupt import Interrupt, catch_signals
from artok.training.log import LOG, NONFINITE, Log
from artok.training.meter import Meter, count_skipped
from artok.training.optimizers import make_optimizer, only
from artok.training.progress import Progress
from artok.training.settings import Optimizer, Training, crosses
from artok.training.sharding import clip_gradients, gathered, make_twin, name_blocks
from artok.training.shards import Shards
from artok.training.spikes import ROLLBACKS, SKIPS, Kept, Spike, Watch
from artok.training.task import Step, Task


class Trainer:
    """A task with its optimizers, averaged weights and run directory."""

    def __init__(self, task: Task, folder: Path, accelerator: Accelerator, progress: Progress) -> None:
        self.task, self.folder, self.accelerator, self.progress = task, folder, accelerator, progress
        self.training: Training = task.experiment.training
        self.seed = self.first_seed = task.experiment.seed
        self.training.check_processes(accelerator.num_processes)
        if self.training.gradient_checkpointing and not sum(
            set_gradient_checkpointing(module, True) for module in task.players.values()
        ):
            raise ConfigError("no part of this model supports training.gradient_checkpointing; switch it off")
        self.twin = make_twin(accelerator, task.players, task.experiment.distill is not None)
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for player, module in task.players.items():
            if self.training.compile:
                module.compile()
            optimizer = make_optimizer(module, self.settings(player))
            if self.twin is not None and not task.calls_past_forward:
                name_blocks(module)
            self.modules[player], self.optimizers[player] = accelerator.prepare(module, optimizer)
        self.ema = Ema(self.modules["model"], self.training.ema) if self.training.ema else None
        self.watch = Watch(self.training, task.players, accelerator.scaler is not None)
        checkpoints.keep_windows(accelerator, self.windows)
        shards = Shards(self.modules, self.optimizers, self.ema, self.windows)
        self.trained = checkpoints.Trained(accelerator, self.modules, self.ema, shards)
        self.seen, self.skipped, self.began = 0, 0, 0.0

    @property
    def together(self) -> list[nn.Module]:
        """The sharded players that have to be whole during a step."""
        return list(self.modules.values()) if self.task.calls_past_forward else []

    def windows(self) -> dict[str, Tensor]:
        """What checkpoints keep beside weights."""
        return self.task.windows() | self.watch.windows()

    def settings(self, player: str) -> Optimizer:
        return self.training.optimizer if player == "model" else self.training.critic

    # -------------------------------------------------------------------------------------- the loop

    def run(self, begin: Callable[[], None], fresh: bool) -> bool:
        """Train from the newest checkpoint, if not `fresh`, to the end. False: a signal stopped it first.

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
        if self.watch.counts[2]:
            self.reseed()
        finished = self.attempt(begin, resumed is not None)
        while finished is None:
            finished = self.attempt(lambda: None, True)
        self.check_health(finished)
        return finished

    def attempt(self, begin: Callable[[], None], resumed: bool) -> bool | None:
        """Train from where the trainer stands to the end, or a signal (False), or a return to a checkpoint (None)."""
        reason = ""
        world = self.accelerator.process_index, self.accelerator.num_processes
        with (
            closing(self.task.batches(self.seen, *world)) as batches,
            catch_signals() as interrupt,
            self.progress.over(self.seen, self.training.images),
        ):
            first = next(batches)
            if self.accelerator.is_main_process:
                begin()
                self.log = Log(self.folder / LOG, self.seen if resumed else -1)
            self.accelerator.wait_for_everyone()
            if self.training.trackers:
                self.accelerator.init_trackers("artok")
            machine = {"device": str(self.accelerator.device), "threads": torch.get_num_threads()}
            scope = {"processes": self.accelerator.num_processes, "wanted": self.training.images}
            self.record("resume" if resumed else "start", scope | machine)
            try:
                finished: bool | None = self.loop(chain([first], batches), interrupt)
            except Spike as spike:
                finished, reason = None, str(spike)
            checkpoints.finish(self.trained)
        if finished is None:
            self.roll_back(reason)
        return finished

    def roll_back(self, reason: str) -> None:
        """Return to the last checkpoint, from which other noise and another order of images follow.

        RunError: there is none, or this happened too often.
        """
        count, at = int(self.watch.counts[2]) + 1, self.seen
        if count > ROLLBACKS:
            self.stop(f"{reason}, though the run went back to a checkpoint {ROLLBACKS} times before")
        seen = checkpoints.restore(self.trained, self.folder / "checkpoints", self.progress.say)
        if seen is None:
            self.stop(f"{reason}, before there was a checkpoint to go back to")
        self.seen, self.watch.counts[2] = seen, count
        self.reseed()
        self.record("rollback", {"text": f"{reason}, after {at} images"})
        self.progress.say(f"{reason} after {at:,} images: back to {seen:,} images, and on with other noise")

    def reseed(self) -> None:
        """Draw other noise and another order of images than before the last return to a checkpoint."""
        self.seed = fold("rollback", self.first_seed, int(self.watch.counts[2])) % SEEDS
        self.task.experiment = self.task.experiment.model_copy(update={"seed": self.seed})

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
            if self.accelerator.is_main_process:
                self.log.beat(self.seen)
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
        before = Kept(self.modules) if self.watch.policy != "stop" else None
        turn = self.seen // self.training.global_batch
        for player, module in self.modules.items():
            if not self.task.plays(player, turn):
                continue
            optimizer, settings, joined = self.optimizers[player], self.settings(player), self.task.joins_after(player)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate_at(self.seen - joined, self.training.images - joined)
            with gathered(self.together), only(self.modules, player):
                values = self.pass_parts(player, parts)
            norm = clip_gradients(self.accelerator, module, optimizer, settings.grad_clip)
            if norm is not None and self.watch.active:
                try:
                    self.watch.check(player, float(norm))
                except Spike as spike:
                    self.abandon(str(spike), before)
                    return
            for part_values in values:
                meter.add(part_values, 1 / len(parts))
            if norm is not None:
                meter.add({f"{player}_gradient_norm": norm}, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.watch.counts[1] = 0
        replaced = self.task.settle(self.mean_over_processes)
        if self.ema and self.task.plays("model", turn):
            self.ema.update(turn)
            self.ema.restart(replaced)

    def pass_parts(self, player: str, parts: list[Any]) -> list[dict[str, Tensor]]:
        """Add up the gradients of a player over the parts of a batch; the scalars of each part."""
        module, values = self.modules[player], []
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(module):
                with self.accelerator.autocast():
                    step: Step = self.task.losses(self.modules, player, part, self.seen)
                total = torch.stack(list(step.losses.values())).sum()
                self.accelerator.backward(total / len(parts))
            values.append({**step.losses, **step.monitors, f"{player}_loss": total})
        return values

    def mean_over_processes(self, value: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    def abandon(self, reason: str, before: Kept | None) -> None:
        """End a step without its update, by the policy. Spike: return to the last checkpoint. RunError: stop."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.task.forget()
        if before is None:
            self.stop(reason)
        before.give_back()
        if self.watch.policy == "roll_back":
            raise Spike(reason)
        self.progress.say(f"{reason} after {self.seen:,} images: the step is skipped")
        if self.watch.skip():
            self.stop(f"{reason}, as in {SKIPS} steps in a row before it")

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
        skipped = count_skipped(self.task.images, self.accelerator, self.progress)
        spent = torch.tensor(time.process_time() - self.began, device=self.accelerator.device)  # since start or resume
        cores = round(float(self.mean_over_processes(spent)), 2)
        counts = {"steps_skipped": int(self.watch.counts[0])} if self.watch.policy == "skip" else {}
        self.record("train", values | counts | {"lr": rate, "skipped": len(skipped), "core_seconds": cores})
        if len(skipped) > self.skipped:
            self.progress.skipped(skipped[self.skipped :])
            self.skipped = len(skipped)
        if bad:
            self.stop(f"{bad[0]} is no finite number")
        self.progress.show(self.seen, values)

    def require_finite(self) -> None:
        """Raise a RunError when a weight, a buffer or an average is not finite."""
        if wrong := self.trained.find_nonfinite():
            self.stop(f"{wrong} is no finite number")

    def stop(self, reason: str) -> NoReturn:
        """Raise the RunError of a number that is not finite, or of a spike."""
        self.record(NONFINITE, {"text": reason})
        self.check_health()
        newest = checkpoints.find_latest(self.folder / "checkpoints")
        kept = f"the last good checkpoint is {newest}" if newest else "there was no checkpoint yet"
        raise RunError(
            f"{reason} after {self.seen} images, so training stopped; {kept}. Start anew with --fresh and a lower "
            "training.optimizer.lr, with precision fp32, or with training.on_spike"
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
        self.keep_best(values)
        self.progress.show(self.seen, values, "held out")

    def monitor(self) -> None:
        with self.shared_weights():
            values = self.task.monitor() if self.accelerator.is_main_process else {}
        self.accelerator.wait_for_everyone()
        self.keep_best(values)
        if values:
            self.record("monitor", values)
            shown = {name: value for name, value in values.items() if not name.endswith("_floor")}
            self.progress.show(self.seen, shown, "samples")
            self.check_health()
        if self.training.keep_best and self.accelerator.is_main_process:
            require_measured(self.training.keep_best, self.log.events)

    def keep_best(self, values: dict[str, float]) -> None:
        """Keep the weights if the figures of the main process are better than any before, by training.keep_best."""
        wish, better = self.training.keep_best, [False]
        if wish is None:
            return
        if self.accelerator.is_main_process and (better := [is_better(wish, values, self.log.events)])[0]:
            begin_best(self.folder)
        if broadcast_object_list(better)[0]:
            self.write_weights(self.folder / BEST / WEIGHTS)
            self.record(BEST, values)

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
