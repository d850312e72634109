"""Starts a training from the weights of another run, where they fit; `init:` of an experiment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from artok.errors import CheckpointError
from artok.generators.base import GeneratorConfig
from artok.nn.controlnet import copied_from
from artok.nn.conv3d import CausalConv
from artok.renamed import current_name
from artok.saved import TOKENIZER, WEIGHTS, Facts, find_saved, read_saved
from artok.weights import EXTRA, read_into, read_shapes, set_extra_states

LEAST = 0.5  # share of the model's numbers that must fit
MOST_NAMED = 6  # tensors in a message
INPUTS = ("input.weight", "conv_in.weight")  # first layers, which may have more channels than those they start from


@torch.no_grad()
def load_initial(
    module: nn.Module, name: str, config: GeneratorConfig | None, facts: Facts, say: Callable[[str], None]
) -> None:
    """Load what fits of a run, or of an imported or published checkpoint, into a tokenizer or a generator in training.

    Tensors are matched by name and shape. A first layer may have more input channels: the weights of the new ones are
    zero, so that it computes what it did. Convolutions of video start from those of images, so that each frame is
    computed as an image is. Copies of blocks, if the checkpoint has none, start as these blocks.

    config, facts: of the generator in training, or of a tokenizer, which has no config here. say: is told what was
    loaded, what is new, and what was left out.
    CheckpointError: there is none, it holds a tokenizer where a generator is trained, less than half of the model fits,
    or it lacks a weight that is not trained.
    """
    folder = find_saved(name)
    saved = read_saved(folder)
    if config is not None and saved.generator is None:
        raise CheckpointError(
            f"init names {folder}, which holds a tokenizer, and a generator is trained; name a generator"
        )
    if config is not None and saved.generator is not None and (reason := config.refuse_initial(saved.generator)):
        raise CheckpointError(f"init names {folder}, which {reason}")
    if config is None and saved.generator is not None:
        folder = find_saved(folder / TOKENIZER)
    path = folder / WEIGHTS
    found = read_shapes(path)
    shapes = {current_name(each): (each, shape) for each, (_, shape) in found.items()}
    own = module.state_dict(keep_vars=True)
    first = {id(tensor): each for each, tensor in reversed(own.items())}  # of shared tensors the first name only
    places: dict[str, Tensor] = {}
    widened: dict[str, Tensor] = {}
    inflated: dict[str, Tensor] = {}
    copied: dict[str, str] = {}
    extra: dict[str, Tensor] = {}  # what modules keep beside their weights, such as the vocabulary of a text encoder
    new, untrained, total, loaded = list[str](), list[str](), 0, 0
    frozen = not all(parameter.requires_grad for parameter in module.parameters())
    for each in reversed(first.values()):
        tensor = own[each]
        given, shape = shapes.get(each, ("", ()))
        if each.rpartition(".")[2] == EXTRA:
            if given:
                places[given] = extra[each] = torch.empty(shape, dtype=found[given][0])
            continue
        if not tensor.numel():
            continue
        total += tensor.numel()
        if shape == tuple(tensor.shape):
            places[given] = tensor
        elif not given and (source := copied_from(each)) is not None:
            copied[each] = source
        elif given and (layer := causal_convolution(module, each)) and layer.inflates(each.rpartition(".")[2], shape):
            places[given] = inflated[each] = torch.empty(shape, dtype=tensor.dtype)
        elif tensor.requires_grad and each.endswith(INPUTS) and fits_wider(shape, tuple(tensor.shape)):
            tensor.zero_()
            places[given] = widened[each] = torch.empty(shape, dtype=tensor.dtype)
        else:
            new.append(f"{each} {tuple(tensor.shape)}" + (f" (there {shape})" if shape else ""))
            # of a tokenizer whose decoder alone is trained, a table of codes is no parameter either
            if frozen and not tensor.requires_grad and (config is None or isinstance(tensor, nn.Parameter)):
                untrained.append(new[-1])
            continue
        loaded += tensor.numel()
    if loaded < LEAST * total and not (frozen and config is None):  # a decoder that is trained alone may be new
        raise CheckpointError(
            f"init names {folder}, of which {loaded:,} of this model's {total:,} numbers fit; it is of another "
            f"architecture{'' if not new else f', such as {new[0]}'}"
        )
    if untrained:
        raise CheckpointError(
            f"init names {folder}, which lacks {untrained[0]}, and training leaves this weight as it is; name a run of "
            "the same network and conditioning"
        )
    mark = saved.facts.tokenizer
    if config is not None and mark not in (None, facts.tokenizer) and frozen:
        raise CheckpointError(
            f"init names {folder}, which makes tokens of another tokenizer ({mark}) than this one ({facts.tokenizer}), "
            "and a part of it is not trained; name its tokenizer"
        )
    read_into(path, places)
    for each, columns in widened.items():
        own[each][:, : columns.shape[1]].copy_(columns)
    for each, image_weight in inflated.items():
        layer = causal_convolution(module, each)
        assert layer is not None
        layer.inflate(each.rpartition(".")[2], image_weight)
    for each, source in copied.items():
        own[each].copy_(own[source])
    set_extra_states(module, extra)
    unused = [given for given, _ in shapes.values() if given not in places]
    say(
        f"starts from {folder}: {loaded:,} of {total:,} numbers loaded"
        + ("" if new or widened or inflated else ", all of them")
    )
    told = {
        "new": new,
        "copied from its own blocks": list(copied),
        "wider, with zeros": list(widened),
        "inflated from images": list(inflated),
        "left out of that checkpoint": unused,
    }
    for what, names in told.items():
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            say(f"{what}: {', '.join(names[:MOST_NAMED])}{more}")


def causal_convolution(module: nn.Module, name: str) -> CausalConv | None:
    """The convolution of videos that a parameter belongs to."""
    layer = module.get_submodule(name.rpartition(".")[0])
    return layer if isinstance(layer, CausalConv) else None


def fits_wider(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a layer of one shape is one of another with fewer input channels, which come second."""
    return len(shape) == len(wanted) > 1 and shape[1] < wanted[1] and shape[:1] + shape[2:] == wanted[:1] + wanted[2:]
