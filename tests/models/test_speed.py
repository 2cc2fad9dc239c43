"""Every exact switch against the plain loop, and what each is said to save; the approximate modes."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.models.diffusion.conditions import KeptConditions
from bdflow.models.diffusion.img2img import Schedule
from bdflow.models.diffusion.solvers import DDIM, DPMpp2M
from bdflow.models.versatile.unet import VersatileDiffusion
from bdflow.models.weights.bundle import open_bundle
from bdflow.models.weights.manifest import SCHEDULER

from .conftest import relative
from .test_versatile import item_inputs

PLAIN = SpeedSettings(joint_guidance=False, cached_conditions=False, attention="plain")
LATENTS, LEVELS = 1e-4, 1  # how far a switch may move latents, relative to the largest, and pixels
TABLE = DDIMScheduler(**SCHEDULER).alphas_cumprod
OPTIONS = PaintOptions(steps=6)


def bundle(speed: SpeedSettings | None = None) -> VersatileDiffusion:
    return open_bundle("tiny").versatile(speed=speed)


@pytest.fixture(scope="module")
def plain() -> VersatileDiffusion:
    return bundle(PLAIN)


@pytest.fixture(scope="module")
def usual() -> VersatileDiffusion:
    return bundle()


def latents(network: VersatileDiffusion, inputs: dict[str, Any], options: PaintOptions = OPTIONS) -> Tensor:
    schedule = Schedule.of(network.alphas_cumprod, options.steps)
    given = (inputs["start_noise"], inputs["vision"], inputs["text"], schedule, options.steps - 1)
    return network.denoise(*given, options)


ALONE = {
    "joint_guidance": {"joint_guidance": True},
    "cached_conditions": {"cached_conditions": True},
    "channels_last": {"channels_last": True},
    "attention": {"attention": "fused"},
    "all": {"joint_guidance": True, "cached_conditions": True, "channels_last": True, "attention": "fused"},
}


ONE_SWITCH = pytest.mark.slow(kind="one switch of speed")


@pytest.mark.parametrize(
    "name", [n if n in ("cached_conditions", "all") else pytest.param(n, marks=ONE_SWITCH) for n in ALONE]
)
def test_a_switch_moves_latents_by_rounding_and_pixels_by_a_level(plain: VersatileDiffusion, name: str) -> None:
    switches = {"joint_guidance": False, "cached_conditions": False, "attention": "plain", **ALONE[name]}
    faster = bundle(SpeedSettings(**switches))
    inputs = item_inputs(2, plain)
    assert relative(latents(faster, inputs), latents(plain, inputs)) < LATENTS
    for absent in ((), ("text",), ("guess_u8",)):
        given = {key: None if key in absent else value for key, value in inputs.items()}
        a, b = (network.paint(**given, options=OPTIONS).int() for network in (faster, plain))
        assert (a - b).abs().max() <= LEVELS
        assert (a != b).float().mean() < 1e-2


@pytest.mark.slow(kind="long checks")
@pytest.mark.timeout(1200)
def test_the_compiled_network_too(plain: VersatileDiffusion) -> None:
    compiled, inputs = bundle(SpeedSettings(compile="default")), item_inputs(2, plain)
    assert relative(latents(compiled, inputs), latents(plain, inputs)) < LATENTS
    a, b = (network.paint(**inputs, options=OPTIONS).int() for network in (compiled, plain))
    assert (a - b).abs().max() <= LEVELS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_graphs_too() -> None:
    networks = [open_bundle("tiny").versatile("cuda", speed=s) for s in (PLAIN, SpeedSettings(compile="cuda_graphs"))]
    inputs = item_inputs(2, networks[0])
    for _ in range(2):
        a, b = (network.paint(**inputs, options=OPTIONS).int() for network in networks)
        assert (a - b).abs().max() <= LEVELS
        inputs = {
            name: value[::-1].copy() if isinstance(value, np.ndarray) else value.flip(0)
            for name, value in inputs.items()
        }


def test_recorded_graphs_need_cuda() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"networks\.speed\.compile: found cuda_graphs on device cpu"):
            bundle(SpeedSettings(compile="cuda_graphs"))
    with pytest.raises(ValueError, match="attention"):
        SpeedSettings(attention="flashy")  # type: ignore[arg-type]


class Calls:
    """How many rows went through each layer that makes keys of conditions, and through the middle of the UNet."""

    def __init__(self, network: VersatileDiffusion) -> None:
        self.keys: list[int] = []
        self.unet: list[int] = []
        middle = network.unet.mid_block
        self.hooks = [middle.register_forward_pre_hook(lambda _, args: self.unet.append(len(args[0])))]
        for name, module in network.unet.named_modules():
            if name.endswith("attn2.to_k"):
                self.hooks.append(module.register_forward_pre_hook(lambda _, args: self.keys.append(len(args[0]))))
        self.layers = len(self.hooks) - 1

    def off(self) -> None:
        for hook in self.hooks:
            hook.remove()


def test_keys_are_made_once_a_batch_and_those_of_nothing_once_for_all() -> None:
    network = bundle()
    inputs, calls = item_inputs(2, network), Calls(network)
    network.paint(**inputs, options=OPTIONS)
    assert len(calls.unet) == 4
    assert sorted(calls.keys) == [1] * calls.layers + [2] * calls.layers
    calls.keys.clear()
    network.paint(**inputs, options=OPTIONS)
    assert calls.keys == [2] * calls.layers
    calls.off()
    every = bundle(SpeedSettings(cached_conditions=False))
    calls = Calls(every)
    every.paint(**inputs, options=OPTIONS)
    assert calls.keys == [4] * calls.layers * 4, "every step, both halves"


def test_kept_keys_follow_the_conditions(usual: VersatileDiffusion, plain: VersatileDiffusion) -> None:
    """Another batch of the same shape, of another, without one condition: nothing of the last one is left."""
    inputs = item_inputs(3, usual)
    turned = {name: value[[2, 0, 1]] for name, value in inputs.items()}
    for given in (inputs, turned, {k: v[:1] for k, v in inputs.items()}, {**turned, "vision": None}, inputs):
        a, b = (network.paint(**given, options=OPTIONS).int() for network in (usual, plain))
        assert (a - b).abs().max() <= LEVELS


def test_joint_halves_are_one_call_a_step(usual: VersatileDiffusion, plain: VersatileDiffusion) -> None:
    inputs = item_inputs(2, usual)
    for network, expected in ((usual, [4] * 4), (plain, [2] * 8)):
        calls = Calls(network)
        network.paint(**inputs, options=OPTIONS)
        assert calls.unet == expected
        calls.off()


def test_kept_conditions_hold_nothing_outside_a_call(usual: VersatileDiffusion) -> None:
    assert isinstance(usual.evaluate.kept, KeptConditions)
    assert usual.evaluate.kept.half is None


# --- approximate modes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Levels:
    alpha: Tensor
    alpha_previous: Tensor


def solve(solver: type[DDIM] | type[DPMpp2M], steps: int) -> float:
    """How wrong z0 comes out for data of a Gaussian, whose best prediction of the noise and whose way are known."""
    spread, ends = 0.5, (2.5, -2.5)  # of the data; log-SNR where it stops and starts
    log_snr = torch.linspace(ends[0], ends[1], steps + 1, dtype=torch.float64)
    alphas = torch.sigmoid(2 * log_snr)
    levels = Levels(alphas[1:], alphas[:-1])
    taking = solver(levels)

    def width(alpha: Tensor) -> Tensor:
        return (alpha * spread**2 + 1 - alpha).sqrt()

    x = width(alphas[-1]).reshape(1)
    for index in range(steps - 1, -1, -1):
        alpha = levels.alpha[index]
        eps = (1 - alpha).sqrt() * x / width(alpha) ** 2
        x = taking.step(x, eps, index)
    return abs(float(x - width(alphas[0])))


@pytest.mark.parametrize(("solver", "order"), [(DDIM, 1), (DPMpp2M, 2)])
def test_the_order_of_the_solvers(solver: type[DDIM] | type[DPMpp2M], order: int) -> None:
    errors = [solve(solver, steps) for steps in (20, 40, 80, 160)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - order) < 0.25 for slope in slopes), (errors, slopes)


@pytest.mark.slow
def test_the_higher_order_solver_is_nearer_to_many_steps(usual: VersatileDiffusion) -> None:
    """From one noisy start, timestep 721 or 716: 19 steps of each against 145 of DDIM."""
    inputs = item_inputs(2, usual)

    def end(solver: str, steps: int, first: int) -> Tensor:
        schedule = Schedule.of(TABLE, steps)
        assert schedule.timesteps[first] in (721, 716)
        options = PaintOptions(steps=steps, strength=1, solver=solver, guidance_scale=2.0)  # type: ignore[arg-type]
        x = inputs["start_noise"]
        return usual.denoise(x, inputs["vision"], inputs["text"], schedule, first, options)

    reference = end("ddim", 200, 144)
    few = {solver: float((end(solver, 25, 18) - reference).norm()) for solver in ("ddim", "dpmpp_2m")}
    assert few["dpmpp_2m"] < 0.7 * few["ddim"], few


def test_outside_the_interval_the_conditional_half_runs_alone(usual: VersatileDiffusion) -> None:
    inputs, calls = item_inputs(2, usual), Calls(usual)
    options = PaintOptions(steps=10, guidance_interval=(0.2, 0.6))
    usual.paint(**inputs, options=options)
    # timesteps 601, 501, ..., 1
    assert calls.unet == [2, 4, 4, 4, 4, 2, 2]
    calls.off()
    whole = usual.paint(**inputs, options=PaintOptions(steps=10))
    part = usual.paint(**inputs, options=options)
    assert not torch.equal(whole, part)


def test_deep_features_are_computed_every_so_many_steps(usual: VersatileDiffusion) -> None:
    inputs, calls = item_inputs(2, usual), Calls(usual)
    usual.paint(**inputs, options=PaintOptions(steps=8, feature_cache=3))
    assert calls.unet == [4, 4], "steps 1 and 4 of 6"
    calls.off()
    with pytest.raises(InputError, match=r"feature_cache"):
        bundle(SpeedSettings(compile="default")).paint(**inputs, options=PaintOptions(steps=8, feature_cache=2))


def test_a_shallow_evaluation_with_fresh_features_is_the_whole_one(usual: VersatileDiffusion) -> None:
    from bdflow.models.diffusion.conditions import Conditions
    from bdflow.models.diffusion.speed import DeepFeatures

    inputs = item_inputs(2, usual)
    given = {"vision": inputs["vision"], "text": inputs["text"]}
    nothing = {"vision": usual.unconditional_vision, "text": usual.unconditional_text}
    conditions = Conditions(given, nothing, 0.4)
    with torch.inference_mode():
        usual.evaluate.begin(conditions, [401])
        deep = DeepFeatures(usual.evaluate, 5)
        x = inputs["start_noise"]
        whole = deep(x, 401, conditions, "joint")
        shallow = deep(x, 401, conditions, "joint")
    assert relative(shallow, whole) < 1e-5


@pytest.mark.parametrize(
    ("name", "value"), [("solver", "euler"), ("guidance_interval", (0.6, 0.2)), ("feature_cache", 0)]
)
def test_wrong_modes_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        PaintOptions(**{name: value})
