"""Tiny teachers and students for every method of distillation; a new file is found by itself."""

from __future__ import annotations

import torch

from artok.config import find, kinds
from artok.distillation.base import Method, MethodConfig, Teacher
from artok.generators import diffusion
from artok.generators.diffusion import LatentDiffusion
from artok.generators.networks import dit
from artok.generators.networks.base import NetworkConfig
from artok.layout import Codec, TokenLayout
from artok.sampling.diffusion import DiffusionConfig
from helpers.generators import CLASSES, randomise_zeros

KINDS = kinds("distillation")
TEACHER = DiffusionConfig(schedule="straight", prediction_type="velocity", solver="euler", steps=4)
TRANSFORMER = dit.Config.tiny()


def method_of(kind: str) -> MethodConfig:
    found = find("distillation", kind).tiny()
    assert isinstance(found, MethodConfig)
    return found


def student_of(method: MethodConfig) -> DiffusionConfig:
    """A section that the method can train."""
    targets = ("velocity", "average_velocity", "v", "x0")
    changes: dict[str, object] = {"steps": 1, "reads_scale": method.largest_scale is not None}
    sections = (TEACHER.model_copy(update={"prediction_type": target, **changes}) for target in targets)
    return next(section for section in sections if method.refuse(section) is None)


def model(
    section: DiffusionConfig, layout: TokenLayout, seed: int, network: NetworkConfig = TRANSFORMER
) -> LatentDiffusion:
    torch.manual_seed(seed)
    built = diffusion.Config(network=network, diffusion=section).build(layout, CLASSES)
    randomise_zeros(built)
    return built


def taught(
    method: MethodConfig, codec: Codec, network: NetworkConfig = TRANSFORMER, cfg_scale: float = 1.0
) -> tuple[LatentDiffusion, Method]:
    """A student and its method, with a teacher."""
    teacher = model(TEACHER, codec.layout, 1, network).eval().requires_grad_(False)
    student = model(student_of(method), codec.layout, 2, network)
    built = method.build(student, Teacher(teacher, cfg_scale))
    student.attach_objective(built)
    return student, built
