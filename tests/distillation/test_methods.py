"""The equations of each method on a Gaussian, whose paths are known, and on networks in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import pytest
import torch
from helpers.generators import CLASSES, condition, generate, hearing, networks, noise, randomise_zeros, texts, tokenizer
from helpers.students import TEACHER, model
from torch import Tensor, nn

from artok.distillation import consistency, meanflow, pairs, progressive, shortcut
from artok.distillation.base import Grid, Rows, Teacher, predict_clean, pseudo_huber
from artok.errors import ConfigError
from artok.generators import diffusion
from artok.generators.diffusion import LatentDiffusion
from artok.generators.networks import unet
from artok.layout import Codec, Condition
from artok.nn import attention
from artok.nn.time import GuidedTimeEmbedding, IntervalEmbedding, TimeEmbedding
from artok.noise import Noise
from artok.sampling.diffusion import DiffusionConfig
from artok.sampling.settings import Sampling

CODEC = "conv-gaussian"
AVERAGES = TEACHER.model_copy(update={"prediction_type": "average_velocity", "steps": 1})
MEAN, DEVIATION = 0.7, 0.4  # of all numbers of the tokens


def spread(t: Tensor) -> Tensor:
    """Deviation of (1 - t) x_0 + t noise."""
    return ((1 - t).square() * DEVIATION**2 + t.square()).sqrt()


def flow(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Where the path of x at time t is at time s: the states keep their places among the Gaussian's quantiles."""
    return (1 - s) * MEAN + spread(s) / spread(t) * (x - (1 - t) * MEAN)


def true_velocity(x: Tensor, t: Tensor) -> Tensor:
    """E[noise - x_0 | x]."""
    beside = (t - (1 - t) * DEVIATION**2) / spread(t).square()
    return -MEAN + beside * (x - (1 - t) * MEAN)


class Known:
    """A network that knows the Gaussian: velocities from one time, average velocities from two."""

    gradient_checkpointing = False

    def __call__(self, x: Tensor, times: Tensor, *_: object) -> Tensor:
        if times.ndim == 1:
            return true_velocity(x, times[:, None, None] / 1000)
        t, s = (times[:, each, None, None] / 1000 for each in (0, 1))
        way = torch.where(t > s, t - s, 1)
        return torch.where(t > s, (x - flow(x, t, s)) / way, true_velocity(x, t))


def knowing(section: DiffusionConfig, monkeypatch: pytest.MonkeyPatch) -> LatentDiffusion:
    built = model(section, tokenizer(CODEC).layout, 0)
    known, network = Known(), built.network
    monkeypatch.setattr(network, "forward", known.__call__)
    return built


def gaussian(rows: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    return MEAN + DEVIATION * torch.randn(rows, 16, 4, generator=rng)


# ------------------------------------------------------------------------------------------------- MeanFlow


def test_true_averages_have_no_meanflow_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the teacher's velocity the equation holds at each point, so the loss is that of roundings."""
    student, teacher = knowing(AVERAGES, monkeypatch), knowing(TEACHER, monkeypatch)
    method = meanflow.Config(norm_power=0).build(student, Teacher(teacher))
    wrong = meanflow.Config(norm_power=0).build(student, None)
    exact, noisy = (each(gaussian(), condition(16), noise(16), None)["meanflow"] for each in (method, wrong))
    assert exact < 1e-6 < 1 < noisy
    flat = partial(meanflow.slope, velocity=torch.zeros(16, 16, 4), apart=False)
    monkeypatch.setattr(meanflow, "slope", lambda *given, **_: flat(*given[:4]))
    assert method(gaussian(), condition(16), noise(16), None)["meanflow"] > 1e-2  # with the slope at rest it fails


def test_without_a_teacher_the_error_is_that_of_noise_minus_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Improved MeanFlow along the true velocity: the rest is the spread of noise - x_0 around it, at any r."""
    student = knowing(AVERAGES, monkeypatch)
    method = meanflow.Config(norm_power=0, improved=True).build(student, None)
    clean, numbers = gaussian(64), noise(64)
    loss = method(clean, condition(64), numbers, None)["meanflow"]
    again = noise(64)
    t, _ = method.times(again)
    added, at = again.normal(16, 4), t[:, None, None]
    x = (1 - at) * clean + at * added
    wanted = (added - clean - true_velocity(x, at)).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)


def test_times_are_pinned_and_ordered() -> None:
    student = model(AVERAGES, tokenizer(CODEC).layout, 0)
    t, r = meanflow.Config(interval_share=0.5, at_noise=0.25, at_data=1.0).build(student, None).times(noise(4000))
    assert (t >= r).all() and set(r[r < t].tolist()) == {0.0}
    assert float((r < t).float().mean()) == pytest.approx(0.5, abs=0.03)  # 4 deviations of 4,000 draws
    assert float((t == 1).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_the_loss_is_weighted_by_its_own_size() -> None:
    student = model(AVERAGES, tokenizer(CODEC).layout, 0)
    values = [
        meanflow.Config(norm_power=power, improved=False).build(student, None)(
            gaussian(1), condition(1), noise(1), None
        )
        for power in (0.0, 0.5)
    ]
    plain, weighted = (float(each["meanflow"]) for each in values)
    assert weighted == pytest.approx(plain / math.sqrt(plain + 0.01), rel=1e-5)


NETWORKS = {**dict(networks()), "unet": unet.Config.tiny()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_slope_is_that_of_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: central differences of step h err by h^2, and by roundings over h. Fused attention, which has no
    forward-mode derivative, is replaced by its plain form; artok's own rounds its weights to float32."""
    config = hearing(diffusion.Config(network=NETWORKS[name], diffusion=AVERAGES), "text")
    torch.manual_seed(0)
    built = cast(LatentDiffusion, randomise_zeros(config.build(tokenizer(CODEC).layout, CLASSES))).double()
    rng = torch.Generator().manual_seed(0)
    x, v = (torch.randn(4, 16, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    t, r = (torch.tensor(each, dtype=torch.float64) for each in ([1.0, 0.6, 0.5, 0.2], [0.0, 0.1, 0.5, 0.0]))
    predict = built.under(Condition(text=texts(4)), None)
    _, plain = meanflow.slope(predict, x, t, r, v, apart=False)
    monkeypatch.setattr(attention, "PLAIN_LENGTH", 0)

    def average(h: float) -> Tensor:
        return predict(x + h * v, 1000 * torch.stack([t + h, r], dim=1))

    u, change = meanflow.slope(predict, x, t, r, v, apart=False)
    assert u.requires_grad and not change.requires_grad
    torch.testing.assert_close(u, average(0.0))
    again, same = meanflow.slope(predict, x, t, r, v, apart=True)
    assert again.requires_grad
    torch.testing.assert_close((again, same), (u, change))
    h = 1e-5
    difference = (average(h) - average(-h)) / (2 * h)
    assert difference.abs().max() > 0.1
    torch.testing.assert_close(change, difference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(plain, difference, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------- consistency


def levels(count: int) -> Grid:
    return Grid(TEACHER.sampling_levels(count), torch.device("cpu"))


def test_a_grid_ends_without_noise() -> None:
    rows = levels(4)[torch.tensor([3, 0, -1])]
    assert rows.time.tolist() == [1000, 250, 0]
    assert rows.signal.flatten().tolist() == [0, 0.75, 1] and rows.sigma.flatten().tolist() == [1, 0.25, 0]


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("schedule", ["straight", "cosine"])
def test_the_teachers_step_is_that_of_its_solver(solver: str, schedule: str) -> None:
    """A step of each row from its own level equals the sampler's step from there."""
    section = (
        TEACHER
        if schedule == "straight"
        else DiffusionConfig(schedule="cosine", prediction_type="v", timesteps=8, steps=8)
    )
    teacher = model(section, tokenizer(CODEC).layout, 1).eval()
    config = consistency.Config(levels=4, teacher_solver=solver)  # type: ignore[arg-type]
    method = config.build(model(section, tokenizer(CODEC).layout, 2), Teacher(teacher, 2.0))
    grid, x, index = method.grid(method.levels(), torch.device("cpu")), gaussian(4), torch.tensor([3, 2, 1, 0])
    with torch.no_grad():
        assert method.teacher is not None
        found = method.step(method.teacher, x, grid[index], grid[index - 1], condition(4), None)
        for row, level in enumerate(index.tolist()):
            part = section.sampling_levels(4).part(level, level)
            predict = diffusion.Guided(teacher, condition(4)[row : row + 1], Sampling(cfg_scale=2.0), 2, None)
            states = teacher.diffusion.solve(predict, x[row : row + 1], part, None, solver, None)  # type: ignore[arg-type]
            torch.testing.assert_close(list(states)[-1][0], found[row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["v", "velocity"])
def test_where_there_is_no_noise_a_student_changes_nothing(target: str) -> None:
    built = model(TEACHER.model_copy(update={"prediction_type": target}), tokenizer(CODEC).layout, 2)
    x = gaussian(3)
    assert torch.equal(predict_clean(built, x, levels(4)[torch.tensor([-1, -1, -1])], condition(3), None), x)


def test_v_has_the_published_factors() -> None:
    """c_skip = 1 / (s^2 + 1) and c_out = -s / sqrt(s^2 + 1) over x / signal, with s = sigma / signal."""
    section = DiffusionConfig(schedule="cosine", prediction_type="v", timesteps=8, steps=8)
    built, x, at = model(section, tokenizer(CODEC).layout, 2), gaussian(2), torch.tensor([6, 3])
    rows = Grid(section.sampling_levels(8), torch.device("cpu"))[at]
    s = rows.sigma / rows.signal
    output = built.under(condition(2), None)(x, rows.time)
    wanted = x / rows.signal / (s**2 + 1) - s / (s**2 + 1).sqrt() * output
    torch.testing.assert_close(predict_clean(built, x, rows, condition(2), None), wanted)


def test_the_target_is_an_average_of_the_student_at_a_cleaner_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true function has next to no error with a true teacher, and some where it learns from data alone."""
    student = model(TEACHER, tokenizer(CODEC).layout, 2)
    monkeypatch.setattr(consistency, "predict_clean", lambda _, x, at, *__: end_of_path(x, at))
    teacher = knowing(TEACHER, monkeypatch)
    losses = [
        consistency.Config(levels=64, huber=0, target_ema=0).build(student, each)(
            gaussian(), condition(16), noise(16), None
        )
        for each in (Teacher(teacher), None)
    ]
    taught, trained = (float(each["consistency"]) for each in losses)
    assert taught < 1e-6 < 1e-5 < trained  # Heun's step errs by the cube of 1/64


def end_of_path(x: Tensor, at: Rows) -> Tensor:
    return flow(x, at.sigma, torch.zeros(1))


def test_the_target_follows_the_student() -> None:
    student = model(TEACHER, tokenizer(CODEC).layout, 2)
    method = consistency.Config(levels=4, target_ema=0.75).build(student, None)
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    with torch.no_grad():
        for weight in student.parameters():
            weight += 1
    method.settle()
    for name, weight in method.target.model.named_parameters():
        torch.testing.assert_close(weight, before[name] + 0.25)
    assert not any(weight.requires_grad for weight in method.target.model.parameters())


def test_levels_double_over_the_training() -> None:
    student = model(TEACHER, tokenizer(CODEC).layout, 2)
    method = consistency.Config(levels=40, first_levels=5).build(student, None)
    found = []
    for progress in (0.0, 0.24, 0.26, 0.5, 0.76, 0.99):
        method.progress = progress
        found.append(len(method.grid(method.levels(), torch.device("cpu"))))
    assert found == [5, 5, 10, 20, 40, 40]


def test_pseudo_huber_by_hand() -> None:
    error = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    c = 0.5 * math.sqrt(2)
    assert float(pseudo_huber(error, 0.5)) == pytest.approx((math.sqrt(25 + c * c) - c) / 2)
    assert float(pseudo_huber(error, 0)) == pytest.approx(25 / 4)


# ------------------------------------------------------------------------------------------------- pairs


@torch.no_grad()
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_a_pair_is_the_teachers_sample_of_the_same_noise(cfg_scale: float) -> None:
    """A teacher in one Euler step is a student's sampler, so a student with its weights has no error."""
    codec: Codec = tokenizer(CODEC)
    teacher, student = model(TEACHER, codec.layout, 1).eval(), model(TEACHER, codec.layout, 1).eval()
    config = pairs.Config(teacher_solver="euler", teacher_steps=1)
    method = config.build(student, Teacher(teacher, cfg_scale))
    numbers = noise(5)
    numbers.uniform()  # as drawn before to hide conditions
    sample = method.teach(condition(5), noise(5), codec)
    loss = method(sample.values, condition(5), numbers, codec)["pairs"]
    assert loss < 1e-10 if cfg_scale == 1 else loss > 1e-6
    guided = Sampling(solver="euler", steps=1, cfg_scale=cfg_scale)
    *_, wanted = teacher.steps(condition(5), guided, noise(5).branch("pair"), codec)
    assert torch.equal(sample.values, wanted.values)


def test_an_embedding_of_intervals_starts_near_the_teachers() -> None:
    """Whatever the second time is. A smooth one cannot follow the fast sinusoids of the other."""
    torch.manual_seed(0)
    other, own = TimeEmbedding(32), IntervalEmbedding(32)
    with torch.no_grad():
        other.layers[2].bias += 2
    t = torch.tensor([30.0, 400.0, 990.0])
    wanted = other(t)
    assert (own(torch.stack([t, 0 * t], 1)) - wanted).abs().max() > 1
    own.fit(other)
    for share in (0.0, 0.33, 1.0):
        found = own(torch.stack([t, share * t], 1))
        assert float((found - wanted).square().mean().sqrt()) < 0.2 * float(wanted.std(0).mean() + 2)
        assert (found[0] - found[2]).norm() > 0.5 * (wanted[0] - wanted[2]).norm()


def test_a_student_starts_with_the_teachers_times() -> None:
    layout = tokenizer(CODEC).layout
    teachers = (model(section, layout, 1) for section in (TEACHER, AVERAGES))
    for teacher in teachers:
        with torch.no_grad():
            cast(nn.Linear, teacher.network.time.layers[-1]).bias += 1  # as of trained ones, most of it is the same
        student = model(AVERAGES, layout, 2)
        meanflow.Config().build(student, Teacher(teacher)).start()
        times = torch.tensor([[500.0, 0.0], [500.0, 500.0]])
        other = teacher.network.time
        wanted = other(times) if isinstance(other, IntervalEmbedding) else other(times[:, 0])
        assert (student.network.time(times) - wanted).square().mean() < 0.1 * wanted.square().mean()


# ------------------------------------------------------------------------------------------------- shortcut


def test_true_averages_are_their_own_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the teacher's velocity in the other rows there is no error but that of the shortest steps, of order 2^-7."""
    student, teacher = knowing(AVERAGES, monkeypatch), knowing(TEACHER, monkeypatch)
    monkeypatch.setattr("artok.distillation.shortcut.MovingAverage", lambda *_: Fixed(student))
    errors = [
        float(config.build(student, Teacher(teacher))(gaussian(64), condition(64), noise(64), None)["shortcut"])
        for config in (shortcut.Config(bootstrap_share=0.5), shortcut.Config(bootstrap_share=0.5, halvings=2))
    ]
    assert errors[0] < 1e-3 < errors[1]
    alone = shortcut.Config().build(student, None)
    assert alone(gaussian(64), condition(64), noise(64), None)["shortcut"] > 0.1


class Fixed:
    def __init__(self, model: LatentDiffusion) -> None:
        self.model = model


def test_shortcut_steps_lie_on_the_grids_of_sampling() -> None:
    student = model(AVERAGES, tokenizer(CODEC).layout, 0)
    t, length, bootstraps = shortcut.Config(halvings=3, bootstrap_share=0.25).build(student, None).steps(noise(4000))
    assert float(bootstraps.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert set(length[bootstraps].tolist()) == {1.0, 0.5, 0.25} and not length[~bootstraps].any()
    places = t[bootstraps] / length[bootstraps]
    assert torch.equal(places, places.round()) and (t <= 1).all() and (t >= length).all()
    for each, share in ((1.0, 1 / 3), (0.5, 1 / 3), (0.25, 1 / 3)):
        assert float((length[bootstraps] == each).float().mean()) == pytest.approx(share, abs=0.06)


def test_the_shortest_steps_are_by_the_velocity() -> None:
    """Other half steps are the student's own."""
    student = model(AVERAGES, tokenizer(CODEC).layout, 0)
    method = shortcut.Config(halvings=2, target_ema=0).build(student, None)
    x, t, half = gaussian(2), torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.25])
    predict = student.under(condition(2), None)

    def u(x: Tensor, t: list[float], s: list[float]) -> Tensor:
        return predict(x, 1000 * torch.stack([torch.tensor(t), torch.tensor(s)], dim=1))

    first = u(x, [1.0, 1.0], [0.5, 1.0])
    second = u(x - half[:, None, None] * first, [0.5, 0.75], [0.0, 0.75])
    torch.testing.assert_close(method.two_steps(x, t, half, condition(2), None), (first + second) / 2)


# ------------------------------------------------------------------------------------------------- progressive


@torch.no_grad()
def test_a_step_of_the_student_is_two_of_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is, it starts with no error: the sampler in one step reaches what its teacher's two steps reach."""
    layout, rows = tokenizer(CODEC).layout, condition(6)
    teacher, student = model(TEACHER, layout, 1).eval(), model(TEACHER, layout, 2)
    method = progressive.Config(first_steps=1).build(student, Teacher(teacher))
    x = noise(6).normal(16, 4)
    predict = diffusion.Guided(teacher, rows, Sampling(), 2, None)
    levels, options = TEACHER.sampling_levels(2), teacher.diffusion.options(Sampling())
    *_, (reached, _) = teacher.diffusion.solve(predict, x, levels, lambda: x, "euler", options)
    monkeypatch.setattr(student.network, "forward", lambda *_: x - reached)  # from t = 1 to 0
    monkeypatch.setattr(Noise, "normal", lambda *_: x)
    assert method(gaussian(6), rows, noise(6), None)["progressive"] < 1e-9


def test_rounds_halve_the_steps_and_begin_with_the_student_as_teacher() -> None:
    layout = tokenizer(CODEC).layout
    student = model(TEACHER, layout, 2)
    method = progressive.Config(first_steps=4, last_steps=1).build(student, Teacher(model(TEACHER, layout, 1)))
    found = []
    for progress in (0.0, 0.32, 0.34, 0.66, 0.67, 0.99):
        method.progress = progress
        with torch.no_grad():
            next(student.parameters()).add_(1)
            method(gaussian(2), condition(2), noise(2), None)
            same = torch.equal(next(method.before.parameters()), next(student.parameters()))
        found.append((int(method.round), same))
    assert found == [(0, False), (0, False), (1, True), (1, False), (2, True), (2, False)]
    with pytest.raises(ValueError, match="cannot be halved"):
        progressive.Config(first_steps=6, last_steps=4)


# ------------------------------------------------------------------------------------------------- latent consistency


@torch.no_grad()
def test_a_teacher_is_guided_row_by_row() -> None:
    teacher = model(TEACHER, tokenizer(CODEC).layout, 1)
    x, at = gaussian(2), levels(4)[torch.tensor([3, 1])]
    found = Teacher(teacher).guided(x, at, torch.tensor([1.0, 3.0]), condition(2), None)
    for row, scale in enumerate((1.0, 3.0)):
        wanted = Teacher(teacher, scale).clean(x, at, condition(2), None)
        torch.testing.assert_close(found[row], wanted[row], rtol=1e-4, atol=1e-5)
    assert (found - Teacher(teacher).clean(x, at, condition(2), None))[1].abs().max() > 1e-4


@torch.no_grad()
def test_a_scale_that_is_read_takes_no_second_half() -> None:
    section = TEACHER.model_copy(update={"reads_scale": True, "solver": "consistency", "steps": 2})
    plain, student = (model(each, tokenizer(CODEC).layout, 2).eval() for each in (TEACHER, section))
    student.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.zeros_(cast(GuidedTimeEmbedding, student.network.time).scale.weight)
    rows, found = [], dict[tuple[float, bool], Tensor]()
    student.network.register_forward_hook(lambda _, inputs, __: rows.append((len(inputs[0]), inputs[1].tolist())))
    for learned in (False, True):
        for scale in (1.0, 3.0):
            found[scale, learned] = generate(student, tokenizer(CODEC), condition(2), Sampling(cfg_scale=scale)).values
        torch.nn.init.normal_(cast(GuidedTimeEmbedding, student.network.time).scale.weight)
    wanted = [(2, [[time, scale]]) for scale in (1.0, 3.0) for time in (1000.0, 500.0)]
    assert rows == wanted * 2, "two rows each, and none without a label"
    assert torch.equal(found[1.0, False], found[3.0, False]) and not torch.equal(found[1.0, True], found[3.0, True])
    same = generate(plain, tokenizer(CODEC), condition(2), Sampling(solver="consistency", steps=2)).values
    torch.testing.assert_close(found[1.0, False], same, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="cfg_parts cannot be chosen"):
        student.check(Sampling(cfg_parts=("labels",)))
