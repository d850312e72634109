"""The decoder that denoises pixels: its path, its steps, and what its images depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from artok.config import validate
from artok.errors import ConfigError
from artok.noise import Noise
from artok.tokenizers.diffusion_decoder import DiffusionDecoder, DiffusionDecoderConfig

IMAGE, GRID = (2, 8, 8), (4, 4)


def decoder(steps: int = 3) -> DiffusionDecoder:
    torch.manual_seed(0)
    built = DiffusionDecoder(DiffusionDecoderConfig(depth=1, width=16, heads=2, steps=steps), 6, IMAGE, GRID)
    for weight in built.parameters():
        if weight.ndim >= 2 and not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    return built


def latents(count: int) -> Tensor:
    return torch.randn(count, 6, *GRID, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_an_image_depends_on_its_latents_alone() -> None:
    built, z = decoder(), latents(3)
    made = built(z)
    assert made.shape == (3, *IMAGE) and torch.equal(made, built(z))
    torch.testing.assert_close(built(z[1:2]), made[1:2])
    assert (made[0] - made[1]).abs().max() > 1e-2


@torch.no_grad()
def test_decoding_follows_the_straight_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that knows the image leads every step to it; at time t the state is (1 - t) image + t noise."""
    built, z, image = decoder(steps=4), latents(2), torch.randn(2, *IMAGE)
    states: list[tuple[float, Tensor]] = []

    def know(x: Tensor, _: Tensor, t: Tensor) -> Tensor:
        states.append((float(t[0]), x))
        return image

    monkeypatch.setattr(built, "denoise", know)
    torch.testing.assert_close(built(z), image)
    start = states[0][1]
    assert [t for t, _ in states] == [1, 0.75, 0.5, 0.25]
    for t, x in states:
        torch.testing.assert_close(x, (1 - t) * image + t * start)
    assert torch.equal(start[0], start[1])


def test_training_shows_it_images_with_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    built, images = decoder(), torch.zeros(4, *IMAGE)
    seen: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(built, "denoise", lambda x, z, t: seen.append((x, t)) or x)  # type: ignore[func-returns-value]
    built.noise = Noise(7, torch.arange(4))
    built.predict(latents(4), images)
    assert built.noise is None, "used up, so that no draw depends on how a step is split"
    draws = Noise(7, torch.arange(4)).branch("decoder")
    t, added = draws.uniform(), draws.normal(*IMAGE)
    ((x, times),) = seen
    assert torch.equal(times, t) and torch.equal(x, t[:, None, None, None] * added)


def test_it_learns_the_image_of_its_latents() -> None:
    built, z = decoder(), latents(8)
    images = z[:, :2].repeat_interleave(2, 2).repeat_interleave(2, 3).tanh()
    optimizer, losses = torch.optim.Adam(built.parameters(), lr=1e-2), list[float]()
    for step in range(100):
        built.noise = Noise(step, torch.arange(8))
        loss = (built.predict(z, images) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        assert (built(z) - images).square().mean() < 0.5 * images.square().mean()
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_each_entry_reads_and_writes_the_pixels_of_its_position() -> None:
    """Without blocks a pixel moves those of its own position only."""
    built = decoder()
    built.blocks = torch.nn.ModuleList()
    x, z, t = torch.zeros(1, *IMAGE), latents(1), torch.tensor([0.5])
    changed = x.clone()
    changed[0, :, 2, 4] = 1  # of the position (1, 2)
    moved = (built.denoise(changed, z, t) - built.denoise(x, z, t)).abs().sum((0, 1)) > 1e-6
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[2:4, 4:6] = True
    assert torch.equal(moved, wanted)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of four times the heads"):
        validate(DiffusionDecoderConfig, {"width": 20, "heads": 4}, "test")
