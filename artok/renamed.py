"""Old names (before 0.2) of config keys and saved tensors, still read with a warning. Deleted at 1.0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

_CODEBOOK = {
    "codes": "codebook_size",
    "width": "code_dim",
    "commitment": "commitment_weight",
}
_STAGES = {
    "width": "base_channels",
    "multipliers": "channel_multipliers",
    "blocks": "num_res_blocks",
    "attention": "attention_resolutions",
}
_SAMPLING = {
    "guidance": "cfg_scale",
    "guidance_schedule": "cfg_schedule",
    "guidance_power": "cfg_power",
    "guidance_interval": "cfg_interval",
}

RENAMED_VALUES = {"timestep_spacing": {"spread": "linspace", "stride": "leading"}}  # new key, old value: new value

SPLIT_KINDS = {  # room and old kind: the key that split it, the new kind where that is true, keys that it has not
    ("generators", "mar"): (
        "causal",
        "causal_mar",
        (
            *("decoder_depth", "decoder_width", "decoder_heads", "steps"),
            *("mask_low", "mask_deviation", "mask_ratio_min", "mask_ratio_std"),
        ),
    ),
}

SYNONYMS = {  # names of other libraries for which a message suggests artok's
    "learning_rate": "lr",
    "batch_size": "global_batch",
    "max_grad_norm": "grad_clip",
    "ema_decay": "ema",
    "n_embed": "codebook_size",
    "num_embeddings": "codebook_size",
    "embed_dim": "code_dim",
    "guidance_scale": "cfg_scale",
    "num_inference_steps": "steps",
    "num_layers": "depth",
    "resolution": "size",
}

RENAMED: dict[str, dict[str, str]] = {  # module and class below artok, old key: new key
    "training.settings.Training": {
        "batch": "global_batch",
        "accumulate": "gradient_accumulation_steps",
        "recompute": "gradient_checkpointing",
        "keep": "keep_last",
        "weights_every": "snapshot_every",
        "monitor_features": "monitor_extractor",
    },
    "training.settings.Optimizer": {"rate": "lr", "clip": "grad_clip", "final": "min_lr_ratio"},
    "sampling.settings.Sampling": _SAMPLING,
    "studies.config.Study": {"contestants": "entries", "sweep": "beside"},
    "studies.config.SamplingGrid": {"guidance": "cfg_scale"},
    "sampling.diffusion.DiffusionConfig": {
        "first_beta": "beta_start",
        "last_beta": "beta_end",
        "zero_terminal": "zero_terminal_snr",
        "min_snr": "min_snr_gamma",
        "target": "prediction_type",
        "logit_deviation": "logit_std",
        "spacing": "timestep_spacing",
        "clip": "clip_sample",
    },
    "quantizers.codebook.CodebookConfig": _CODEBOOK | {"revive_below": "dead_code_threshold"},
    "quantizers.multiscale.Config": {"conscience": "usage_balancing"},
    "quantizers.residual.Config": {"levels": "num_quantizers"},
    "quantizers.gumbel.Config": {"codes": "codebook_size", "width": "code_dim", "divergence": "kl_weight"},
    "quantizers.simvq.Config": _CODEBOOK,
    "quantizers.lfq.Config": {
        "codes": "codebook_size",
        "entropy": "entropy_weight",
        "diversity": "diversity_gamma",
        "commitment": "commitment_weight",
    },
    "quantizers.gaussian.Config": {"width": "latent_channels", "weight": "kl_weight"},
    "tokenizers.conv.Config": {
        **_STAGES,
        "decoder_multipliers": "decoder_channel_multipliers",
        "decoder_blocks": "decoder_num_res_blocks",
        "decoder_attention": "decoder_attention_resolutions",
        "latent": "z_channels",
    },
    "tokenizers.pixels.Config": {"patch": "patch_size"},
    "generators.base.GeneratorConfig": {"label_dropout": "class_dropout"},
    "generators.networks.unet.Config": _STAGES,
    "generators.networks.dit.Config": {"patch": "patch_size"},
    "generators.raster.Config": {"rotary_base": "rope_base"},
    "generators.var.Config": {"expansion": "mlp_ratio"},
    "generators.maskgit.Config": {"buffer": "buffer_size", "smoothing": "label_smoothing"},
    "generators.patched.PatchedConfig": {
        "buffer": "buffer_size",
        "patch": "patch_size",
        "multiplicity": "diffusion_batch_mul",
    },
    "generators.mar.Config": {"mask_low": "mask_ratio_min", "mask_deviation": "mask_ratio_std"},
    "generators.gan.Config": {"latent": "z_dim"},
    "generators.gan_networks.dcgan.Config": {"widths": "channels", "embedding": "embedding_dim"},
    "generators.gan_networks.residual.Config": {"widths": "channels", "embedding": "embedding_dim"},
    "adversarial.critic.CriticConfig": {"game": "gan_loss", "turns": "n_critic"},
    "adversarial.discriminators.dcgan.Config": {"width": "base_channels"},
    "adversarial.discriminators.patch.Config": {"width": "base_channels"},
    "adversarial.discriminators.stylegan.Config": {"width": "base_channels"},
    "adversarial.discriminators.residual.Config": {"widths": "channels", "embedding": "embedding_dim"},
}


def read_dead_code_threshold(value: object) -> object:
    """A share of an even use. It was a number of choices per step before 0.2, of which 1 was the default; such numbers
    become the default of today."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 1:
        return value
    say_renamed(f"dead_code_threshold: {value:g}", "dead_code_threshold: 0.05, a share of an even use")
    return 0.05


_LABELS = "conditioner.labels.embedding.weight"
RENAMED_TENSORS = {  # end of an old name of a saved tensor: end of its new one
    "state.embed": "table",
    "state.embed_avg": "sums",
    "state.cluster_size": "counts",
    "state.initted": "started",
    "conscience.discounts": "balancing.bias",
    "class_embedding.weight": _LABELS,
    "network.label.weight": f"network.{_LABELS}",
    "network.embedding.weight": f"network.{_LABELS}",
}


def current_name(name: str) -> str:
    """The name today of a saved tensor, whichever version saved it."""
    return _with_other_end(name, RENAMED_TENSORS)


def earlier_name(name: str) -> str:
    """The inverse of `current_name`. Fingerprints use the earlier names, so that recorded ones stay valid."""
    return _with_other_end(name, {new: old for old, new in RENAMED_TENSORS.items()})


def _with_other_end(name: str, ends: dict[str, str]) -> str:
    for end, other in ends.items():
        if f".{name}".endswith(f".{end}"):
            return name.removesuffix(end) + other
    return name


def rename_tensors(module: object, state: dict[str, Any], prefix: str, *_: object) -> None:
    """A hook for `register_load_state_dict_pre_hook` that renames the tensors of an earlier version."""
    for name in [each for each in state if each.startswith(prefix)]:
        state[current_name(name)] = state.pop(name)


# ---------------------------------------------------------------------------------------------- what the user is told

_TOGETHER: ContextVar[dict[str, str] | None] = ContextVar("together", default=None)


def say_renamed(old: str, new: str) -> None:
    """Say that a name of a config has changed: at once, or with the others of `say_together`."""
    together = _TOGETHER.get()
    if together is None:
        _say_once(f"in configs '{old}' is now called '{new}'; the old name will be refused from 1.0 on")
    else:
        together[old] = new


@contextmanager
def say_together(source: str) -> Iterator[None]:
    """One sentence on all old names in `source`, once per process."""
    names: dict[str, str] = {}
    token = _TOGETHER.set(names)
    try:
        yield
    finally:
        _TOGETHER.reset(token)
        if names:
            changes = ", ".join(f"{old} is now {new}" for old, new in names.items())
            _say_once(f"{source} has names of an earlier version, which will be refused from 1.0 on: {changes}")


@cache
def _say_once(text: str) -> None:
    print(f"artok: {text}", file=sys.stderr)
