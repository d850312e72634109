"""MM-DiT's block: joint attention over the tokens of a sample and the entries of a context, such as a text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from artok.nn.attention import attend
from artok.nn.vit import EPS, ZeroLinear, feed_forward, modulate


class Stream(nn.Module):
    """The weights of one modality in a joint block. keys_only: it gives keys and values, and is not changed."""

    def __init__(self, width: int, heads: int, hidden: int, keys_only: bool = False) -> None:
        super().__init__()
        self.heads, self.keys_only = heads, keys_only
        self.attention_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.qkv = nn.Linear(width, (2 if keys_only else 3) * width)
        self.modulation = nn.Sequential(nn.SiLU(), ZeroLinear(width, (2 if keys_only else 6) * width))
        if not keys_only:
            self.out = nn.Linear(width, width)
            self.feed_forward_norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
            self.feed_forward = feed_forward(width, hidden, "tanh")

    def changes(self, condition_BW: Tensor) -> tuple[Tensor, ...]:
        """Shift and scale of the attention's norm; then its gate, and those three of the feed-forward layer."""
        return self.modulation(condition_BW)[:, None].chunk(2 if self.keys_only else 6, dim=-1)

    def project(self, x_BNW: Tensor, changes: tuple[Tensor, ...]) -> list[Tensor]:
        """Queries (unless keys_only), keys and values, each (B, heads, N, W / heads)."""
        qkv = self.qkv(modulate(self.attention_norm(x_BNW), changes[0], changes[1]))
        return list(qkv.unflatten(-1, (-1, self.heads, x_BNW.shape[2] // self.heads)).permute(2, 0, 3, 1, 4).unbind())

    def finish(self, x_BNW: Tensor, mixed_BNW: Tensor, changes: tuple[Tensor, ...]) -> Tensor:
        """x with its attention's output and its feed-forward layer's added."""
        _, _, gate_1, shift, scale, gate_2 = changes
        x_BNW = torch.addcmul(x_BNW, gate_1, self.out(mixed_BNW))
        return torch.addcmul(x_BNW, gate_2, self.feed_forward(modulate(self.feed_forward_norm(x_BNW), shift, scale)))


class JointBlock(nn.Module):
    """Entries and tokens have weights of their own and one attention over both (Esser et al. 2024, arXiv
    2403.03206, figure 2). All gates start at zero.

    last: of its stack. After it nothing reads the entries, so it leaves them unchanged.
    """

    def __init__(self, width: int, heads: int, hidden: int, last: bool) -> None:
        super().__init__()
        self.tokens = Stream(width, heads, hidden)
        self.entries = Stream(width, heads, hidden, keys_only=last)

    def forward(self, both_BMW: Tensor, condition_BW: Tensor, length: int, mask_BL: Tensor | None) -> Tensor:
        """both_BMW: `length` entries, then the tokens. mask_BL: bool, where there are entries."""
        entries, tokens = both_BMW[:, :length], both_BMW[:, length:]
        told, changes = self.entries.changes(condition_BW), self.tokens.changes(condition_BW)
        own, (q, k, v) = self.entries.project(entries, told), self.tokens.project(tokens, changes)
        mask = None if mask_BL is None else F.pad(mask_BL, (0, tokens.shape[1]), value=True)[:, None, None]
        queries = q if self.entries.keys_only else torch.cat([own[0], q], dim=2)
        mixed = attend(queries, torch.cat([own[-2], k], dim=2), torch.cat([own[-1], v], dim=2), mask)
        mixed_BMW = mixed.transpose(1, 2).flatten(2)
        tokens = self.tokens.finish(tokens, mixed_BMW[:, -tokens.shape[1] :], changes)
        if not self.entries.keys_only:
            entries = self.entries.finish(entries, mixed_BMW[:, :length], told)
        return torch.cat([entries, tokens], dim=1)
