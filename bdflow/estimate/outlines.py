"""What networks need, counted on outlines: modules without weights, on the meta device, where nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bdflow.models.config import VDVAEConfig

if TYPE_CHECKING:
    from torch import UntypedStorage

    from bdflow.models.vdvae import VDVAE


@dataclass(frozen=True)
class Vdvae:
    """What the VDVAE is and costs. Its precision is a setting of its own, `networks.vdvae_dtype`.

    Attributes
    ----------
    parameters : their number.
    encoding, decoding : FLOP of one photo, of one guess.
    values : most numbers held at once, beside the parameters, for each picture of a batch, encoded or decoded.
    """

    parameters: float
    encoding: float
    decoding: float
    values: float


PUBLISHED_VDVAE = Vdvae(parameters=125_005_860, encoding=77.84e9, decoding=157.2e9, values=14_980_640)
"""`counted_vdvae(VDVAEConfig())`, as tests/estimate/test_outlines.py holds it to; so a plan need not load torch."""


def counted_vdvae(config: VDVAEConfig) -> Vdvae:
    """Count the VDVAE of a configuration, which takes seconds and no memory to speak of."""
    from bdflow.models.vdvae import VDVAE
    from bdflow.models.weights.networks import outlines

    with outlines():
        network = VDVAE(config).eval().requires_grad_(False)
    encode, decode = partial(_encoded, network), partial(_decoded, network)
    # what a batch of any size holds, such as first states, is no part of a picture's
    values = max(held(partial(work, 2)) - held(partial(work, 1)) for work in (encode, decode)) / 4
    parameters = sum(value.numel() for value in network.parameters())
    return Vdvae(parameters, flop_of(partial(encode, 1)), flop_of(partial(decode, 1)), values)


def _encoded(network: VDVAE, n: int) -> object:
    import torch

    zeros, size = partial(torch.zeros, device="meta"), network.config.image_size
    noise = [zeros(n, *shape) for shape in network.latent_shapes]
    return network.encode(zeros(n, size, size, 3, dtype=torch.uint8), noise)


def _decoded(network: VDVAE, n: int) -> object:
    import torch

    zeros = partial(torch.zeros, device="meta")
    noise = [zeros(n, *shape) for shape in network.prior_shapes]
    uniforms = [zeros(n, *shape) for shape in network.uniform_shapes]
    return network.decode(zeros(n, network.config.n_latents), noise, *uniforms)


def flop_of(work: Callable[[], object]) -> float:
    """FLOP of some work, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def held(work: Callable[[], object]) -> int:
    """Most bytes that tensors made by some work hold at once."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Held(TorchDispatchMode):
        now = most = 0

        def __torch_dispatch__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            found = func(*args, **(kwargs or {}))
            for value in tree_leaves(found):
                if isinstance(value, Tensor):
                    self._add(value.untyped_storage())
            return found

        def _add(self, storage: UntypedStorage) -> None:
            key = storage._cdata
            if key in known:
                return
            known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, storage.nbytes())

        def _gone(self, key: int, nbytes: int) -> None:
            known.discard(key)
            self.now -= nbytes

    known: set[int] = set()
    with Held() as counter:
        work()
    return counter.most
