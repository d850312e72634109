"""Procedural images of one or two coloured shapes, with classes and captions.

Image i of a split is a pure function of (seed, split, i). `shape_reading` finds in an image what it shows, and
`shape_oracle` whether that is what a caption asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from artok.data.base import DataConfig, Examples, Split, SplitName
from artok.data.captions import templated
from artok.data.drawing import SHAPES
from artok.data.fingerprints import digest_parts
from artok.data.shape_captions import write_captions
from artok.data.shape_oracle import ShapesOracle
from artok.data.shape_scenes import COLOURS, KINDS, Scene, draw, draw_scene
from artok.noise import Noise, Seed, fold

Classes = Literal["shape", "shape_colour"]


class Config(DataConfig):
    """`data: {kind: shapes}`: one or two shapes per image, always in colour.

    classes: the meaning of a label; of two shapes it is that of the left or upper one.
    objects: how many shapes an image has; a list draws one of its numbers for each image.
    sizes: shapes are small or large, and captions say so; otherwise their sizes vary a little and no caption says it.
    hold_out: how many of the 36 pairs of colour and shape neither `train` nor `test` shows, nor the same share of the
        pairings of two such pairs in one image. `Split.unseen` has images of these alone, so that a model can be asked
        for combinations that it never saw.
    train, test: nominal numbers of images; any index can be drawn.
    """

    kind: Literal["shapes"] = "shapes"
    size: int = Field(32, ge=16, description="at least 16 pixels are needed to distinguish the shapes")
    channels: Literal[1, 3] = 3
    classes: Classes = "shape"
    objects: Literal[1, 2] | Annotated[tuple[Literal[1, 2], ...], Field(min_length=1)] = 1
    sizes: bool = False
    hold_out: int = Field(0, ge=0, le=KINDS - len(SHAPES), description="each shape and each colour keeps some partner")
    train: int = Field(10_000, gt=0)
    test: int = Field(1_000, gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if self.channels != 3:
            raise ValueError("channels must be 3, since the shapes differ in colour too")
        return self

    def open(self, split: SplitName) -> Split:
        return templated(ShapesSplit(self, split), self.caption_templates)

    @classmethod
    def tiny(cls, folder: Path) -> Config:
        return cls(size=16, train=40, test=20)


class ShapesSplit(Split):
    """seen: whether its images are of the combinations of training, or of those held out."""

    captioned = True
    labels: Tensor

    def __init__(self, config: Config, split: SplitName, seen: bool = True) -> None:
        objects = config.objects
        self._numbers = (objects,) if isinstance(objects, int) else objects
        self._sizes, self._held_out, self._seen = config.sizes, config.hold_out, seen
        self._count = config.train if split == "train" else config.test
        self._by_colour = config.classes == "shape_colour"
        self.shape = (3, config.side, config.side)
        self.classes = tuple(SHAPES)
        if self._by_colour:
            self.classes = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
        named: list[object] = ["shapes 1", config.seed, split, self._count, config.side, config.classes]
        self._seed = fold("shapes", config.seed, split)
        further = (self._numbers, self._sizes, self._held_out, seen)
        if further != ((1,), False, 0, True):  # those of the first version are known by what it knew
            named += further
        self.fingerprint = digest_parts(*named)
        self.skipped = {}
        self.enlarged = set()
        self.labels = self._label(self.scene(torch.arange(self._count)))
        self.oracle = ShapesOracle()
        self.unseen = ShapesSplit(config, split, seen=False) if seen and config.hold_out else None

    def __len__(self) -> int:
        return self._count

    def scene(self, indices: Sequence[int] | Tensor) -> Scene:
        """The contents of the images at these indices."""
        noise = Noise(self._seed, torch.as_tensor(indices, dtype=torch.int64))
        return draw_scene(noise, self._numbers, self._sizes, self._held_out, self._seen)

    def read(self, indices: Sequence[int]) -> Examples:
        scene = self.scene(indices)
        return Examples(draw(scene, self.shape[1]), self._label(scene), write_captions(scene))

    def _label(self, scene: Scene) -> Tensor:
        shape, colour = scene.shape[:, 0], scene.colour[:, 0]
        return shape * len(COLOURS) + colour if self._by_colour else shape
