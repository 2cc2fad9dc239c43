"""How fast pictures are painted: batch sizes x dtypes x switches, against the plain loop at batch 1.

    bdflow bench diffusion --json diffusion.json         the tiny bundle, on the CPU
    bdflow bench diffusion --full --device cuda --dtypes bfloat16 float16 --batch-sizes 1 4 16 32 64
    bdflow bench diffusion --modes --runtime --actors 1 2 4 8 16 32 64

`--full` makes networks of the published size with random weights. An image is encoded, denoised in int(strength *
steps) steps and decoded; its FLOP are counted in the plain loop, and the fraction is of the rate at which the same
device multiplies large matrices of the same dtype in the same run. On the CPU seconds are those of the processor, over
the threads: on a machine with other work they say more than the wall's. Every switch is measured alone, added to the
plain loop at batch 1, and taken from all at the largest batch. `--modes` paints scenes with the approximate modes of
the tiny bundle and scores them; `--runtime` and `--actors` measure what the executors cost
(`diffusion_runtime.py`).
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch.utils.flop_counter import FlopCounterMode

from bdflow.benchmarks import diffusion_runtime, machine
from bdflow.benchmarks.diffusion_modes import modes
from bdflow.benchmarks.diffusion_plot import check_plot, plot
from bdflow.cluster.progress import Progress
from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.estimate.sizes import PUBLISHED
from bdflow.models.versatile.unet import VersatileDiffusion, build_dual_unet
from bdflow.models.weights.bundle import open_bundle
from bdflow.models.weights.manifest import KL_F8, SCHEDULER, VERSATILE_UNET

PLAIN = SpeedSettings(joint_guidance=False, cached_conditions=False, channels_last=False, attention="plain")
SWITCHES: dict[str, dict[str, Any]] = {
    "joint_guidance": {"joint_guidance": True},
    "cached_conditions": {"cached_conditions": True},
    "channels_last": {"channels_last": True},
    "attention fused": {"attention": "fused"},
}
COMPILED = {name: {"compile": name} for name in ("default", "reduce_overhead", "max_autotune", "cuda_graphs")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def matrix_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP a second of the best of several products of large square matrices."""
    n = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        best = min(best, timed(lambda: a @ b, device))
    return 2 * n**3 / best


def timed(work: Callable[[], Any], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return (time.process_time() - start) / torch.get_num_threads()


class Networks:
    """Unet and autoencoder of one dtype, called with any switches."""

    def __init__(self, bundle: str | None, device: str, dtype: str) -> None:
        """Those of a bundle; of the published size, with random weights, without one."""
        self.device, self.dtype = device, DTYPES[dtype]
        start = time.perf_counter()
        self._load(bundle, device, dtype)
        self.load_seconds = time.perf_counter() - start

    def _load(self, bundle: str | None, device: str, dtype: str) -> None:
        if bundle is not None:
            one = open_bundle(bundle).versatile(device, dtype)
            self.unet, self.vae, self.table = one.unet, one.vae, one.alphas_cumprod
            self.nothing = one.unconditional_vision, one.unconditional_text
            return
        with torch.device("meta"):
            unet, vae = build_dual_unet(VERSATILE_UNET), AutoencoderKL.from_config(KL_F8)
        self.unet, self.vae = (self._filled(module) for module in (unet, vae))
        self.table = DDIMScheduler(**SCHEDULER).alphas_cumprod
        self.nothing = tuple(0.1 * torch.randn(1, n, 768, device=device) for n in (257, 77))

    def _filled(self, module: Any) -> Any:
        module = module.to(self.dtype).to_empty(device=self.device).eval().requires_grad_(False)
        for name, value in module.named_parameters():
            value.data.normal_(0, 0.02) if value.ndim > 1 else value.data.fill_(1.0 if name.endswith("weight") else 0)
        return module

    def called(self, speed: SpeedSettings) -> VersatileDiffusion:
        """The networks with these switches; earlier ones are undone."""
        for module in (self.unet, self.vae):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-arg]
        self.vae.set_attn_processor(AttnProcessor2_0())
        return VersatileDiffusion(self.unet, self.vae, self.table, *self.nothing, speed)


def inputs(network: VersatileDiffusion, n: int) -> dict[str, Any]:
    """n images' inputs, in memory."""
    draw = torch.Generator().manual_seed(1)
    size = network.image_size
    given = {
        name: 0.1 * torch.randn(n, *like.shape[1:], generator=draw)
        for name, like in (("vision", network.unconditional_vision), ("text", network.unconditional_text))
    }
    noise = [torch.randn(n, *network.latent_shape, generator=draw) for _ in range(2)]
    guess = torch.randint(0, 256, (n, size, size, 3), generator=draw, dtype=torch.uint8)
    return {"guess_u8": guess, **given, "start_noise": noise[0], "encode_noise": noise[1]}


def cases(batches: list[int], compiled: list[str], switches: bool) -> Iterator[tuple[str, SpeedSettings, int]]:
    """(name, switches, batch size): the plain loop first; without `switches` no switch alone, nor all but one."""
    every = {name: value for one in SWITCHES.values() for name, value in one.items()}
    if not switches:
        yield "plain", PLAIN, min(batches)
        for batch in batches:
            yield "defaults", SpeedSettings(), batch
        for batch in batches:
            yield "all", PLAIN.model_copy(update=every), batch
        for name in compiled:
            for batch in sorted({1, max(batches)}):
                yield f"all + {name}", PLAIN.model_copy(update=every | COMPILED[name]), batch
        return
    largest = max(batches)
    for batch in batches:
        yield "plain", PLAIN, batch
    for batch in batches:
        yield "defaults", SpeedSettings(), batch
    for name, one in SWITCHES.items():
        yield f"plain + {name}", PLAIN.model_copy(update=one), 1
    for batch in batches:
        yield "all", PLAIN.model_copy(update=every), batch
    for name, one in SWITCHES.items():
        less = {key: value for key, value in every.items() if key not in one}
        yield f"all - {name}", PLAIN.model_copy(update=less), largest
    for name in compiled:
        for batch in sorted({1, largest}):
            yield f"all + {name}", PLAIN.model_copy(update=every | COMPILED[name]), batch


def sweep(
    asked: argparse.Namespace, options: PaintOptions, networks: Networks, flop: float
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of all cases in all precisions, and FLOP/s of matrix products by precision; `networks` of the first one."""
    rows: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    every = list(cases(sorted(asked.batch_sizes), asked.compile, not asked.no_switches))
    with Progress("painting", len(every) * len(asked.dtypes), unit="rows") as progress:
        for dtype in asked.dtypes:
            if dtype != asked.dtypes[0]:
                networks = Networks(bundle_of(asked), asked.device, dtype)
            rates[dtype] = matrix_flops(asked.device, DTYPES[dtype])
            for name, speed, batch in every:
                network = networks.called(speed)
                row = {"switches": name, "dtype": dtype, "batch_size": batch, "speed": speed.model_dump()}
                try:
                    row |= measure(network, inputs(network, batch), options, batch, asked)
                except (torch.OutOfMemoryError, InputError) as error:
                    print(f"{name}, {dtype}, batch {batch}: {str(error).splitlines()[0]}")
                    progress.advance()
                    continue
                row["start_s"] += networks.load_seconds
                row["fraction"] = flop * row["images_a_second"] / rates[dtype]
                rows.append(row)
                print(line(row, rows[0]), flush=True)
                progress.advance()
                del network
                gc.collect()
            rates[dtype] = max(rates[dtype], matrix_flops(asked.device, DTYPES[dtype]))
    return rows, rates


def measure(network: Any, given: Any, options: PaintOptions, batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Median seconds an image of several batches; what the first batch takes beyond that is start-up."""
    cuda = asked.device.startswith("cuda")
    first = timed(lambda: network.paint(**given, options=options), asked.device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rounds = rounds_of(asked, batch)
    taken = statistics.median(
        timed(lambda: network.paint(**given, options=options), asked.device) for _ in range(rounds)
    )
    return {
        "images_a_second": batch / taken,
        "seconds_an_image": taken / batch,
        "start_s": max(0.0, first - taken),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def rounds_of(asked: argparse.Namespace, batch: int) -> int:
    """Batches of a row that count."""
    return max(3, round(asked.images / batch))


def bundle_of(asked: argparse.Namespace) -> str | None:
    return None if asked.full else asked.bundle


def flop_of(networks: Networks, options: PaintOptions) -> float:
    """FLOP of an image, counted in the plain loop."""
    network = networks.called(PLAIN)
    with FlopCounterMode(display=False) as counter:
        network.paint(**inputs(network, 1), options=options)
    return float(counter.get_total_flops())


def needs(asked: argparse.Namespace, flop: float, parameters: int) -> machine.Needs:
    """What the rows will take, by a short measurement of matrix products."""
    every = list(cases(sorted(asked.batch_sizes), asked.compile, not asked.no_switches)) * len(asked.dtypes)
    images = sum(batch * (1 + rounds_of(asked, batch)) for _, _, batch in every)
    compiling = sum(speed.compile != "none" for _, speed, _ in every)
    seconds = images * flop / matrix_flops(asked.device, DTYPES[asked.dtypes[0]])
    memory = 1.0 * machine.GIB + 4 * parameters
    if asked.device == "cpu":  # docs/plan.md: 1 GiB a picture of 512 pixels in a batch
        memory += max(asked.batch_sizes) * machine.GIB * flop / PUBLISHED.painting("full", 50, 0.75)
    return machine.Needs(memory, 0, (seconds / 0.7 + 20 * compiling, seconds / 0.15 + 180 * compiling))


def line(row: dict[str, Any], plain: dict[str, Any]) -> str:
    peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB"
    return (
        f"| {row['switches']} | {row['dtype']} | {row['batch_size']} | {row['images_a_second']:.2f} | "
        f"{row['seconds_an_image']:.4f} | {row['images_a_second'] / plain['images_a_second']:.2f} x | "
        f"{row['fraction']:.0%} | {peak} |"
    )


HEAD = "| switches | dtype | batch | images/s | s/image | vs plain | of limit | peak |\n" + "|---" * 8 + "|"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "bdflow bench diffusion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--bundle", default="tiny", help="a bundle of weights")
    found.add_argument("--full", action="store_true", help="networks of the published size, random weights")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    found.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    found.add_argument("--compile", nargs="*", choices=list(COMPILED), default=[], help="also measure these")
    found.add_argument(
        "--no-switches", action="store_true", help="the plain loop once, the defaults, and all: no switch alone"
    )
    found.add_argument("--steps", type=int, default=50)
    found.add_argument("--images", type=int, default=16, help="painted for each row, at least three batches")
    found.add_argument("--threads", type=int, default=1, help="of the CPU")
    found.add_argument("--no-sweep", action="store_true")
    found.add_argument("--modes", type=int, nargs="?", const=48, help="score approximate modes on so many scenes")
    found.add_argument("--runtime", action="store_true", help="the stage against a bare loop")
    found.add_argument("--actors", nargs="*", type=int, default=[], help="numbers of Ray actors that sleep")
    found.add_argument("--pause", type=float, default=3.7, help="seconds an actor sleeps for a batch of 32")
    found.add_argument("--json", type=Path, help="write the figures, for `bdflow plan --figures`")
    found.add_argument("--plot", type=Path, help="draw images a second by batch size (.png, .svg or .pdf)")
    return found


def check_device(device: str) -> None:
    """Raise InputError for a GPU that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            "--device",
            found=f"{device}, and no GPU that torch can use on this machine",
            expected="a GPU, and a torch that was built for it",
            action="run this on a machine with a GPU, or leave --device out",
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    asked = parser().parse_args(arguments)
    if min(asked.batch_sizes, default=0) < 1 or asked.steps < 2 or asked.threads < 1:
        parser().error("batch sizes and threads are at least 1, steps at least 2")
    machine.check_output(asked.json)
    check_plot(asked.plot)
    check_device(asked.device)
    torch.set_num_threads(asked.threads)
    cuda = asked.device.startswith("cuda")
    name = torch.cuda.get_device_name() if cuda else None
    found = machine.head("diffusion", "gpu" if cuda else "cpu", name, 1 if cuda else asked.threads)
    options = PaintOptions(steps=asked.steps)
    if not asked.no_sweep:
        found |= swept(asked, options)
        if asked.plot:
            plot(found["rows"], asked.plot)
            print(f"plot    {asked.plot}")
    if asked.modes:
        print("\n| mode | s/image | faster | fewer FLOP | PixCorr | SSIM | CLIP two-way |\n" + "|---" * 7 + "|")
        found["modes"] = modes(asked.modes)
    if asked.runtime:
        found["runtime"] = diffusion_runtime.overhead()
    if asked.actors:
        found["actors"] = diffusion_runtime.scaling(asked.actors, asked.pause)
    machine.write_json(asked.json, found)
    return found


def swept(asked: argparse.Namespace, options: PaintOptions) -> dict[str, Any]:
    """Say what it will take, measure every row, and print the table."""
    networks = Networks(bundle_of(asked), asked.device, asked.dtypes[0])
    count = sum(value.numel() for module in (networks.unet, networks.vae) for value in module.parameters())
    flop = PUBLISHED.painting("full", options.steps, options.strength) if asked.full else flop_of(networks, options)
    bundle = "networks of the published size" if asked.full else f"bundle {asked.bundle}"
    image = networks.called(PLAIN).image_size
    title = f"diffusion: {bundle}, {image} px, {asked.steps} steps, {flop / 1e12:.3g} TFLOP an image, {asked.device}"
    machine.announce(title, needs(asked, flop, count), Path(tempfile.gettempdir()))
    print("\n" + HEAD, flush=True)
    rows, rates = sweep(asked, options, networks, flop)
    told = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    print(f"\nlimit   matrix products on this device: {told}")
    print(f"plain   the plain loop at batch {min(asked.batch_sizes)}; medians of three batches or more, after one")
    return {
        "bundle": {
            "name": "published size" if asked.full else str(asked.bundle),
            "digest": None if asked.full else open_bundle(asked.bundle).fingerprint,
            "parameters": count,
            "image": image,
        },
        "steps": options.steps,
        "strength": options.strength,
        "flop_an_image": flop,
        "matrix_flops": rates,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
