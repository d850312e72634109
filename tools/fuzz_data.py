"""Cases of `tools/fuzz.py` whose bad input is data: image folders, parquet files, published weights."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow
from fuzz_cases import KINDS as COMMANDS
from fuzz_cases import Case, Maker
from fuzz_damage import damage, scratch, to_yaml, value, word
from PIL import Image
from pyarrow import parquet

from artok.config import read_yaml

NAMES = ("a.png", "b.jpg", "c", "d.txt", "ü.png", "x" * 200 + ".png", ".hidden.png", "e.PNG", "g.gif", "\u202e.png")
CLASSES = ("0", "1", "train", "test", "val", "A b", ".git", "ü", "0\n1")
FAMILIES = ("sd_vae_kl", "dit", "dit_diffusers", "taming_vqgan", "llamagen_vq", "llamagen_gpt", "mar", "mar_kl",
"var_vqvae", "var_transformer", "nothing")  # fmt: skip


def picture(rng: random.Random) -> bytes:
    """A small picture, sometimes damaged."""
    mode, form = rng.choice((("L", "PNG"), ("L", "PNG"), ("RGB", "JPEG"), ("RGBA", "PNG"), ("P", "GIF"),
    ("I;16", "PNG"), ("CMYK", "JPEG"), ("F", "TIFF"), ("1", "BMP")))  # fmt: skip
    file = io.BytesIO()
    Image.new(mode, rng.choice(((16, 16), (16, 16), (1, 1), (40, 3)))).save(file, form)
    whole = file.getvalue()
    if rng.random() < 0.01:
        return rng.choice((b"", whole[: len(whole) // 2], scratch(whole, rng), b"%!PS\n{} loop\n", rng.randbytes(50)))
    return whole


class DataMaker(Maker):
    """Makes the cases of `Maker`, and those of data."""

    def train_on(self, data: dict[str, Any], note: str) -> Case:
        """A training on data, in a config of its own, or an encoding of them."""
        rng = self.rng
        config = read_yaml(self.material / "vq.yaml") | {"data": {"size": 16, "channels": 1} | data}
        if rng.random() < 0.3:
            place = rng.choice(list(config["data"]))
            config["data"][place] = value(rng)
            note += f", {place} changed"
        config["training"] |= {"images": 16, "preview_every": 10**6, "validate_images": 4}
        (self.folder / "me.yaml").write_bytes(to_yaml(config, rng))
        return Case(["train", "me.yaml", "--out", "new"], note=note)

    def folders(self) -> Case:
        """Folders of images: damaged files, odd names, links, captions, no images."""
        rng, root, notes = self.rng, self.folder / "images", list[str]()
        for name in rng.sample(CLASSES, rng.choice((0, 1, 2, 2, 3))):
            for index in range(rng.choice((0, 1, 12, 12, 40))):
                path = root / name / (f"{index}.png" if rng.random() < 0.9 else rng.choice(NAMES))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(rng))
                if rng.random() < 0.02:
                    path.with_suffix(".txt").write_bytes(rng.choice((b"a circle\n", b"", b"\xff\xfe", b"x" * 10**5)))
        root.mkdir(exist_ok=True)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        if files and rng.random() < 0.4:
            rows = [{"file_name": str(rng.choice(files).relative_to(root)), "text": value(rng)} for _ in range(5)]
            table = root / rng.choice(("metadata.jsonl", "metadata.csv"))
            table.write_bytes("\n".join(map(json.dumps, rows)).encode())
            notes.append(f"{table.name} {damage(table, rng) if rng.random() < 0.5 else ''}")
        if files and rng.random() < 0.4:
            path = rng.choice(files)
            notes.append(f"{path.name!a} {damage(path, rng)}")
        if rng.random() < 0.2:
            (root / "link").symlink_to(rng.choice((".", "..", "nowhere", "/etc", "/dev/zero", "link")))
        if rng.random() < 0.05:
            os.mkfifo(root / "pipe.png")
        where = "images" if rng.random() < 0.9 else word(rng)
        return self.train_on({"kind": "folder", "root": where}, "; ".join(notes))

    def parquet(self) -> Case:
        """Parquet files: odd columns, missing cells, damaged bytes, pictures elsewhere."""
        rng, count = self.rng, self.rng.choice((0, 1, 12, 40))
        cells: list[Any] = [{"bytes": picture(rng), "path": None} for _ in range(count)]
        odd: list[Any] = [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": None, "path": "../x.png"}]
        odd += [{"bytes": None, "path": None}, {"bytes": b"", "path": "https://nowhere.invalid/x.png"}]
        for index in range(count):
            if rng.random() < 0.05:
                cells[index] = rng.choice(odd)
        columns: dict[str, Any] = {"image": cells}
        labels = rng.choice(("int", "int", "text", "text", "float", "none", "mixed", "huge", "no"))
        if labels != "no":
            digits = [rng.randrange(3) for _ in range(count)]
            cell: dict[str, Any] = {
                "int": int,
                "text": str,
                "float": float,
                "none": lambda _: None,
                "huge": lambda _: 2**62,
            }
            cell["mixed"] = lambda digit: digit or None
            columns["label"] = [cell[labels](digit) for digit in digits]
        if rng.random() < 0.3:
            columns[rng.choice(("text", "caption", "image2"))] = [rng.choice(("a", "", None)) for _ in range(count)]
        path, note = self.folder / "data.parquet", f"{count} rows, labels {labels}"
        parquet.write_table(pyarrow.table(columns), path, row_group_size=max(1, count // 2))
        if rng.random() < 0.4:
            note += f", {damage(path, rng)}"
        data: dict[str, Any] = {"kind": "hub", "files": rng.choice(("data.parquet", "*.parquet", {"train": str(path)}))}
        if rng.random() < 0.3:
            data |= {"streaming": True, "lengths": {"train": rng.choice((count, 1, 10**6))}}
        return self.train_on(data, note)

    def foreign(self) -> Case:
        """Published weights in other formats: damaged, of another family, pickles that hold code."""
        rng = self.rng
        path = Path(
            self.copy(rng.choice(("kl-diffusers", "diffusion-diffusers", "kl.pt", "evil.pt", "kl.safetensors")))
        )
        note = path.name
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        if rng.random() < 0.5:
            chosen = rng.choice(files)
            note += f"; {chosen.relative_to(self.folder)} {damage(chosen, rng)}"
        words = ["import", path.name, "--out", "imported"]
        for option, give in (
            ("--family", lambda: rng.choice(FAMILIES)), ("--size", lambda: rng.choice(("16", word(rng)))),
            ("--part", lambda: word(rng)), ("--scale", lambda: word(rng)), ("--ignore", lambda: word(rng)),
            ("--tokenizer", lambda: rng.choice((str(self.material / "kl"), word(rng)))),
        ):  # fmt: skip
            if rng.random() < (0.6 if option == "--family" else 0.2):
                words += [option, give()]
        return Case(words, note=note)


KINDS: dict[str, int] = COMMANDS | {"folders": 4, "parquet": 4, "foreign": 4}
