"""Kills trainings at random times and compares where they end with trainings that nobody stopped.

    python tools/kill.py [tokenizer raster ...] [--times 50] [--seed 0] [--work FOLDER]

A training is started in a forked child, killed by SIGKILL, and started again, up to five times; then it runs to its
end. Every other kill is aimed at a change of a file: the child tells when it opens a file for writing, renames or
deletes one, and is killed within a few milliseconds of that. The weights, optimizer states, previews, tokens and logged
figures must equal those of the training that was never stopped, bit for bit, and no temporary file may be left.
Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import yaml
from fuzz import import_everything, run_here
from fuzz_material import BASE, GAN, STUDY, run_quietly, tiny

from artok import cli
from artok.commands import compare as comparing
from artok.config import merge

KILLS_PER_RUN = 5
NEAR = 0.01  # seconds within which an aimed kill follows a change of a file
WALL_LIMIT = 600.0  # seconds of a single start
TIMED = {"time", "images_per_second", "core_seconds"}  # logged values that depend on the machine
UNTIMED_EVENTS = {"start", "resume", "stop", "alive"}  # events of interrupted runs alone
TEMPORARY = (".tmp", ".writing")
SHORT = {
    "images": 384, "global_batch": 16, "log_every": 32, "validate_every": 128, "preview_every": 128,
    "checkpoint_every": 48, "snapshot_every": 96, "ema": 0.9,
}  # fmt: skip


FROM_DATA = {"tokenizer", "vqgan", "gan"}  # kinds that need no trained models


def make_material(folder: Path) -> None:
    """The trained models that other kinds need: tokenizers `vq` and `kl`, and a `teacher`."""
    os.environ["ARTOK_CACHE"] = str(folder / "cache")
    models = {
        "vq": BASE,
        "kl": merge(BASE, {"tokenizer": {"quantizer": {"kind": "gaussian", "latent_channels": 4}}}),
        "teacher": {**BASE, "tokenizer": str(folder / "kl"), "generator": straight(steps=4)},
    }
    for name, config in models.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config | {"name": name}))
        run_quietly("train", str(folder / f"{name}.yaml"), "--out", str(folder / name))


def straight(steps: int) -> dict[str, Any]:
    """A diffusion model that progressive distillation can teach or train."""
    path = {"schedule": "straight", "prediction_type": "velocity", "solver": "euler", "steps": steps}
    return {"kind": "diffusion", "network": tiny("diffusion")["network"], "diffusion": path}


def configs(material: Path) -> dict[str, dict[str, Any]]:
    """The experiments by kind. material: the folder of `make_material`."""
    base = merge(BASE, {"training": SHORT})
    critic = {"discriminator": {"kind": "patch", "base_channels": 4, "layers": 1}}
    losses = [{"kind": "reconstruction"}, {"kind": "adversarial", "critic": critic, "start": 96}]
    raster = {"tokenizer": str(material / "vq"), "generator": tiny("raster"), "training": {"monitor_images": 16}}
    teacher = str(material / "teacher")
    student = {"tokenizer": str(material / "kl"), "generator": straight(steps=1), "init": teacher}
    halved = {"teacher": teacher, "method": {"kind": "progressive", "first_steps": 4}}
    return {
        "tokenizer": base,
        "vqgan": base | {"losses": losses},
        "raster": merge(base, raster),
        "gan": merge(base | {"tokenizer": {"kind": "pixels"}}, {"generator": GAN}),
        "mar": merge(base | {"tokenizer": str(material / "kl")}, {"generator": tiny("mar")}),
        "distill": base | student | {"distill": halved},
        "post_training": base | {"init": str(material / "vq"), "post_training": {"neighbours": 4}},
    }


def write_commands(material: Path, folder: Path) -> dict[str, list[str]]:
    """The command of each kind, but for `--out`; writes what the commands read into `folder`."""
    commands = {}
    for kind, config in configs(material).items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(config | {"name": kind}))
        commands[kind] = ["train", str(folder / f"{kind}.yaml")]
    entry = {"tokenizer": str(folder / "tokenizer.yaml"), "generator": str(folder / "raster.yaml")}
    study = merge(STUDY, {"settings": {"training": {"images": 128}}, "entries": {"a": entry}})
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    commands["encode"] = ["encode", str(material / "kl"), "augment.flip=true", "--copies", "2"]
    commands["compare"] = ["compare", str(folder / "study.yaml")]
    return commands


# ---------------------------------------------------------------------------------------------- starting and killing


def start(arguments: list[str], out: Path, cache: Path, told: int) -> int:
    """Fork a child that runs a command. told: a pipe's end, which gets a byte for each change of a file."""
    pid = os.fork()
    if not pid:
        run_command([*arguments, "--out", str(out)], out.with_suffix(".txt"), cache, told)
    return pid


def run_command(arguments: list[str], output: Path, cache: Path, told: int) -> NoReturn:
    code = 97
    try:
        os.setsid()
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ["ARTOK_CACHE"] = str(cache)
        comparing.run_jobs = run_here
        sys.argv = ["artok", *arguments]
        sys.addaudithook(lambda event, values: tell(told, event, values))
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 96
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def tell(told: int, event: str, values: tuple[Any, ...]) -> None:
    """Write a byte when an event of the interpreter changes a file."""
    writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
        with contextlib.suppress(OSError):
            os.write(told, b".")


def run_until(arguments: list[str], out: Path, cache: Path, seconds: float, changes: int) -> tuple[int | None, int]:
    """Run a command until a time or a number of changes of files has passed, and kill it then.

    Returns the exit code, None when it was killed, and the number of changes seen.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    pid = start(arguments, out, cache, write)
    os.close(write)
    began, seen = time.perf_counter(), 0
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                seen += len(os.read(read, 4096))
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status), seen
            spent = time.perf_counter() - began
            if spent > WALL_LIMIT:
                raise TimeoutError(f"artok {' '.join(arguments)} took over {WALL_LIMIT:.0f} s")
            if spent >= seconds or seen >= changes:
                time.sleep(random.random() * NEAR if seen >= changes else 0)
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None, seen
            time.sleep(0.0005)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        raise
    finally:
        os.close(read)


# ---------------------------------------------------------------------------------------------- comparing


def contents(folder: Path) -> dict[str, object]:
    """What must be equal in two runs, by file: bytes, or the values that do not depend on time."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if any(part.endswith(TEMPORARY) for part in path.parts):
            found[f"temporary {name}"] = None
        elif path.name == "log.jsonl":
            found[name] = read_events(path)
        elif path.suffix in (".safetensors", ".bin", ".png", ".npy", ".pt"):
            found[name] = path.read_bytes()
        elif path.is_file() and path.suffix != ".lock":
            found[name] = None  # it is there
    return found


def read_events(path: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [event for event in events if event["event"] not in UNTIMED_EVENTS]
    return [{key: value for key, value in event.items() if key not in TIMED} for event in kept]


def differences(whole: dict[str, object], killed: dict[str, object]) -> list[str]:
    missing = [f"{name} is missing" for name in whole if name not in killed]
    more = [f"{name} is left" for name in killed if name not in whole]
    return missing + more + [f"{name} differs" for name in whole if name in killed and whole[name] != killed[name]]


def kill_often(kind: str, arguments: list[str], folder: Path, times: int) -> tuple[int, int, list[str]]:
    """Returns the number of kills, how many of them were aimed at files, and the differences."""
    shutil.rmtree(folder / kind, ignore_errors=True)
    (folder / kind).mkdir()
    began = time.perf_counter()
    code, changes = run_until(arguments, folder / kind / "whole", folder / kind / "cache-whole", 1e9, 10**9)
    duration = time.perf_counter() - began
    if code:
        return 0, 0, [f"exit code {code} without a kill"]
    whole = contents(folder / kind / "whole")
    kills, aimed, faults, number = 0, 0, list[str](), 0
    while kills < times:
        out, cache = folder / kind / f"killed{number}", folder / kind / f"cache{number}"
        number += 1
        code = None
        for turn in range(KILLS_PER_RUN):
            near = turn % 2 == 0
            limit = random.randrange(1, changes + 1) if near else 10**9
            code, _ = run_until(arguments, out, cache, 1e9 if near else random.random() * duration, limit)
            if code is not None:
                break
            kills, aimed = kills + 1, aimed + near
        if code is None:
            code, _ = run_until(arguments, out, cache, 1e9, 10**9)
        found = [f"exit code {code}"] if code else differences(whole, contents(out))
        faults += [f"run {number - 1}: {each}" for each in found]
        if not found:
            shutil.rmtree(out)
            shutil.rmtree(cache, ignore_errors=True)
    return kills, aimed, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="all when none is named")
    parser.add_argument("--times", type=int, default=50, help="kills per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("/tmp/artok-kill"))
    given = parser.parse_args()
    work = given.work.resolve()
    (work / "material").mkdir(parents=True, exist_ok=True)
    commands = write_commands(work / "material", work)
    wrong = [kind for kind in given.kinds if kind not in commands]
    if wrong:
        parser.error(f"there is no kind {wrong[0]}; the kinds are {', '.join(commands)}")
    import_everything()
    if set(given.kinds or commands) - FROM_DATA:
        make_material(work / "material")
    failed = False
    for kind in given.kinds or commands:
        random.seed(f"{given.seed} {kind}")
        kills, aimed, faults = kill_often(kind, commands[kind], work, given.times)
        print(f"{kind}: {kills} kills, {aimed} of them at a change of a file, {len(faults)} differences", flush=True)
        for fault in faults:
            print(f"  {fault}", flush=True)
        failed |= bool(faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
