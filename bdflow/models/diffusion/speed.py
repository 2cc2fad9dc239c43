"""The UNet called faster: memory order, compilation, recorded CUDA graphs; and with deep features kept over steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bdflow.config import SpeedSettings
from bdflow.errors import InputError
from bdflow.models.diffusion.compiling import compiled
from bdflow.models.diffusion.conditions import Conditions, Half, KeptConditions
from bdflow.models.diffusion.kernels import BACKENDS, TORCH, attending
from bdflow.models.diffusion.recording import Recordings
from bdflow.models.diffusion.unet import as_rows, noise_of, output_of, refuse_other_parts, sides_of, time_embeddings


class Evaluator:
    """One evaluation of a UNet, as `speed` says: predicted noise of (n, c, h, w) float32 at a timestep, (n, c, h, w)
    float32 of one half of guidance or (2 n, c, h, w) of both, the unconditional first.

    Attributes
    ----------
    kernel : of its attention (`bdflow.models.diffusion.kernels`).

    Raises InputError for CUDA graphs without a CUDA device, or for a UNet with parts that `noise_of` leaves out.
    """

    def __init__(self, unet: nn.Module, speed: SpeedSettings) -> None:
        parameter = next(unet.parameters())
        self.unet, self.speed = unet, speed
        self.device, self.dtype = parameter.device, parameter.dtype
        refuse_other_parts(unet)
        if speed.compile == "cuda_graphs" and self.device.type != "cuda":
            raise InputError(
                "networks.speed.compile",
                found=f"cuda_graphs on device {self.device}",
                expected="a CUDA device",
                action="set networks.device: cuda, or networks.speed.compile: none.",
            )
        if speed.channels_last:
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        in_place = speed.compile == "cuda_graphs"
        self.kernel = speed.attention if speed.attention in BACKENDS else TORCH
        self.kept = KeptConditions(unet, speed.attention != "plain", speed.cached_conditions, in_place)
        self._call = compiled(lambda x, time, given: noise_of(unet, x, time, given), speed.compile)
        self._times: dict[tuple[int, ...], Tensor] = {}
        self._time: dict[int, Tensor] = {}
        self._recorded = Recordings()

    def begin(self, conditions: Conditions, timesteps: Sequence[int]) -> None:
        """Get ready for all steps of one batch: `timesteps` are those that will be asked for."""
        self.kept.fill(conditions.given, conditions.nothing, self.speed.joint_guidance)
        key = tuple(timesteps)
        if key not in self._times:
            self._times = {key: time_embeddings(self.unet, key)}
            rows = self._times[key].split(1)
            self._time = dict(zip(key, rows, strict=True))

    def time(self, timestep: int) -> Tensor:
        """(1, D): the embedding of a timestep that `begin` was told."""
        return self._time[timestep]

    def __call__(self, x: Tensor, timestep: int, conditions: Conditions, half: Half) -> Tensor:
        x, time = self.ordered(x.to(self.dtype)), self.time(timestep)
        given = conditions.of(half)
        self.kept.half = half if self.kept.active else None
        try:
            with attending(self.kernel):
                if self.speed.compile == "cuda_graphs":
                    return self._recording(x, time, given, half)
                return self._noise(x, time, given).float()
        finally:
            self.kept.half = None

    def ordered(self, x: Tensor) -> Tensor:
        """x in the memory order of the convolutions."""
        return x.contiguous(memory_format=torch.channels_last) if self.speed.channels_last else x

    def forget(self) -> None:
        """Let go of recordings and of what they read."""
        self._recorded.forget()
        self.kept.forget()

    def _noise(self, x: Tensor, time: Tensor, given: dict[str, object]) -> Tensor:
        return self._call(x, time, given)

    def _recording(self, x: Tensor, time: Tensor, given: dict[str, Any], half: Half) -> Tensor:
        sides = () if self.kept.active else sides_of(given)  # kept keys are read where they lie

        def noise(x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
            return self._noise(x, time, {**given, **dict(zip(sides, conditions, strict=True))})

        key = (half, tuple(x.shape), given["mixing"], sides_of(given))
        try:
            found: Tensor = self._recorded.call(key, noise, [x, time, *(given[side] for side in sides)])
        except Exception:
            self.forget()  # of a smaller batch, which may fit once these are gone, all is made anew
            raise
        return found


def refuse_both(every: int, speed: SpeedSettings) -> None:
    """InputError where deep features are kept and networks are compiled: what is compiled is a whole evaluation."""
    if every > 1 and speed.compile != "none":
        raise InputError(
            "painters.NAME.feature_cache",
            found=f"{every}, with networks.speed.compile: {speed.compile}",
            expected="one of the two",
            action="set feature_cache: 1 or compile: none.",
        )


@dataclass
class DeepFeatures:
    """Evaluations of which only every `every`-th goes through the whole UNet (X. Ma et al. 2023, "DeepCache").

    In between, the state that enters the last layer of the last up block is that of the last whole evaluation; only the
    first convolution, that layer and the output run.
    """

    evaluator: Evaluator
    every: int

    def __post_init__(self) -> None:
        self._deep: dict[tuple[Half, int], Tensor] = {}
        self._steps = 0

    def next_step(self) -> None:
        """Another step begins; at every `every`-th, features are forgotten."""
        if self._steps % self.every == 0:
            self._deep.clear()
        self._steps += 1

    def __call__(self, x: Tensor, timestep: int, conditions: Conditions, half: Half) -> Tensor:
        key = (half, len(x))
        if key in self._deep:
            return self._shallow(x, timestep, conditions, half, self._deep[key])
        last = self.evaluator.unet.up_blocks[-1].resnets[-1]  # type: ignore[union-attr,index]
        seen: list[Tensor] = []
        watching = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr]
        try:
            out = self.evaluator(x, timestep, conditions, half)
        finally:
            watching.remove()
        skipped = self.evaluator.unet.conv_in.out_channels  # type: ignore[union-attr]
        self._deep[key] = seen[0][:, :-skipped]  # type: ignore[operator]
        return out

    def _shallow(self, x: Tensor, timestep: int, conditions: Conditions, half: Half, deep: Tensor) -> Tensor:
        unet: Any = self.evaluator.unet
        x, time = self.evaluator.ordered(x.to(self.evaluator.dtype)), self.evaluator.time(timestep)
        block = unet.up_blocks[-1]
        kept = self.evaluator.kept
        kept.half = half if kept.active else None
        try:
            h = block.resnets[-1](torch.cat([deep, as_rows(unet.conv_in(x), len(deep))], dim=1), time)
            if getattr(block, "has_cross_attention", False):
                with attending(self.evaluator.kernel):
                    h = block.attentions[-1](h, cross_attention_kwargs=conditions.of(half))[0]
        finally:
            kept.half = None
        return output_of(unet, h).float()
