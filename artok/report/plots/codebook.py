"""How often each code of a codebook is used."""

from __future__ import annotations

from torch import Tensor

from artok.report.data_uris import Picture, thin
from artok.report.plots.style import COLOURS, INK, draw, in_style, new_axes

MOST = 128  # codes drawn of a larger codebook, evenly spread: a plot is no wider, and a page stays small


@in_style
def codebook_plot(counts: Tensor, images: int, name: str) -> Picture:
    """The share of each code, the most frequent first. counts: (V,) int64 over so many images."""
    shares = (counts.sort(descending=True).values.double() / counts.sum()).tolist()
    used = sum(share > 0 for share in shares)
    figure, axes = new_axes("Codebook usage", "code, the most frequent first", "share of all tokens", 2)
    places = thin(len(shares), MOST)
    heights = [shares[place] for place in places]
    axes.fill_between(places, heights, step="mid", color=COLOURS[0], alpha=0.35, linewidth=0)
    axes.step(places, heights, where="mid", color=COLOURS[0], label=f"codes in {images:,} held-out images")
    axes.axhline(1 / len(shares), color=INK, linestyle=":", linewidth=1, label="uniform use")
    axes.set_xlim(0, len(shares) - 1)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower left")
    text = f"Codebook usage of {name}: {used} of {len(shares)} codes in {images:,} held-out images"
    return draw(figure, f"{text}; the most frequent has {shares[0]:.2%} of the tokens")
