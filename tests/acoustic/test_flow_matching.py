"""Flow matching: losses by hand, Euler on known fields, alike alone and in a batch. Parity: tests/convert."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniaudio.acoustic.estimator import Chunks
from omniaudio.acoustic.flow_matching import SOLVERS, FlowMatchingDecoder, step_times, warped
from omniaudio.acoustic.prenet import Prenet
from omniaudio.acoustic.timbre import Timbre
from omniaudio.acoustic.unet import ConditionalUNet
from omniaudio.draws import Draws
from omniaudio.errors import UserError
from omniaudio.frontend.mel import MelSpec

SPEC = MelSpec(24000, 1920, 480, 1920, 4, 0.0, 8000.0, "ln", False)


def new_flow(estimator: Any = None, **kwargs: Any) -> FlowMatchingDecoder:
    torch.manual_seed(0)
    prenet = Prenet(6, 16, 8, 1, 2, 16, num_mels=4)
    return FlowMatchingDecoder(
        SPEC, prenet, estimator or ConditionalUNet(4, 8, 1, 1, 2, 4, 16), 50.0, **kwargs
    )


class Field(nn.Module):
    """Velocity that does not depend on the place: ``shown`` with a condition, ``free`` without."""

    num_mels = 4

    def __init__(self, shown: float, free: float) -> None:
        super().__init__()
        self.shown, self.free, self.timbre = shown, free, Timbre(4)

    def forward(self, x: Tensor, mu: Tensor, time_B: Tensor, valid_BT: Tensor, *view: object) -> Tensor:
        has_condition = (mu.abs().sum((1, 2), keepdim=True) > 0).float()
        return torch.ones_like(x) * (self.shown * has_condition + self.free * (1 - has_condition))


@torch.no_grad()
def test_guidance_extrapolates() -> None:
    flow = new_flow(Field(2.0, 1.0))
    noise = torch.zeros(1, 4, 8)
    mel, mel_len_B = flow.decode(torch.randn(1, 8, 6), torch.tensor([8]), guidance=0.5, noise=noise)
    assert mel_len_B.tolist() == [8]
    torch.testing.assert_close(mel, torch.full((1, 4, 8), 1.5 * 2.0 - 0.5 * 1.0))


class Decay(nn.Module):
    """dx/dt = -2 t x, so that x(1) = x(0) / e; remembers what it was asked."""

    num_mels = 4

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.items: list[int] = []
        self.timbre = Timbre(4)

    def forward(self, x: Tensor, mu: Tensor, time_B: Tensor, valid_BT: Tensor, *view: object) -> Tensor:
        self.times.append(float(time_B[0]))
        self.items.append(len(x))
        return -2 * time_B[:, None, None] * x


@torch.no_grad()
@pytest.mark.parametrize("time_warp", ["cosine", "uniform", "logit_normal"])
def test_solvers_come_nearer_to_the_true_path(time_warp: str) -> None:
    errors, noise = {}, torch.ones(1, 4, 8)
    for solver, calls in (("euler", 4), ("midpoint", 8), ("heun", 8)):
        field = Decay()
        mel, _ = new_flow(field).decode(
            torch.randn(1, 8, 6), torch.tensor([8]), 4, 0.3, noise, solver=solver, time_warp=time_warp
        )
        errors[solver] = float((mel - math.exp(-1)).abs().max())
        assert len(field.times) == calls and set(field.items) == {2}, "both branches in one batch"
        assert field.times[0] == 0 and max(field.times) <= 1
    assert errors["euler"] > 3 * errors["midpoint"] > 0 and errors["euler"] > 3 * errors["heun"] > 0


@torch.no_grad()
def test_euler_takes_the_steps_of_the_readable_loop() -> None:
    """And without guidance only the branch that sees the condition is computed."""
    for time_warp, times in (
        ("uniform", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("cosine", [1 - math.cos(i * math.pi / 8) for i in range(5)]),
    ):
        field = Decay()
        noise = torch.randn(1, 4, 8)
        mel, _ = new_flow(field).decode(
            torch.randn(1, 8, 6), torch.tensor([8]), 4, 0.0, noise, time_warp=time_warp
        )
        x = noise
        for now, then in itertools.pairwise(times):
            x = x + (then - now) * (-2 * now * x)
        torch.testing.assert_close(mel, x)
        assert field.items == [1] * 4 and field.times == pytest.approx(times[:-1], abs=1e-6)


def test_times_of_training_by_warp() -> None:
    uniform = torch.linspace(0, 1, 10_001)
    assert warped(uniform, "uniform").equal(uniform)
    shares = {warp: (warped(uniform, warp) < 0.25).float().mean() for warp in ("cosine", "logit_normal")}
    assert shares["cosine"] == pytest.approx(math.acos(0.75) / (math.pi / 2), abs=1e-3), "denser at the start"
    normal_below = 0.5 * (1 + math.erf(math.log(0.25 / 0.75) / math.sqrt(2)))
    assert shares["logit_normal"] == pytest.approx(normal_below, abs=1e-3), "sparser at both ends"
    assert warped(uniform, "logit_normal").isfinite().all()


def test_steps_go_from_0_to_1_by_warp() -> None:
    for warp in ("cosine", "uniform", "logit_normal"):
        times = step_times(4, warp)
        assert times[0] == 0 and times[-1] == 1 and (times.diff() > 0).all()
    assert times.tolist() == pytest.approx([0, 0.3375, 0.5, 0.6625, 1], abs=1e-4), (
        "quartiles of a logistic normal"
    )


def test_choices_are_named() -> None:
    with pytest.raises(UserError, match="flow.train_warp 'sine': can be cosine, uniform, logit_normal"):
        new_flow(train_warp="sine")
    wrong = {
        "solver": "flow solver 'x': can be euler, midpoint, heun",
        "time_warp": "flow warp 'x': can be cosine, uniform, logit_normal",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            new_flow().decode(torch.randn(1, 8, 6), torch.tensor([8]), **{name: "x"})


def test_no_step_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="flow: 0 steps; at least 1"):
        new_flow().decode(torch.randn(1, 8, 6), torch.tensor([8]), num_steps=0)


def test_perfect_velocity_has_no_loss() -> None:
    class Perfect(Field):
        def forward(self, x: Tensor, mu: Tensor, time_B: Tensor, valid_BT: Tensor, *view: object) -> Tensor:
            return target - (1 - 1e-6) * noise

    flow = new_flow(Perfect(0, 0))
    target, noise = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    valid_BT, keep_B = torch.ones(2, 5, dtype=torch.bool), torch.tensor([True, False])
    assert flow.velocity_error(target, target, valid_BT, noise, torch.tensor([0.1, 0.9]), keep_B) == 0


class Listener(Field):
    """Says nothing and remembers what it was asked."""

    def __init__(self, **slots: Any) -> None:
        super().__init__(0, 0)
        self.timbre = Timbre(4, **slots)

    def forward(self, x: Tensor, mu: Tensor, time_B: Tensor, valid_BT: Tensor, *view: object) -> Tensor:
        self.asked = (x, mu, time_B)
        return torch.zeros_like(x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("warp", "early", "drop"), [("cosine", 0.46, 0.0), ("uniform", 0.25, 0.3), ("logit_normal", 0.136, 0.6)]
)
def test_losses_use_the_warp_and_drop_the_condition(warp: str, early: float, drop: float) -> None:
    flow = new_flow(listener := Listener(), train_warp=warp, drop_condition=drop)
    hidden, mel, two_B = torch.randn(4000, 2, 6), torch.randn(4000, 4, 2), torch.full((4000,), 2)
    terms = flow.losses(hidden, two_B, mel, two_B, torch.Generator().manual_seed(0))
    x, shown, time_B = listener.asked
    assert (time_B < 0.25).float().mean() == pytest.approx(early, abs=0.03)
    dropped_B, mu = ~shown.flatten(1).any(1), flow.prenet(hidden, two_B, two_B)
    assert dropped_B.float().mean() == pytest.approx(drop, abs=0.03)
    torch.testing.assert_close(shown, mu * ~dropped_B[:, None, None])
    total, count = terms["flow/prior"]
    torch.testing.assert_close(total / count, nn.functional.l1_loss(mu, mel))
    time = time_B[:, None, None]
    noise = (x - time * mel) / (1 - time)
    total, count = terms["flow/mse"]
    torch.testing.assert_close(total / count, nn.functional.mse_loss(noise, mel), rtol=1e-2, atol=0)


@torch.no_grad()
def test_the_prompt_of_training_is_shown_and_not_counted() -> None:
    listener = Listener(speaker_width=3, prompt=True, prompt_share=0.6, max_prompt=0.9)
    flow = new_flow(listener, train_warp="uniform")
    hidden, mel, ten_B = torch.randn(500, 10, 6), torch.randn(500, 4, 10), torch.full((500,), 10)
    speaker_BS = torch.randn(500, 3)
    terms = flow.losses(hidden, ten_B, mel, ten_B, torch.Generator().manual_seed(0), speaker_BS=speaker_BS)
    x, shown, time_B = listener.asked
    mu, speaker, prompt = shown.chunk(3, dim=1)
    known_BT = prompt.any(1)
    assert known_BT.int().diff(dim=1).max() == 0 and known_BT[:, 0].float().mean() > 0.35
    assert torch.equal(prompt, mel * known_BT[:, None])
    dropped_B = ~mu.flatten(1).any(1)
    assert 50 < dropped_B.sum() < 150 and not shown[dropped_B].any(), "nothing is left of a dropped condition"
    told, untold = (listener.timbre(mel, vector)[:, 4:8] for vector in (speaker_BS, None))
    is_told_B = (speaker == told).flatten(1).all(1)
    assert 150 < is_told_B.sum() < 250
    assert torch.equal(speaker[~is_told_B & ~dropped_B], untold[~is_told_B & ~dropped_B])
    time = time_B[:, None, None]
    error = ((x - mel) / (1 - time)).square() * ~known_BT[:, None]  # of no velocity at all
    assert int(terms["flow/mse"][1]) == 4 * int((~known_BT).sum()) and int(terms["flow/prior"][1]) == 4 * 5000
    torch.testing.assert_close(terms["flow/mse"][0], error.sum(), rtol=1e-2, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_prompt_comes_out_as_it_was_given_and_is_cut_off(solver: str) -> None:
    flow = new_flow(
        ConditionalUNet(4, 8, 1, 1, 2, 4, 16, timbre=Timbre(4, 3, True)), mel_mean=-5.0, mel_std=2.0
    ).eval()
    hidden, prompt, length_B = torch.randn(2, 10, 6), torch.randn(2, 4, 6), torch.tensor([10, 8])
    given = {"solver": solver, "num_steps": 3, "noise": torch.randn(2, 4, 10)}
    given |= {"prompt_BMT": prompt, "prompt_len_B": torch.tensor([6, 2])}
    whole = []

    def spied(*args: Any, **kwargs: Any) -> Tensor:
        whole.append(FlowMatchingDecoder.integrate(flow, *args, **kwargs) * 2 - 5)
        return (whole[-1] + 5) / 2

    flow.integrate = spied  # type: ignore[method-assign]
    mel, mel_len_B = flow.decode(hidden, length_B, **given)
    assert mel_len_B.tolist() == [4, 6] and mel.shape == (2, 4, 6) and not mel[0, :, 4:].any()
    torch.testing.assert_close(whole[0][0, :, :6], prompt[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole[0][1, :, :2], prompt[1, :, :2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mel[0, :, :4], whole[0][0, :, 6:])
    torch.testing.assert_close(mel[1], whole[0][1, :, 2:8])
    given["prompt_BMT"] = prompt + 1
    assert (flow.decode(hidden, length_B, **given)[0] - mel)[0, :, :4].abs().min() > 1e-4, "the rest hears it"
    with pytest.raises(
        UserError, match="a prompt of 9 frames; the hidden states, which begin with its own, are 8"
    ):
        flow.decode(hidden, length_B, prompt_BMT=torch.randn(2, 4, 9))


@torch.no_grad()
def test_guidance_drops_speaker_and_prompt_with_the_condition() -> None:
    flow = new_flow(listener := Listener(speaker_width=3, prompt=True))
    told = {"speaker_BS": torch.randn(1, 3), "prompt_BMT": torch.randn(1, 4, 2)}
    flow.decode(torch.randn(1, 8, 6), torch.tensor([8]), 1, 0.7, **told)
    shown, free = listener.asked[1]
    assert not free.any() and all(part.any() for part in shown.chunk(3))


def test_losses_count_valid_values_of_the_shorter_of_mel_and_hidden() -> None:
    flow = new_flow()
    hidden, mel = torch.randn(2, 7, 6), torch.randn(2, 4, 9)
    terms = flow.losses(hidden, torch.tensor([7, 3]), mel, torch.tensor([9, 2]))
    assert terms.keys() == {"flow/mse", "flow/prior"}
    assert [int(count) for _, count in terms.values()] == [(7 + 2) * 4] * 2


@torch.no_grad()
def test_prior_loss_by_hand() -> None:
    """Clips of other lengths than their hidden states, standardised, value by value; padding is not counted."""
    flow = new_flow(mel_mean=-5.0, mel_std=2.0)
    hidden, mel = torch.randn(2, 7, 6), torch.randn(2, 4, 9) - 5
    hidden_len_B, mel_len_B = torch.tensor([7, 5]), torch.tensor([9, 3])
    total, count = flow.losses(hidden, hidden_len_B, mel, mel_len_B)["flow/prior"]
    mu, differences = flow.prenet(hidden, hidden_len_B, hidden_len_B), []
    for item, num_frames in enumerate((7, 3)):
        for frame, bin_ in itertools.product(range(num_frames), range(4)):
            standardised = (float(mel[item, bin_, frame]) + 5) / 2
            differences.append(abs(float(mu[item, bin_, frame]) - standardised))
    assert int(count) == len(differences) == 40
    assert float(total) == pytest.approx(sum(differences), rel=1e-5)


def test_padding_does_not_change_the_losses() -> None:
    flow, hidden, mel = new_flow(), torch.randn(1, 5, 6), torch.randn(1, 4, 5)
    five = torch.tensor([5])
    valid_BT = torch.ones(1, 5, dtype=torch.bool)
    noise, time_B, keep_B = torch.randn(1, 4, 5), torch.tensor([0.3]), torch.tensor([True])
    mu = flow.prenet(hidden, five, five)
    plain = flow.velocity_error(mel, mu, valid_BT, noise, time_B, keep_B)
    wide = [nn.functional.pad(x, (0, 3)) for x in (mel, mu, valid_BT, noise)]
    padded = flow.velocity_error(*wide, time_B, keep_B)
    torch.testing.assert_close(plain, padded)


def test_draws_follow_the_generator() -> None:
    flow, hidden, mel, five = new_flow(), torch.randn(1, 5, 6), torch.randn(1, 4, 5), torch.tensor([5])
    one, same, other = (
        flow.losses(hidden, five, mel, five, torch.Generator().manual_seed(seed))["flow/mse"][0]
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@torch.no_grad()
def test_alike_alone_and_in_a_batch() -> None:
    flow, hidden = new_flow(mel_mean=-5.0, mel_std=2.0).eval(), torch.randn(2, 150, 6)
    length_B = torch.tensor([150, 110])
    both, _ = flow.decode(hidden, length_B, num_steps=3, generator=torch.Generator().manual_seed(3))
    alone, _ = flow.decode(
        hidden[1:, :110], length_B[1:], num_steps=3, generator=torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(both[1:, :, :110], alone, atol=1e-4, rtol=1e-4)
    assert both[1, :, 110:].abs().max() == 0


def test_standardised_inside_only() -> None:
    hidden, five = torch.randn(1, 5, 6), torch.tensor([5])
    mel, draws = torch.randn(1, 4, 5), [torch.Generator().manual_seed(1) for _ in range(2)]
    plain = new_flow().losses(hidden, five, mel, five, draws[0])
    shifted = new_flow(mel_mean=-5.0, mel_std=2.0).losses(hidden, five, mel * 2 - 5, five, draws[1])
    for name in plain:
        torch.testing.assert_close(plain[name][0], shifted[name][0], atol=1e-4, rtol=1e-4)


def test_times_go_slowly_first() -> None:
    times = []

    class Recorder(Field):
        def forward(self, x: Tensor, mu: Tensor, time_B: Tensor, valid_BT: Tensor, *view: object) -> Tensor:
            times.append(float(time_B[0]))
            return super().forward(x, mu, time_B, valid_BT)

    new_flow(Recorder(1, 1)).decode(torch.randn(1, 3, 6), torch.tensor([3]), num_steps=4)
    assert times == pytest.approx([1 - math.cos(math.pi / 2 * i / 4) for i in range(4)])


def test_parts_must_agree_on_the_mel() -> None:
    with pytest.raises(UserError, match=r"flow\.estimator\.num_mels is 5, flow\.mel_spec has 4"):
        new_flow(ConditionalUNet(5, 8, 1, 1, 2, 4, 16))


def test_what_is_left_to_the_estimator_has_the_promised_width() -> None:
    """Error of the linear velocity for mels that are the guess plus noise of width s: s^2 / spread, the least."""
    flow, s, num_mels = new_flow(Field(0, 0), guess_std=0.5), 0.5, 40000
    guess = torch.ones(2, 1, num_mels)
    keep_B, time_B = torch.tensor([True, True]), torch.tensor([0.3, 0.8])
    target, noise = guess + s * torch.randn_like(guess), torch.randn_like(guess)
    time = time_B[:, None, None]
    x = (1 - time) * noise + time * target
    velocity = flow.velocity(x, guess, keep_B, time_B, torch.ones(2, num_mels, dtype=torch.bool))
    found_B = (velocity - (target - noise)).square().mean((1, 2))
    expected_B = s**2 / ((1 - time_B) ** 2 + (s * time_B) ** 2)
    torch.testing.assert_close(found_B, expected_B, rtol=0.03, atol=0)


@torch.no_grad()
def test_without_an_estimator_the_samples_spread_around_the_guess() -> None:
    flow = new_flow(Field(0, 0), guess_std=0.5)
    guess, valid_BT = torch.full((1, 4, 5000), 3.0), torch.ones(1, 5000, dtype=torch.bool)
    mel = flow.integrate(torch.randn(1, 4, 5000), guess, valid_BT, num_steps=60, guidance=0.0)
    assert mel.mean().item() == pytest.approx(3.0, abs=0.02)
    assert mel.std().item() == pytest.approx(0.5, rel=0.05)


def test_the_estimator_speaks_in_units_of_what_is_left() -> None:
    """An output of 1 moves the velocity by the error of the linear one; without condition the mel has width 1."""
    x, shown = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    shown[1] = 0
    keep_B, time_B = torch.tensor([True, False]), torch.tensor([0.3, 0.8])
    valid_BT = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    silent, one = (new_flow(Field(out, out), guess_std=0.5) for out in (0.0, 1.0))
    places = (x, shown, keep_B, time_B, valid_BT)
    step = one.velocity(*places) - silent.velocity(*places)
    left = [0.5 / math.hypot(0.7, 0.5 * 0.3), 1.0 / math.hypot(0.2, 0.8)]
    expected = torch.tensor(left)[:, None, None] * valid_BT[:, None]
    torch.testing.assert_close(step, expected.expand_as(step))


def test_chunks_of_training_are_drawn_by_the_step_from_the_sizes_given() -> None:
    flow = new_flow(train_chunks=[3, 8, 0])
    drawn = [flow.draw_chunks(Draws(seed)) for seed in range(200)]
    assert drawn == [flow.draw_chunks(Draws(seed)) for seed in range(200)]
    sizes = {chunks.size for chunks in drawn if chunks}
    assert len(sizes) == 3 and {3, 8} < sizes and max(sizes) > 100_000
    for size in (3, 8):  # cut anywhere
        assert {c.first for c in drawn if c and c.size == size} == set(range(1, size + 1))
    assert new_flow().draw_chunks(Draws(0)) is None
    with pytest.raises(UserError, match=r"flow.train_chunks \[-1\]: frames, or 0"):
        new_flow(train_chunks=[-1])


def test_losses_and_mels_follow_the_chunks() -> None:
    flow = new_flow().eval()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden, mel, length_B = torch.randn(1, 12, 6), torch.randn(1, 4, 12), torch.tensor([12])
    found = []
    for chunks in (None, Chunks(100, 100), Chunks(2, 3)):
        seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
        loss = flow.losses(hidden, length_B, mel, length_B, seeds[0], chunks)["flow/mse"][0]
        made, _ = flow.decode(hidden, length_B, 2, generator=seeds[1], chunks=chunks)
        found.append((loss, made))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.allclose(found[0][0], found[2][0]) and not torch.allclose(found[0][1], found[2][1])
