"""`artok export`: a run as a folder, on the hub, or in the formats of other libraries."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from artok.errors import ConfigError, RunError
from artok.files import new_folder
from artok.interop.card import model_card, read_results
from artok.interop.to_diffusers import to_diffusers
from artok.interop.to_onnx import to_onnx
from artok.saved import (
    CONFIG,
    RESULTS,
    TOKENIZER,
    copy_file,
    copy_model,
    find_saved,
    load_generator,
    load_tokenizer,
    read_saved,
    write_text,
)

Format = Literal["safetensors", "hub", "diffusers", "onnx", "npz"]
FORMATS: tuple[str, ...] = get_args(Format)
CARD = "README.md"


def to_folder(run: str | Path, out: Path, name: str | None = None, licence: str | None = None) -> list[Path]:
    """Write a run's config, weights, tokenizer (of a generator), results and model card. Returns the written paths.

    `Pipeline.from_pretrained` and `load_tokenizer` read the folder. name: of the model on the card.
    """
    folder = find_saved(run)
    if out.resolve() == folder.resolve():
        raise ConfigError(f"{out} is the run itself; choose another folder with --out")
    if (out / CONFIG).exists() and not (out / CARD).exists():
        raise ConfigError(f"{out} holds another run, not an earlier export; choose another folder with --out")
    own = load_tokenizer(folder)[0]
    model = own if read_saved(folder).generator is None else load_generator(folder, own.layout)[0]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    results, _ = read_results(folder)
    with new_folder(out, CONFIG) as aside:
        copy_model(folder, aside)
        if (folder / TOKENIZER / CONFIG).exists():
            copy_model(folder / TOKENIZER, aside / TOKENIZER)
        if results is not None:
            copy_file(folder / RESULTS, aside / RESULTS)
        write_text(aside / CARD, model_card(folder, name or folder.resolve().name, own.layout, parameters, licence))
    if results is None:
        (out / RESULTS).unlink(missing_ok=True)  # of an earlier export
    return sorted(path for path in out.rglob("*") if path.is_file())


def to_hub(run: str | Path, repository: str, private: bool = False, licence: str | None = None) -> str:
    """Push a run with its card to the hub as `user/name`. Returns the address.

    RunError: there is no network or no permission.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError(f"a hub repository is called user/name, not {repository!r}")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as aside:
        to_folder(run, Path(aside), repository, licence)
        api = HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=aside, commit_message="Export from artok")
        except Exception as error:  # the hub client raises many kinds of errors
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RunError(
                f"could not push to {repository} ({reason}); log in with 'hf auth login', or export with "
                "--format safetensors and upload that folder"
            ) from None
    return f"https://huggingface.co/{repository}"


def export(
    run: str,
    form: str,
    out: Path,
    repository: str | None = None,
    private: bool = False,
    licence: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """`artok export` for every format but npz, which samples. Returns the paths or addresses written."""
    if form not in FORMATS:
        raise ConfigError(f"there is no format {form!r}; there are {', '.join(FORMATS)}")
    if form == "hub":
        if repository is None:
            raise ConfigError("name the repository to push to with --repo user/name")
        return [to_hub(run, repository, private, licence)]
    if form == "diffusers":
        return [str(path) for path in to_diffusers(run, out, say)]
    if form == "onnx":
        return [str(path) for path in to_onnx(run, out)]
    return [str(path) for path in to_folder(run, out, licence=licence)]
