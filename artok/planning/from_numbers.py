"""A design from a few numbers: the same images, tokens and model size for every family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from artok.config import validate
from artok.errors import ConfigError
from artok.generators import diffusion, mar, maskgit, raster, var
from artok.generators.networks import dit
from artok.layout import TokenLayout
from artok.planning.meta_model import Design, build, on_layout
from artok.training.experiment import Experiment

FAMILIES = ("raster", "var", "maskgit", "mar", "diffusion")
DISCRETE = ("raster", "var", "maskgit")
MULTIPLIERS = {2: (1, 2), 4: (1, 2, 4), 8: (1, 2, 4, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}
SCALES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}  # VAR's, by latent side


@dataclass(frozen=True)
class Wish:
    """size: side of the images. downsample: of the tokenizer. codes: of the codebook, for families with one. channels:
    of continuous tokens, 4 up to downsampling 8 and else 16 unless given. scales: sides of VAR's grids, as published or
    doubling unless given. frames, frame_downsample: of a video; 1 is an image.

    depth, width: layers and width of the transformer, 64 a layer unless given; MAR and MaskGIT share the layers out to
    encoder and decoder.
    """

    size: int = 256
    downsample: int = 16
    codes: int = 16384
    channels: int | None = None
    scales: tuple[int, ...] | None = None
    frames: int = 1
    frame_downsample: int = 1
    family: str = "raster"
    depth: int = 12
    width: int | None = None
    batch: int = 256
    classes: int = 1000

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(f"there is no family {self.family!r}; there are: {', '.join(FAMILIES)}")
        if self.size % self.downsample:
            raise ConfigError(f"images of {self.size} are no multiple of the downsampling {self.downsample}")
        if self.frames % self.frame_downsample:
            raise ConfigError(f"{self.frames} frames are no multiple of their downsampling {self.frame_downsample}")
        if self.downsample not in MULTIPLIERS:
            raise ConfigError(f"downsample must be one of {', '.join(map(str, MULTIPLIERS))}, got {self.downsample}")

    @property
    def side(self) -> int:
        return self.size // self.downsample

    def video(self) -> TokenLayout:
        """The layout of a video's tokens in one grid, (frames, rows, columns)."""
        grid = (self.frames // self.frame_downsample, self.side, self.side)
        vocab = self.codes if self.family in DISCRETE else None
        width = 8 if vocab else self.channels or 16
        return TokenLayout((grid,), width, vocab, (3, self.frames, self.size, self.size))


def design_of(wish: Wish) -> Design:
    """The design on the meta device. ConfigError, LayoutError: the numbers do not fit together."""
    experiment = experiment_of(wish)
    if wish.frames == 1:
        return build(experiment, wish.classes)
    if wish.family == "var":
        raise ConfigError(
            "VAR over video needs a tokenizer of several scales in time, which artok has not; take raster"
        )
    return on_layout(experiment, wish.video(), wish.classes)


def experiment_of(wish: Wish) -> Experiment:
    """A config with these numbers, as one would write it."""
    section: dict[str, Any] = {
        "name": f"{wish.family}-{wish.size}",
        "data": {"kind": "shapes", "size": wish.size},
        "tokenizer": {
            "kind": "conv",
            "downsample": wish.downsample,
            "channel_multipliers": MULTIPLIERS[wish.downsample],
            "z_channels": 256,
            "quantizer": quantizer(wish),
        },
        "generator": generator(wish),
        "training": {"images": wish.batch, "global_batch": wish.batch, "ema": 0.9999},
    }
    return validate(Experiment, section, "the design")


def quantizer(wish: Wish) -> dict[str, Any]:
    if wish.family == "var":
        return {
            "kind": "multiscale",
            "codebook_size": wish.codes,
            "code_dim": 32,
            "scales": wish.scales or SCALES.get(wish.side),
        }
    if wish.family in DISCRETE:
        return {"kind": "vq", "codebook_size": wish.codes, "code_dim": 8}
    return {"kind": "gaussian", "latent_channels": wish.channels or (4 if wish.downsample <= 8 else 16)}


def generator(wish: Wish) -> dict[str, Any]:
    width = wish.width or 64 * wish.depth
    shape = {"width": width, "heads": max(1, width // 64) if width % 64 == 0 else 1}
    if wish.family == "diffusion":
        patch = 2 if wish.downsample <= 8 and wish.side % 2 == 0 else 1
        return {"kind": "diffusion", "network": {"kind": "dit", "depth": wish.depth, "patch_size": patch, **shape}}
    half = max(1, wish.depth // 2)
    return {"kind": wish.family, "depth": half if wish.family in ("mar", "maskgit") else wish.depth, **shape}


def wish_of(design: Design) -> Wish:
    """The numbers of a config's design, to plan the other families alike. ConfigError: it is none of one grid side."""
    experiment, layout = design.experiment, design.layout
    if experiment.generator is None:
        raise ConfigError("to compare families, name a generator's config")
    depth, width = transformer(design)
    wish = Wish(
        size=layout.image[-1], depth=depth, width=width, classes=design.classes, batch=experiment.training.global_batch
    )
    wish = replace(wish, downsample=layout.image[-1] // layout.grid[-1], codes=layout.vocab or wish.codes)
    scales = tuple(grid[0] for grid in layout.grids) if len(layout.grids) > 1 else None
    return replace(wish, scales=scales, channels=None if layout.discrete else layout.width)


def transformer(design: Design) -> tuple[int, int]:
    """Layers and width of a generator's transformer. ConfigError: it is none."""

    config = design.experiment.generator
    if isinstance(config, raster.Config):
        depth, _, width = config.shape()
    elif isinstance(config, var.Config):
        depth, width = config.depth, config.shape()[1]
    elif isinstance(config, maskgit.Config):
        width, half, _ = config.shape()
        depth = 2 * half
    elif isinstance(config, mar.Config):
        width, half, *_ = config.shape()
        depth = half + config.decoder_shape()[1]
    elif isinstance(config, diffusion.Config) and isinstance(config.network, dit.Config):
        depth, width, _ = config.network.shape()
    else:
        raise ConfigError("this generator is no transformer, so no other family can have its layers and width")
    return depth, width
