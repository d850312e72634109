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
class DesignSpec:
    """A design in a few numbers.

    size: side of the images, in pixels. downsample: image side over side of the token grid. codes: codebook size, for
    families with one. channels: of continuous tokens; default 4 up to downsample 8, else 16. scales: sides of VAR's
    grids; default as published, or doubling. frames, frame_downsample: of a video; 1 frame is an image.
    depth, width: layers and width of the transformer; default width 64 per layer. MAR and MaskGIT split the layers
    between encoder and decoder. batch: of training. classes: of the labels.
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
            raise ConfigError(f"the image size {self.size} is no multiple of the downsampling {self.downsample}")
        if self.frames % self.frame_downsample:
            raise ConfigError(f"{self.frames} frames are no multiple of the frame downsampling {self.frame_downsample}")
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


def design_of(spec: DesignSpec) -> Design:
    """The design on the meta device. Raises ConfigError or LayoutError when the numbers do not fit together."""
    experiment = experiment_of(spec)
    if spec.frames == 1:
        return build(experiment, spec.classes)
    if spec.family == "var":
        raise ConfigError(
            "VAR over video needs a tokenizer with several scales in time, and artok has none; choose another family"
        )
    return on_layout(experiment, spec.video(), spec.classes)


def experiment_of(spec: DesignSpec) -> Experiment:
    """A config with these numbers."""
    section: dict[str, Any] = {
        "name": f"{spec.family}-{spec.size}",
        "data": {"kind": "shapes", "size": spec.size},
        "tokenizer": {
            "kind": "conv",
            "downsample": spec.downsample,
            "channel_multipliers": MULTIPLIERS[spec.downsample],
            "z_channels": 256,
            "quantizer": quantizer(spec),
        },
        "generator": generator(spec),
        "training": {"images": spec.batch, "global_batch": spec.batch, "ema": 0.9999},
    }
    return validate(Experiment, section, "the design")


def quantizer(spec: DesignSpec) -> dict[str, Any]:
    if spec.family == "var":
        return {
            "kind": "multiscale",
            "codebook_size": spec.codes,
            "code_dim": 32,
            "scales": spec.scales or SCALES.get(spec.side),
        }
    if spec.family in DISCRETE:
        return {"kind": "vq", "codebook_size": spec.codes, "code_dim": 8}
    return {"kind": "gaussian", "latent_channels": spec.channels or (4 if spec.downsample <= 8 else 16)}


def generator(spec: DesignSpec) -> dict[str, Any]:
    width = spec.width or 64 * spec.depth
    shape = {"width": width, "heads": max(1, width // 64) if width % 64 == 0 else 1}
    if spec.family == "diffusion":
        patch = 2 if spec.downsample <= 8 and spec.side % 2 == 0 else 1
        return {"kind": "diffusion", "network": {"kind": "dit", "depth": spec.depth, "patch_size": patch, **shape}}
    half = max(1, spec.depth // 2)
    return {"kind": spec.family, "depth": half if spec.family in ("mar", "maskgit") else spec.depth, **shape}


def spec_of(design: Design) -> DesignSpec:
    """The numbers of a design, to plan other families alike. Raises ConfigError for tokenizers and other networks."""
    experiment, layout = design.experiment, design.layout
    if experiment.generator is None:
        raise ConfigError("to compare families, name a generator's config")
    depth, width = transformer(design)
    spec = DesignSpec(
        size=layout.image[-1], depth=depth, width=width, classes=design.classes, batch=experiment.training.global_batch
    )
    spec = replace(spec, downsample=layout.image[-1] // layout.grid[-1], codes=layout.vocab or spec.codes)
    scales = tuple(grid[0] for grid in layout.grids) if len(layout.grids) > 1 else None
    return replace(spec, scales=scales, channels=None if layout.discrete else layout.width)


def transformer(design: Design) -> tuple[int, int]:
    """Layers and width of a generator's transformer. Raises ConfigError for other networks."""
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
        raise ConfigError("this generator is no transformer, so other families cannot take its layers and width")
    return depth, width
