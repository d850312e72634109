"""The cases of `tools/fuzz.py`: commands with bad arguments, configs, runs, caches, studies, pictures and places."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_damage import TEXTS, damage, mutate, places, scratch, to_yaml, value, word
from fuzz_material import RUNS, STUDY, TOKENIZERS
from PIL import Image

import artok
from artok.config import read_yaml


@dataclass
class Case:
    """arguments: of `artok`. call: of the Python interface instead. nobody: run without a superuser's rights."""

    arguments: list[str] = field(default_factory=list)
    call: Callable[[], object] | None = None
    env: dict[str, str | None] = field(default_factory=dict)
    note: str = ""
    nobody: bool = False
    closed: bool = False


# ---------------------------------------------------------------------------------------------- the kinds of cases


class Maker:
    """Makes a case in an empty folder from random numbers."""

    def __init__(self, material: Path, folder: Path, rng: random.Random) -> None:
        self.material, self.folder, self.rng = material, folder, rng

    def copy(self, name: str, to: str = "") -> Path:
        target = self.folder / (to or name)
        source = self.material / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return target

    def run(self, names: tuple[str, ...] = RUNS) -> str:
        return self.copy(self.rng.choice(names)).name

    def command(self, run: str) -> list[str]:
        """A command that uses a run, and would succeed on a whole one."""
        self.copy("picture.png")
        tokenizer = run in TOKENIZERS
        choices = [
            ["train", f"{self.material}/{run}.yaml", "--out", run],
            ["train", f"{run}/config.yaml", "--out", "new"],
            ["evaluate", run, "-n", "16", "--extractor", "pixels"],
            ["report", run, "--out", "page.html"],
            ["export", run, "--out", "exported", *self.rng.choice(([], [], ["--format", "onnx"], ["--format",
            "diffusers"]))],
            ["plan", f"{run}/config.yaml"],
            ["compare", "study.yaml", "--out", "study"],
        ]  # fmt: skip
        (self.folder / "study.yaml").write_text(json.dumps(STUDY | {"entries": {"a": {"run": run}}}))
        if tokenizer or self.rng.random() < 0.3:
            choices += [["reconstruct", run, "picture.png"], ["encode", run, "--out", "tokens", "--split", "test"]]
            choices += [
                ["reconstruct", run, "picture.png"],
                ["train", f"{self.material}/raster.yaml", f"tokenizer={run}", "--out", "g"],
            ]
        if not tokenizer or self.rng.random() < 0.1:
            choices += [["sample", run, "-n", "1", "--out", "s"]] * 3
            choices += [["export", run, "--format", "npz", "-n", "4", "--out", "x.npz"]]
        return self.rng.choice(choices)

    # -------------------------------------------------------------------------------------- kinds

    def arguments(self) -> Case:
        """Options with bad values."""
        rng = self.rng
        run = self.run()
        self.copy("picture.png")
        options: dict[str, tuple[list[str], list[str]]] = {
            "train": ([f"{self.material}/vq.yaml"], ["--out", "--device", "--fresh", "--print-config"]),
            "encode": ([run], ["--split", "--copies", "--out", "--device"]),
            "sample": ([run], ["--labels", "-n", "--cfg-scale", "--temperature", "--top-k", "--top-p",
            "--truncation", "--steps",
                               "--seed", "--batch", "--out", "--device"]),
            "reconstruct": ([run, "picture.png"], ["--out", "--device"]),
            "evaluate": ([run, "-n", "16", "--extractor", "pixels"], ["-n", "--extractor", "--reference", "--device"]),
            "report": ([run], ["--out", "--title", "--plots", "--device"]),
            "import": ([f"{run}/model.safetensors"], ["--family", "--out", "--tokenizer", "--size", "--part",
            "--ignore", "--scale"]),
            "export": ([run], ["--format", "--out", "--repo", "--licence", "-n", "--batch", "--device"]),
            "demo": (["--families", "gan", "--no-sweep"], ["--out", "--families", "--device"]),
            "plan": (rng.choice(([], [f"{self.material}/vq.yaml"], [f"{self.material}/raster.yaml"])), [
                "--gpu", "--device", "--precision", "--sample-batch", "--all-families", "--json", "--family",
                "--size", "--downsample",
                "--codes", "--scales", "--depth", "--width", "--batch", "--frames", "--frame-downsample",
                "--window", "--neighbours",
                "--key-frames", "--chunk", "--overlap"]),
            "compare": ([f"{self.material}/study.yaml"], ["--out", "--device", "--measure", "--fresh",
            "--print-config"]),
            "sweep": (["digits-sweep"], ["--out", "--device", "--measure", "--print-config"]),
            "configs": ([], []),
        }  # fmt: skip
        command = rng.choice(list(options))
        first, names = options[command]
        if command == "export" and rng.random() < 0.4:
            first = [*first, "--format", "npz", "-n", "4"]
        words = [command, *first]
        if first and rng.random() < 0.15:
            words[rng.randrange(1, len(words))] = word(rng)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if names:
                name = rng.choice(names)
                words.append(name)
                if name not in ("--fresh", "--print-config", "--all-families", "--json"):
                    words.append(
                        rng.choice(("raster", "var", "mar", "diffusion", "maskgit"))
                        if name == "--family" and rng.random() < 0.7
                        else word(rng)
                    )
        if rng.random() < 0.1:
            words.append(word(rng))
        return Case(words, note="prepare only" if command in ("compare", "sweep") else "")

    def overrides(self) -> Case:
        """key=value with bad values, after every command that takes them."""
        rng = self.rng
        name = rng.choice(RUNS)
        config = json.loads(json.dumps(read_yaml(self.material / f"{name}.yaml")))
        sampling = list(config["sampling"])
        data = [place for place in places(config) if place.startswith("data.")]
        command = rng.choice(("train", "train", "train", "sample", "evaluate", "encode", "plan", "npz", "compare"))
        keys = {
            "train": places(config), "plan": places(config), "sample": sampling, "npz": sampling,
            "encode": [key.removeprefix("data.") for key in data],
            "evaluate": [*sampling, *data, "evaluation.metrics", "data.root", "data.path"],
            "compare": [*places(STUDY), "entries.a.run", "budget", "grid", "entries", "beside", "launch",
            "workers", "executor", "slurm"],
        }[command]  # fmt: skip
        given = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            key = rng.choice(keys)
            if rng.random() < 0.1:
                key += rng.choice((".0", ".0.kind", ".x", ".", "..", "[0]", ".999999999999999999999", ".²"))
            given.append(
                f"{key}={word(rng)}"
                if rng.random() < 0.95
                else rng.choice((key, f"={key}", f"{key}==", f"{key}=[", "==="))
            )
        if command in ("train", "plan"):
            return Case(
                [command, f"{self.material}/{name}.yaml", *given, *(["--out", "new"] if command == "train" else [])]
            )
        if command == "compare":
            return Case(["compare", f"{self.material}/study.yaml", *given, "--out", "new"])
        run = self.copy(name).name
        return Case(
            {
                "sample": ["sample", run, "-n", "1", *given, "--out", "s"],
                "npz": ["export", run, "--format", "npz", "-n", "4", "--out", "x.npz", *given],
                "encode": ["encode", run, *given, "--out", "tokens"],
                "evaluate": ["evaluate", run, "-n", "16", "--extractor", "pixels", *given],
            }[command]
        )

    def configs(self) -> Case:
        """YAML files: mutated, damaged, nested, of other encodings."""
        rng = self.rng
        name = rng.choice(RUNS)
        data = read_yaml(self.material / f"{name}.yaml")
        raw = rng.random()
        if raw < 0.8:
            text = to_yaml(mutate(data, rng), rng)
        elif raw < 0.9:
            text = scratch((self.material / f"{name}.yaml").read_bytes(), rng)
        else:
            deep = rng.choice((50, 500, 5000, 100000))
            text = rng.choice((
                b"a: " + b"[" * deep + b"]" * deep, b"{a: " * deep + b"}" * deep, b"a: &a [" + b"*a," * 9 + b"]",
                b"\xff\xfe\x00",
                b"- 1\n", b"", b"\x00", b"a: ${a}\n", b"a: ${b}\nb: ${a}\n", b"extends: me.yaml\n",
                b"extends: /dev/zero\n", b"extends: [1]\n",
                b"extends: ../..\n", b"? [1, 2]\n: 3\n", b"1: 2\n", b"name: !!python/object/apply:os.system [x]\n",
                b"name: !!binary aGk=\n",
                b"a: &x [1]\nb: [*x, *x]\n", b"? {a: 1}\n: 2\n", b"null: 1\n", b"a: ${oc.decode:1}\n",
                b"a: ${oc.env:NOTHING}\n",
                "name: \u2028x\n".encode(), b"a: 1\na: 2\n", b"---\na: 1\n---\nb: 2\n", b"x: " + b"9" * 10000,
                b"data: ${..}\n",
            ))  # fmt: skip
        (self.folder / "me.yaml").write_bytes(text)
        command = rng.choice(("train", "train", "train", "plan", "compare", "print"))
        words = [command if command != "print" else "train", "me.yaml"]
        return Case([*words, *({"plan": [], "print": ["--print-config"]}.get(command, ["--out", "new"]))])

    def studies(self) -> Case:
        """Study files: entries, grids, budgets."""
        rng = self.rng
        vq, raster = str(self.material / "vq.yaml"), str(self.material / "raster.yaml")
        base: dict[str, Any] = rng.choice((
            STUDY | {"entries": {"a": {"run": [str(self.material / "raster")]},
            "b": {"run": str(self.material / "gan")}}},
            STUDY | {"entries": {"a": {"tokenizer": vq, "generator": raster,
            "settings": {"training": {"images": 32}}}},
                     "budget": {"kind": "images", "amount": 64}},
            STUDY | {"tokenizer": vq, "generator": raster, "robustness": {"shares": [0.1], "neighbours": 2},
                     "grid": {"tokenizer.quantizer.codebook_size": [8, 16], "free": [{"label": "x",
                     "tokenizer": {"downsample": 4}}]},
                     "settings": {"training": {"images": 32}}, "budget": {"kind": "flops", "amount": 1e9}},
            STUDY | {"entries": {"a": {"tokenizer": vq}}, "tokenizer_settings": {"training": {"images": 32}}},
        ))  # fmt: skip
        (self.folder / "study.yaml").write_bytes(to_yaml(mutate(base, rng), rng))
        more = rng.choice((["--out", "new"], ["--out", "new"], ["--print-config"]))
        return Case([rng.choice(("compare", "sweep")), "study.yaml", *more], note="prepare only")

    def damaged(self) -> Case:
        """A run with one or two damaged files, and a command that reads it."""
        rng, run = self.rng, self.run()
        files = sorted(
            path for path in (self.folder / run).rglob("*") if path.is_file() and "samples" not in path.parts
        )
        chosen = rng.sample(files, rng.choice((1, 1, 1, 2)))
        notes = [f"{path.relative_to(self.folder)} {damage(path, rng)}" for path in chosen]
        return Case(self.command(run), note="; ".join(notes))

    def unfinished(self) -> Case:
        """A run whose training goes on from a damaged state."""
        rng, run = self.rng, self.run()
        folder = self.folder / run
        files = [
            path
            for path in folder.rglob("*")
            if path.is_file() and ("checkpoints" in path.parts or path.suffix == ".jsonl")
        ]
        path = rng.choice(sorted(files))
        note = f"{path.relative_to(self.folder)} {damage(path, rng)}"
        latest = sorted((folder / "checkpoints").iterdir())
        if rng.random() < 0.5:  # the newest gone: the one before is resumed
            shutil.rmtree(latest[-1], ignore_errors=True)
            note += "; last checkpoint removed"
        return Case(["train", f"{self.material}/{run}.yaml", "--out", run], note=note)

    def tokens(self) -> Case:
        """A damaged cache of tokens to train on, or to write over."""
        rng = self.rng
        folder = self.copy("tokens")
        path = rng.choice(sorted(folder.iterdir()))
        note = f"{path.name} {damage(path, rng)}"
        train = ["train", f"{self.material}/raster.yaml", "tokens.cache=tokens", "--out", "new"]
        return Case(rng.choice((train, train, ["encode", f"{self.material}/vq", "--out", "tokens"])), note=note)

    def finished_study(self) -> Case:
        """A study with damaged files that is compared again."""
        rng = self.rng
        folder = self.copy("study")
        path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"))
        note = f"{path.relative_to(folder)} {damage(path, rng)}"
        return Case(["compare", f"{self.material}/study.yaml", "--out", "study"], note=note)

    def pictures(self) -> Case:
        """Picture files: damaged, of other formats, with odd names."""
        rng = self.rng
        name = rng.choice(
            (
                "a.png",
                "a.jpg",
                "a.gif",
                "a",
                "a.txt",
                "ü.png",
                "a b.png",
                "-a.png",
                "a\nb.png",
                "x" * 200 + ".png",
                "\udcff.png",
            )
        )
        path = self.folder / name
        size = rng.choice(((1, 1), (1, 3000), (16, 16), (40, 30), (3000, 1)))
        mode, form = rng.choice((("L", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"),
        ("I;16", "PNG"), ("I", "TIFF"),
                                 ("F", "TIFF"), ("CMYK", "JPEG"), ("RGB", "JPEG"), ("LA", "PNG"), ("RGB", "WEBP"),
                                 ("P", "GIF"), ("RGB", "BMP"),
                                 ("RGB", "EPS"), ("RGB", "PPM"), ("HSV", "TIFF")))  # fmt: skip
        with contextlib.suppress(Exception):
            Image.new(mode, size).save(path, form)
        if not path.exists():
            path.write_bytes(b"%!PS\n{} loop\n")
        note = f"{mode} {form} {size}"
        if rng.random() < 0.5:
            note += f" {damage(path, rng)}"
        run = str(self.material / rng.choice((*TOKENIZERS, "gan", "raster")))
        return Case(
            [
                "reconstruct",
                run,
                name if not name.startswith("-") else f"./{name}",
                *rng.choice(([], [name], ["nothing.png"], ["."])),
            ],
            note=note,
        )

    def machine(self) -> Case:
        """Places that cannot be written, missing homes, a closed standard output."""
        rng, run = self.rng, self.run()
        words = self.command(run)
        case = Case(words, nobody=rng.random() < 0.7)
        readonly = self.folder / "readonly"
        readonly.mkdir(mode=0o555)
        (self.folder / "file").write_text("x")
        places = ("/proc/q", "/proc/self/q", "readonly/q", "file", "file/q", "x" * 300, "x" * 300 + "/y",
        "/dev/null", "/dev/full", "a\x07b",
                  "\udcff", "d/" * 2000 + "e", "", ".", "..", "readonly", run, f"{run}/tokenizer", "/sys/q",
                  "~/x")  # fmt: skip
        if rng.random() < 0.6:
            if "--out" in words:
                words[words.index("--out") + 1] = rng.choice(places)
            else:
                words += ["--out", rng.choice(places)]
            case.note += "out "
        else:
            name = rng.choice(
                (
                    "ARTOK_CACHE",
                    "HOME",
                    "HF_HOME",
                    "MPLCONFIGDIR",
                    "TMPDIR",
                    "ARTOK_DEVICE",
                    "ARTOK_DATA",
                )
            )
            case.env[name] = rng.choice(
                (None, "", "readonly", "readonly/x", "/proc/q", "file", "x" * 300, "\udcff", "gpu")
            )
            if name == "HOME":
                case.env["ARTOK_CACHE"] = None
        if rng.random() < 0.1:
            (self.folder / run / "model.safetensors").chmod(0)
        case.closed = rng.random() < 0.05
        return case

    def python(self) -> Case:
        """The Python interface: an ArtokError, or the result."""
        rng, run = self.rng, self.run()
        files = sorted(
            path
            for path in (self.folder / run).rglob("*")
            if path.is_file() and path.suffix in (".yaml", ".safetensors")
        )
        note = ""
        if rng.random() < 0.7:
            path = rng.choice(files)
            note = f"{path.relative_to(self.folder)} {damage(path, rng)}"
        name = run if rng.random() < 0.7 else rng.choice(TEXTS)
        which = rng.choice(("load_tokenizer", "pipeline", "call", "train", "evaluate"))
        given: Any = value(rng)
        label, count, seed = value(rng), rng.choice((1, 2, 0, -1)), value(rng)
        calls: dict[str, Callable[[], object]] = {
            "load_tokenizer": lambda: artok.load_tokenizer(name),
            "pipeline": lambda: artok.Pipeline.from_pretrained(name),
            "call": lambda: artok.Pipeline.from_pretrained(str(self.material / "raster"))(label, n=count, seed=seed),
            "train": lambda: artok.train(
                f"{self.material}/vq.yaml", [f"training.images={given}", "training.log_every=8"], out="new"
            ),
            "evaluate": lambda: artok.evaluate(name, n=16, extractor=rng.choice(("pixels", "pixels", "x"))),
        }
        return Case(
            call=calls[which], note=f"{which} {name!r:.60} {given!r:.60} {label!r:.60} {count} {seed!r:.60}; {note}"
        )


KINDS: dict[str, int] = {
    "arguments": 6, "overrides": 6, "configs": 5, "studies": 3, "damaged": 6, "unfinished": 3, "tokens": 1,
    "finished_study": 1,
    "pictures": 2, "machine": 4, "python": 2,
}  # fmt: skip
