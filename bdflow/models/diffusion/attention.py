"""Which of torch's kernels computes attention: by name, or the fastest of those that take a network's shapes.

The kernels round differently. One is chosen for each part of a painter: the UNet, whose heads are small, and the
autoencoder, whose only head is as wide as its layer.
"""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from bdflow.config import SpeedSettings
from bdflow.errors import InputError
from bdflow.models.diffusion.autoencoder import moments_of, pixels_of
from bdflow.models.diffusion.conditions import Conditions, Half
from bdflow.models.diffusion.kernels import BACKENDS, PARTS, Milliseconds, attending
from bdflow.models.diffusion.unet import noise_of, time_embeddings

log = logging.getLogger(__name__)
REPEATS, WARM_UP = 5, 3
NAMES = dict(zip(PARTS, ("UNet", "autoencoder"), strict=True))


@dataclass(frozen=True)
class Call:
    """Shapes (rows, heads, T, d) of the query and of the keys of one attention."""

    query: tuple[int, ...]
    key: tuple[int, ...]

    def __str__(self) -> str:
        return f"query {self.query}, keys {self.key}"


Calls = Mapping[str, Counter[Call]]
"""By part: how often each shape is called in one evaluation of the UNet, and in encoding and decoding a batch once."""


class Network(Protocol):
    """What is asked of a diffusion model (`bdflow.models.diffusion.img2img.Img2Img`)."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    speed: SpeedSettings
    dtype: torch.dtype
    device: torch.device
    latent_shape: tuple[int, int, int]

    @property
    def nothing(self) -> Mapping[str, Tensor]: ...

    @property
    def image_size(self) -> int: ...


class Timed(Protocol):
    def __call__(self, work: Callable[[], object]) -> float:
        """Milliseconds that some work takes on the device."""


def calls_of(network: Network, rows: int, coded: int) -> Calls:
    """The attention that a network calls for `rows` pictures in the UNet and `coded` in the autoencoder. Nothing is
    computed for it.
    """
    unet, vae, nothing = network.unet, network.vae, network.nothing
    half: Half = "joint" if network.speed.joint_guidance else "conditional"

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=network.dtype, device=network.device)

    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        with _Seen() as of_unet:
            given = {side: empty(rows, *one.shape[1:]) for side, one in nothing.items()}
            conditions = Conditions(given, nothing, 0.5).of(half)
            noise_of(unet, empty(rows, *network.latent_shape), time_embeddings(unet, [1]), conditions)
        with _Seen() as of_vae:
            moments_of(vae, empty(coded, 3, network.image_size, network.image_size))
            pixels_of(vae, empty(coded, *network.latent_shape))
    return dict(zip(PARTS, (of_unet.calls, of_vae.calls), strict=True))


class _Seen(TorchFunctionMode):
    """Inside, every call of torch's attention is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is F.scaled_dot_product_attention:
            self.calls[Call(tuple(args[0].shape), tuple(args[1].shape))] += 1
        return func(*args, **(kwargs or {}))


def refuse_unfit(network: Network, part: str, name: str) -> None:
    """Raise InputError if a kernel does not take every attention of a part of a painter on its device, in its dtype."""
    if name not in BACKENDS:
        return
    for call in calls_of(network, 1, 1)[part]:
        query, key = _given(call, network.dtype, network.device)
        try:
            with attending(name):
                F.scaled_dot_product_attention(query, key, key)
        except RuntimeError as error:
            raise InputError(
                "networks.speed.attention",
                found=f"{name}, which refuses attention of {call} in {str(network.dtype).removeprefix('torch.')} on "
                f"{network.device} ({str(error).splitlines()[0]})",
                expected=f"a kernel that takes every attention of the {NAMES[part]}",
                meaning="Nothing was painted: no other kernel takes its place unasked.",
                action="set `networks.speed.attention: measured`, which leaves out what does not fit, or `fused`, with "
                "which torch chooses. If it was measured, it was on another model of GPU: use that one, or remove the "
                "store `attention` of the painter, to measure again, and what it has half painted.",
            ) from error


def measured(calls: Calls, dtype: torch.dtype, device: torch.device, timed: Timed | None = None) -> Milliseconds:
    """How long each kernel takes for the calls of each part. On the CPU nothing is measured, and all is not a number:
    there torch chooses.
    """
    if timed is None and device.type != "cuda":
        return {part: dict.fromkeys(BACKENDS, math.nan) for part in calls}
    timed = timed or _on_cuda
    return {
        part: {name: _total(name, of_part, dtype, device, timed) for name in BACKENDS}
        for part, of_part in calls.items()
    }


def _total(name: str, calls: Counter[Call], dtype: torch.dtype, device: torch.device, timed: Timed) -> float:
    total = 0.0
    for call, times in calls.items():
        query, key = _given(call, dtype, device)
        try:
            with attending(name):
                total += times * timed(lambda query=query, key=key: F.scaled_dot_product_attention(query, key, key))  # type: ignore[misc]
        except RuntimeError as refused:  # also too little memory: where it does not fit, it is not chosen
            log.debug("attention: %s refuses %s (%s)", name, call, refused)
            return math.nan
    return total


def _given(call: Call, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A query and keys as attention layers make them: heads beside each other in memory."""
    rows, heads, _, width = call.query
    query, key = (
        torch.zeros(rows, shape[2], heads, width, dtype=dtype, device=device).transpose(1, 2)
        for shape in (call.query, call.key)
    )
    return query, key


def _on_cuda(work: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        work()
    found = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()  # type: ignore[no-untyped-call]
        work()
        end.record()  # type: ignore[no-untyped-call]
        end.synchronize()  # type: ignore[no-untyped-call]
        found.append(float(start.elapsed_time(end)))  # type: ignore[no-untyped-call]
    return statistics.median(found)
