"""The catalogue of published checkpoints, and fetching them from the Hugging Face hub."""

from __future__ import annotations

import difflib
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

import torch

from artok.cache import cache_directory
from artok.errors import ConfigError, RunError
from artok.interop.importing import ImportOptions, Report, check_free, import_file, sha256
from artok.locks import hold_lock
from artok.saved import CONFIG

PREFIX = "hub:"
PATIENCE = 5.0  # seconds until a DNS look-up counts as failed
TAMING = "https://heibox.uni-heidelberg.de/f/{}/?dl=1"
DIT = "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-{0}x{0}.pt"


@dataclass(frozen=True)
class Published:
    """A published file.

    repository, file: on the hub; without a repository the file is at `url`. licence: as given by its authors. size:
    side of the images, if the file does not hold it. tokenizer: short name of a generator's tokenizer. note: for the
    user. sha256: of the file, if known.
    """

    repository: str | None
    file: str
    licence: str
    family: str
    size: int | None = None
    tokenizer: str | None = None
    url: str = ""
    note: str = ""
    sha256: str | None = None

    @property
    def address(self) -> str:
        """The address to download it from by hand."""
        return self.url or f"https://huggingface.co/{self.repository}/resolve/main/{self.file}"


def _catalogue() -> dict[str, Published]:
    found = {
        "var-vae": Published("FoundationVision/var", "vae_ch160v4096z32.pth", "MIT", "var_vqvae", 256),
        "var-vae-512": Published("FoundationVision/var", "vae_ch160v4096z32.pth", "MIT", "var_vqvae", 512),
        "llamagen-vq-ds16": Published("FoundationVision/LlamaGen", "vq_ds16_c2i.pt", "MIT", "llamagen_vq", 256),
        "llamagen-vq-ds16-384": Published("FoundationVision/LlamaGen", "vq_ds16_c2i.pt", "MIT", "llamagen_vq", 384),
        "llamagen-vq-ds8": Published("FoundationVision/LlamaGen", "vq_ds8_c2i.pt", "MIT", "llamagen_vq", 256),
        "llamagen-vq-ds16-t2i": Published("peizesun/llamagen_t2i", "vq_ds16_t2i.pt", "MIT", "llamagen_vq", 256),
        "llamagen-vq-ds16-t2i-512": Published("peizesun/llamagen_t2i", "vq_ds16_t2i.pt", "MIT", "llamagen_vq", 512),
        "sd-vae-ft-mse": Published(
            "stabilityai/sd-vae-ft-mse", "diffusion_pytorch_model.safetensors", "MIT", "sd_vae_kl", 256
        ),
        "sd-vae-ft-ema": Published(
            "stabilityai/sd-vae-ft-ema", "diffusion_pytorch_model.safetensors", "MIT", "sd_vae_kl", 256
        ),
    }
    for depth in (16, 20, 24, 30):
        found[f"var-d{depth}"] = Published(
            "FoundationVision/var", f"var_d{depth}.pth", "MIT", "var_transformer", tokenizer="var-vae"
        )
    found["var-d36-512"] = found["var-d36"] = Published(
        "FoundationVision/var", "var_d36.pth", "MIT", "var_transformer", tokenizer="var-vae-512"
    )
    for name, side in (("b", 256), ("l", 256), ("b", 384), ("l", 384), ("xl", 384), ("xxl", 384), ("3b", 384)):
        found[f"llamagen-{name}-{side}"] = Published(
            "FoundationVision/LlamaGen",
            f"c2i_{name.upper()}_{side}.pt",
            "MIT",
            "llamagen_gpt",
            size=side,
            tokenizer="llamagen-vq-ds16" if side == 256 else "llamagen-vq-ds16-384",
        )
    reads = "reads flan-t5-xl, which is fetched when the first prompt is read"
    for file, side, vq in (
        ("t2i_XL_stage1_256.pt", 256, "llamagen-vq-ds16-t2i"),
        ("t2i_XL_stage2_512.pt", 512, "llamagen-vq-ds16-t2i-512"),
    ):
        found[f"llamagen-t2i-xl-{side}"] = Published(
            "peizesun/llamagen_t2i", file, "MIT", "llamagen_gpt", size=side, tokenizer=vq, note=reads
        )
    converted = "converted by others than its authors, whose own files are linked from https://github.com/LTH14/mar"
    found["mar-kl16"] = Published("jadechoghari/mar", "kl16.safetensors", "MIT", "mar_kl", 256, note=converted)
    for name in ("base", "large", "huge"):
        file = f"mar-{name}.safetensors"
        found[f"mar-{name}"] = Published("jadechoghari/mar", file, "MIT", "mar", tokenizer="mar-kl16", note=converted)
    for side in (256, 512):
        found[f"dit-xl-2-{side}"] = Published(
            f"facebook/DiT-XL-2-{side}",
            "transformer/diffusion_pytorch_model.bin",
            "CC-BY-NC-4.0",
            "dit_diffusers",
            size=side,
            tokenizer="sd-vae-ft-ema",
            note=f"in the layout of diffusers; the authors' own file is {DIT.format(side)}",
        )
    elsewhere = {
        "vqgan-f16-1024": ("140747ba53464f49b476", "e38a3aed8c86e8d47436f611325b3a23888cab70a0cc56c13cd84e8d4aab6e71"),
        "vqgan-f16-16384": ("867b05fc8c4841768640", None),
        "vqgan-gumbel-f8": ("34a747d5765840b5a99d", None),
    }
    for name, (number, checksum) in elsewhere.items():
        url = TAMING.format(number)
        found[name] = Published(None, "last.ckpt", "MIT", "taming_vqgan", 256, url=url, sha256=checksum)
    return found


CATALOGUE = _catalogue()


def table() -> str:
    """The catalogue as text: one line per checkpoint with its family, image size and tokenizer."""
    rows = [("name", "family", "size", "licence", "needs")]
    for name, entry in CATALOGUE.items():
        side = entry.size or (CATALOGUE[entry.tokenizer].size if entry.tokenizer else None)
        needs = f"tokenizer {entry.tokenizer}, fetched with it" if entry.tokenizer else ""
        rows.append((name, entry.family, str(side), entry.licence, needs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def published(name: str) -> Published:
    """The catalogue's entry for `hub:NAME`. ConfigError: there is none; the message names the nearest."""
    name = name.removeprefix(PREFIX)
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CATALOGUE)}"
        raise ConfigError(f"no published file is called {name!r}; {hint}")
    return CATALOGUE[name]


def fetch(name: str, say: Callable[[str], None]) -> Path:
    """Download a published file unless it is in the hub's cache, and verify its checksum. Returns its path.

    RunError: it cannot be fetched; the message says which file to fetch by hand and how to import it.
    """
    entry = published(name)
    say(
        f"{name.removeprefix(PREFIX)}: {entry.address}, licence {entry.licence}"
        + (f" ({entry.note})" if entry.note else "")
    )
    try:
        path = _download(entry, name)
    except Exception as error:  # the hub client raises many kinds of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"{name.removeprefix(PREFIX)} could not be fetched ({reason}); {by_hand(entry)}") from None
    verify(path, entry, say)
    return path


def by_hand(entry: Published) -> str:
    """Instructions for fetching and importing by hand."""
    command = f"'artok import FILE --family {entry.family}{f' --size {entry.size}' if entry.size else ''}"
    if entry.tokenizer is None:
        return f"fetch {entry.address} ({entry.licence}) by hand, then {command}'"
    other = published(entry.tokenizer)
    return (
        f"fetch {entry.address} ({entry.licence}) and its tokenizer {other.address} ({other.licence}) by hand; import "
        f"that with 'artok import FILE --family {other.family} --size {other.size} --out RUN', then this with "
        f"{command} --tokenizer RUN'"
    )


def import_published(name: str, out: Path, options: ImportOptions, say: Callable[[str], None]) -> Report:
    """Fetch `hub:NAME` and import it. Unless a tokenizer is given, a generator's is imported beside `out`."""
    entry = published(name)
    check_free(out)
    path = fetch(name, say)
    tokenizer = options.tokenizer
    if tokenizer is None and entry.tokenizer is not None:
        tokenizer = str(out.parent / entry.tokenizer)
        if not (Path(tokenizer) / CONFIG).exists():
            import_published(entry.tokenizer, Path(tokenizer), ImportOptions(), say)
    told = replace(options, family=options.family or entry.family, size=options.size or entry.size, tokenizer=tokenizer)
    return import_file(path, out, told, say)


def imported_run(name: str) -> Path | None:
    """The run of a published checkpoint in the user's cache, imported at its first use; None for other names.

    RunError: it could not be fetched.
    """
    short = name.removeprefix(PREFIX)
    if short not in CATALOGUE:
        return None
    folder = cache_directory() / "imported" / short
    if not (folder / CONFIG).exists():
        with hold_lock(folder):
            if not (folder / CONFIG).exists():
                import_published(short, folder, ImportOptions(), lambda line: print(line, file=sys.stderr))
    return folder


def _download(entry: Published, name: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if entry.repository is not None:
        offline = constants.is_offline_mode() or not _reachable(urlparse(constants.ENDPOINT).netloc)
        try:
            return Path(hf_hub_download(entry.repository, entry.file, local_files_only=offline))
        except LocalEntryNotFoundError:
            raise OSError("there is no network") from None
    path = Path(constants.HF_HUB_CACHE) / "artok" / f"{name.removeprefix(PREFIX)}-{entry.file}"
    if not path.exists():
        if constants.is_offline_mode() or not _reachable(urlparse(entry.url).netloc):
            raise OSError("there is no network")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(path), entry.sha256, progress=False)
    return path


def _reachable(host: str) -> bool:
    """Whether a host name resolves within a few seconds. The hub's client would retry for minutes."""
    if getproxies():
        return True
    found = threading.Event()

    def look_up() -> None:
        with suppress(OSError):
            socket.getaddrinfo(host, 443)
            found.set()

    threading.Thread(target=look_up, daemon=True).start()
    return found.wait(PATIENCE)


def verify(path: Path, entry: Published, say: Callable[[str], None]) -> None:
    """Compare a file's sha256 with the catalogue's or the hub's, which is the file's name in the hub's cache.

    RunError: they differ.
    """
    checksum = sha256(path)
    expected = entry.sha256 or path.resolve().name
    if len(expected) == 64 and expected != checksum:
        raise RunError(f"{path} is damaged: its sha256 is {checksum}, not {expected}; delete it and fetch it again")
    say(f"sha256 {checksum}" + ("" if len(expected) == 64 else ", not verified"))
