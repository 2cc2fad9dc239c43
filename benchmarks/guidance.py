"""How much arithmetic a step of painting needs: counted on networks of the published size, without weights or a clock.

    python -m bdflow.benchmarks.guidance

Both halves of classifier-free guidance are one batch. They differ by their conditions alone, so up to the first
cross-attention they are computed once. Each row has the FLOP of one step of one picture, as torch counts them on meta
tensors (products of matrices and convolutions), and what is saved of the row above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from bdflow.config import SpeedSettings
from bdflow.estimate.outlines import flop_of
from bdflow.models.diffusion.conditions import Conditions
from bdflow.models.diffusion.speed import Evaluator
from bdflow.models.diffusion.unet import noise_of
from bdflow.models.stable_diffusion.unet import build_text_unet
from bdflow.models.versatile.unet import build_dual_unet
from bdflow.models.weights.manifest import SD1_UNET, VERSATILE_UNET

EDGE = 64  # of the state that 512 pixels are encoded to
TIMESTEP = 401
NAMES = {"versatile_diffusion": "Versatile Diffusion", "stable_diffusion": "Stable Diffusion 1"}
LENGTHS = {"vision": 257, "text": 77}  # tokens of 768


@dataclass(frozen=True)
class Step:
    """FLOP of one step of one picture.

    Attributes
    ----------
    twice : both halves in one batch, each computed whole.
    once : what they share computed once.
    kept : and keys and values of the conditions taken from where they are kept, as in every step but the first.
    """

    twice: float
    once: float
    kept: float


def counted(name: str) -> Step:
    """Count the UNet of `versatile_diffusion` or `stable_diffusion`, 512 x 512 pixels."""
    with torch.device("meta"), torch.inference_mode():
        unet: UNet2DConditionModel
        if name == "versatile_diffusion":
            unet, sides = build_dual_unet(VERSATILE_UNET), ("vision", "text")
        else:
            unet, sides = build_text_unet(SD1_UNET), ("text",)
        nothing = {side: torch.zeros(1, LENGTHS[side], 768) for side in sides}
        conditions = Conditions(dict(nothing), nothing, 0.4)
        state = torch.zeros(1, 4, EDGE, EDGE)
        made = _evaluator(unet, conditions, cached=False)
        both = partial(noise_of, unet, torch.cat([state, state]), made.time(TIMESTEP), conditions.of("joint"))
        twice, once = flop_of(both), flop_of(partial(made, state, TIMESTEP, conditions, "joint"))
        made = _evaluator(unet, conditions, cached=True)
        return Step(twice, once, flop_of(partial(made, state, TIMESTEP, conditions, "joint")))


def _evaluator(unet: UNet2DConditionModel, conditions: Conditions, *, cached: bool) -> Evaluator:
    # torch counts attention as products of matrices only where it is not one kernel
    made = Evaluator(unet.eval(), SpeedSettings(joint_guidance=True, cached_conditions=cached, attention="plain"))
    made.begin(conditions, [TIMESTEP])
    return made


def table() -> str:
    """Both painters' steps as Markdown."""
    lines = ["| one step of one picture | " + " | ".join(NAMES.values()) + " |", "|---" * 3 + "|"]
    steps = [counted(name) for name in NAMES]
    lines.append(_row("both halves, each whole", [f"{step.twice / 1e12:.3f} TFLOP" for step in steps]))
    lines.append(_row("what they share once", [_less(step.twice, step.once) for step in steps]))
    lines.append(_row("keys and values of the conditions kept too", [_less(step.once, step.kept) for step in steps]))
    return "\n".join(lines)


def _row(name: str, cells: list[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def _less(before: float, after: float) -> str:
    return f"{after / 1e12:.3f} TFLOP, {1 - after / before:.1%} less"


if __name__ == "__main__":
    print(table())
