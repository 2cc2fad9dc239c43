"""How fast the machines are thought to be, how far that may be off, and what was measured instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bdflow.estimate.devices import GPUS, REACHED, USUAL

HERE = "docs/benchmarks.md"
GUESS, ELSEWHERE, MEASURED = 2.5, 1.5, 1.2
"""Within which factor of it the truth is thought to lie: of a guess, of another machine's figure, of this one's."""


@dataclass(frozen=True)
class Rate:
    """A number, its unit, where it is from, whether it was measured for this plan, and within which factor of it,
    either way, the truth is thought to lie.
    """

    value: float
    unit: str
    source: str
    measured: bool = False
    within: float = GUESS

    def at(self, pace: int, seconds: bool = False) -> Rate:
        """The number where things go best (1), as thought (0) or worst (-1); more `seconds` are worse."""
        return replace(self, value=self.value * self.within ** (-pace if seconds else pace))


DEFAULTS: Mapping[str, Rate] = {
    "core": Rate(
        160e9, "FLOP/s a core", "float32 products on two cores of a Sapphire Rapids Xeon: 320 GFLOP/s", within=ELSEWHERE
    ),
    "ridge": Rate(0.85, "of the core rate", f"{HERE}, ridge", within=1.3),
    "painting on gpu": Rate(0.45, "of the GPU rate", "a guess: nobody has measured it", within=1.8),
    "features on gpu": Rate(0.3, "of the GPU rate", "a guess: small networks, pictures prepared on the CPU"),
    "networks on cpu": Rate(0.25, "of the core rate", "the tiny networks in the demo", within=ELSEWHERE),
    "unpack": Rate(850e6, "B/s a worker", "docs/nsd.md, a session of NSD by ISA-L", within=ELSEWHERE),
    "photos": Rate(150e6, "B/s a worker", "a guess: photos read and compressed"),
    "read": Rate(0.64e9, "B/s", f"{HERE}, targets from disk", within=GUESS),
    "write": Rate(0.39e9, "B/s", f"{HERE}, disk", within=GUESS),
    "judging": Rate(0.224, "pictures/s of two cores", f"{HERE}, all five networks", within=ELSEWHERE),
    "judging on gpu": Rate(40.0, "pictures/s a GPU", "a guess: bound by reading and resizing"),
    "pixels": Rate(70.0, "pictures/s a worker at 512 px", "a guess from the demo"),
    "start": Rate(6.0, "s a stage", "Dask or Ray, and networks, in the demo", within=GUESS),
}


def of_gpu(name: str, dtype: str, vdvae_dtype: str) -> dict[str, Rate]:
    """Rates of a GPU of `GPUS`, with networks of a precision, and the VDVAE of its own."""
    gpu = GPUS[name]
    sheet = f"{REACHED:.0%} of the data sheet of an {gpu.name}"
    return {
        "gpu": Rate(gpu.products(dtype), "FLOP/s a GPU", f"{dtype} products, {sheet}", within=1.25),
        "gpu vdvae": Rate(
            gpu.products(vdvae_dtype), "FLOP/s a GPU", f"{vdvae_dtype} products, for the VDVAE, {sheet}", within=1.25
        ),
        "gpu ridge": Rate(
            0.75 * gpu.products("float32"), "FLOP/s a GPU", f"three quarters of float32 products, {sheet}", within=1.8
        ),
    }


@dataclass(frozen=True)
class Figures:
    """What a plan reckons with.

    Attributes
    ----------
    rates : by name.
    image : seconds of one image of `flop`, by Brain-Diffuser's networks, if painting was measured.
    peak_bytes : of GPU memory, as measured; 0 if not.
    gpu : which GPU is planned with, as its driver or `GPUS` names it. why_gpu : who says so.
    notes : what was scaled, taken for another thing, or left out.
    """

    rates: Mapping[str, Rate]
    image: Rate | None = None
    flop: float = 0.0
    peak_bytes: float = 0.0
    gpu: str = GPUS[USUAL].name
    why_gpu: str = "nothing says which GPU"
    notes: tuple[str, ...] = field(default=())

    def at(self, pace: int) -> Figures:
        """All of it where everything goes best (1), as thought (0) or worst (-1)."""
        rates = {name: rate.at(pace, name.startswith("start")) for name, rate in self.rates.items()}
        return replace(self, rates=rates, image=self.image and self.image.at(pace, seconds=True))
