"""The UNet called faster: memory order, compilation, recorded CUDA graphs; and with deep features kept over steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bdflow.config import SpeedSettings
from bdflow.errors import InputError
from bdflow.models.diffusion.conditions import Conditions, Half, KeptConditions


class Evaluator:
    """One evaluation of a UNet, as `speed` says: predicted noise of (n, c, h, w) float32 at a timestep.

    Raises InputError for CUDA graphs without a CUDA device.
    """

    def __init__(self, unet: nn.Module, speed: SpeedSettings) -> None:
        parameter = next(unet.parameters())
        self.unet, self.speed = unet, speed
        self.device, self.dtype = parameter.device, parameter.dtype
        if speed.compile == "cuda_graphs" and self.device.type != "cuda":
            raise InputError(
                "networks.speed.compile",
                found=f"cuda_graphs on device {self.device}",
                expected="a CUDA device",
                action="set networks.device: cuda, or networks.speed.compile: none.",
            )
        if speed.channels_last:
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.kept = KeptConditions(unet, speed.attention == "fused", speed.cached_conditions)
        self._call: Callable[..., Any] = unet
        if speed.compile == "torch_compile":
            self._call = torch.compile(unet, dynamic=False)
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}

    def begin(self, conditions: Conditions) -> None:
        """Get ready for all steps of one batch."""
        version = self.kept.version
        self.kept.fill(conditions.given, conditions.nothing, self.speed.joint_guidance)
        if self.kept.version != version:
            self._recorded.clear()

    def __call__(self, x: Tensor, timestep: int, conditions: Conditions, half: Half) -> Tensor:
        t = torch.tensor(timestep, device=self.device)
        x = self.ordered(x.to(self.dtype))
        given = conditions.of(half)
        self.kept.half = half if self.kept.active else None
        try:
            if self.speed.compile == "cuda_graphs":
                return self._recording(x, t, given, half)
            return self._noise(x, t, given).float()
        finally:
            self.kept.half = None

    def ordered(self, x: Tensor) -> Tensor:
        """x in the memory order of the convolutions."""
        return x.contiguous(memory_format=torch.channels_last) if self.speed.channels_last else x

    def _noise(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        some = next(given[side] for side in _sides(given))
        return self._call(x, t, encoder_hidden_states=some, cross_attention_kwargs=given, return_dict=False)[0]

    def _recording(self, x: Tensor, t: Tensor, given: dict[str, Any], half: Half) -> Tensor:
        key = (half, tuple(x.shape), given["mixing"], _sides(given))
        if key not in self._recorded:
            self._recorded[key] = _Recorded(self._noise, x, t, given)
        return self._recorded[key].replay(x, t, given)


def _sides(given: Mapping[str, object]) -> tuple[str, ...]:
    """The conditions that are there."""
    return tuple(side for side, value in given.items() if side != "mixing" and value is not None)


class _Recorded:
    """A CUDA graph of one evaluation: the same kernels on the same memory, launched at once."""

    def __init__(self, noise: Callable[..., Tensor], x: Tensor, t: Tensor, given: dict[str, Any]) -> None:
        sides = _sides(given)
        self.inputs = [x.clone(), t.clone(), *(given[side].clone() for side in sides)]
        held = {**given, **dict(zip(sides, self.inputs[2:], strict=True))}
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):  # libraries choose their kernels and make their workspaces
                noise(self.inputs[0], self.inputs[1], held)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.out = noise(self.inputs[0], self.inputs[1], held)

    def replay(self, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
        fresh = [x, t, *(given[side] for side in _sides(given))]
        for held, new in zip(self.inputs, fresh, strict=True):
            held.copy_(new)
        self.graph.replay()
        return self.out.float().clone()


@dataclass
class DeepFeatures:
    """Evaluations of which only every `every`-th goes through the whole UNet (X. Ma et al. 2023, "DeepCache").

    In between, the state that enters the last layer of the last up block is that of the last whole evaluation; only the
    first convolution, that layer and the output run.
    """

    evaluator: Evaluator
    every: int

    def __post_init__(self) -> None:
        if self.evaluator.speed.compile != "none":
            raise InputError(
                "painters.NAME.feature_cache",
                found=f"{self.every}, with networks.speed.compile: {self.evaluator.speed.compile}",
                expected="one of the two",
                action="set feature_cache: 1 or compile: none.",
            )
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
        x = self.evaluator.ordered(x.to(self.evaluator.dtype))
        t = torch.full((len(x),), timestep, device=x.device)
        time = unet.time_embedding(unet.time_proj(t).to(x.dtype))
        block = unet.up_blocks[-1]
        kept = self.evaluator.kept
        kept.half = half if kept.active else None
        try:
            h = block.resnets[-1](torch.cat([deep, unet.conv_in(x)], dim=1), time)
            if getattr(block, "has_cross_attention", False):
                h = block.attentions[-1](h, cross_attention_kwargs=conditions.of(half))[0]
        finally:
            kept.half = None
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(h))).float()
