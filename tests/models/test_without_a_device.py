"""What a GPU will be asked for, proved on the CPU: whole graphs, nothing that waits for the device, recordings that are
replayed on other inputs; and that the halves of guidance share what is the same for both.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.models.diffusion import recording
from bdflow.models.diffusion.conditions import Conditions
from bdflow.models.diffusion.img2img import Img2Img, Schedule
from bdflow.models.diffusion.unet import noise_of, time_embeddings
from bdflow.models.stable_diffusion.unet import StableDiffusion, build_text_unet
from bdflow.models.versatile.unet import VersatileDiffusion, build_dual_unet
from bdflow.models.weights.bundle import open_bundle
from bdflow.models.weights.manifest import KL_F8, SCHEDULER, SD1_UNET, VERSATILE_UNET


def network(name: str, speed: SpeedSettings | None = None) -> Img2Img:
    made: Img2Img = getattr(open_bundle("tiny"), name.split()[0])(speed=speed)
    if name.endswith("8 bits"):
        made.use_eight_bits()
    return made


def given(of: Img2Img, n: int, seed: int = 0) -> dict[str, Any]:
    draw, size = torch.Generator().manual_seed(seed), of.image_size
    pictures = torch.randint(0, 256, (n, size, size, 3), generator=draw, dtype=torch.uint8)
    conditions = {s: 0.2 * torch.randn(n, *one.shape[1:], generator=draw) for s, one in of.nothing.items()}
    noise = [torch.randn(n, *of.latent_shape, generator=draw) for _ in range(2)]
    where = "guess_u8" if isinstance(of, VersatileDiffusion) else "pictures"
    return {where: pictures, **conditions, "start_noise": noise[0], "encode_noise": noise[1]}


def painted(of: Img2Img, inputs: dict[str, Any], **options: Any) -> Tensor:
    return of.paint(**inputs, options=PaintOptions(steps=4, linear=of.linear, **options))  # type: ignore[attr-defined]


# --- compiled -----------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Operations of each graph that is compiled: `torch.compile` as it is called, but the graph is run as it is."""
    found: list[int] = []
    compile_ = torch.compile

    def backend(graph: Any, inputs: object) -> Callable[..., Any]:
        found.append(len(graph.graph.nodes))
        return graph.forward

    def called(function: Callable[..., Any], *, fullgraph: bool, dynamic: bool, mode: str) -> Callable[..., Any]:
        assert fullgraph
        return compile_(function, fullgraph=fullgraph, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch, "compile", called)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.mark.slow(kind="compiled and recorded")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["default", "reduce_overhead"])
@pytest.mark.parametrize("name", ["versatile", "stable", "versatile in 8 bits"])
def test_unet_and_autoencoder_are_whole_graphs_compiled_once_a_shape(graphs: list[int], name: str, mode: str) -> None:
    plain, compiled = network(name), network(name, SpeedSettings(compile=mode))  # type: ignore[arg-type]
    assert graphs == []
    for seed in range(2):
        inputs = given(plain, 2, seed)
        assert torch.equal(painted(compiled, inputs), painted(plain, inputs))
        assert len(graphs) == 3, "the UNet, and both halves of the autoencoder"
    assert max(graphs) > 100
    inputs = given(plain, 1)
    assert torch.equal(painted(compiled, inputs), painted(plain, inputs))
    assert len(graphs) == 6, "another shape, once"
    painted(compiled, given(plain, 2, 3))
    assert len(graphs) == 6, "the first shape is still there"


# --- nothing waits for the device ---------------------------------------------------------------------------------


class Dispatched(TorchDispatchMode):
    """Every operation, with the devices of its tensors; conversions on the way from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.elsewhere: list[str] = []
        self.converted: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.names.append(str(func))
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.elsewhere.append(str(func))
            if kwargs.get("dtype") not in (None, *(tensor.dtype for tensor in tensors)):
                self.converted.append(str(func))
        return func(*args, **kwargs)


def full_size(name: str, dtype: torch.dtype) -> Img2Img:
    """A network of the published size without memory."""
    with torch.device("meta"):
        unet = (build_dual_unet(VERSATILE_UNET) if name == "versatile" else build_text_unet(SD1_UNET)).to(dtype)
        vae = AutoencoderKL.from_config(KL_F8).to(dtype)
        nothing = torch.zeros(1, 257, 768), torch.zeros(1, 77, 768)
    table = DDIMScheduler(**SCHEDULER).alphas_cumprod
    if name == "versatile":
        return VersatileDiffusion(unet, vae, table, *nothing)
    return StableDiffusion(unet, vae, table, {"text": nothing[1]})


@pytest.mark.parametrize(
    "name", [pytest.param("versatile", marks=pytest.mark.slow(kind="compiled and recorded")), "stable"]
)
def test_no_step_at_full_size_touches_the_cpu_or_waits_for_a_value(name: str) -> None:
    of = full_size(name, torch.float16)
    conditions = {side: torch.zeros(2, *one.shape[1:]) for side, one in of.nothing.items()}
    schedule = Schedule.of(of.alphas_cumprod, 3)
    x = torch.zeros(2, *of.latent_shape, device="meta")
    walk = of.trajectory(x, conditions, schedule, 2, PaintOptions(steps=3))
    with Dispatched() as begun:
        next(walk)
    with Dispatched() as step:
        for _ in walk:
            pass
    assert begun.converted == [], "what is handed in is converted on the device"
    assert len(step.names) > 2000
    assert step.elsewhere == []
    assert not [n for n in step.names if "_local_scalar_dense" in n or "nonzero" in n or "is_nonzero" in n]


# --- recorded -----------------------------------------------------------------------------------------------------


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class FakeGraph:
    """What a CUDA graph does, on the CPU: the recorded operations again, on the memory they had, whatever Python would
    do now.
    """

    made = 0

    def __init__(self, work: Callable[[], Any]) -> None:
        FakeGraph.made += 1
        with torch.inference_mode(), Recording() as seen:
            self.out = work()
        self.calls = seen.calls

    @torch.inference_mode()
    def replay(self) -> Any:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            tree_map(self._into, out, again)
        return self.out

    @staticmethod
    def _into(there: Any, again: Any) -> None:
        if isinstance(there, Tensor) and there.data_ptr() != again.data_ptr():
            there.copy_(again)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Img2Img]:
    """A network whose recordings are made by `FakeGraph`."""
    monkeypatch.setattr(recording, "Graph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "made", 0)

    def make(name: str, **switches: Any) -> Img2Img:
        made = network(name, SpeedSettings(**switches))
        how = SpeedSettings(**switches, compile="cuda_graphs")
        made.evaluate.speed = made.autoencoder.speed = how
        made.evaluate.kept.in_place = True
        return made

    return make


@pytest.mark.parametrize(
    ("name", "joint", "cached"),
    [
        ("versatile", True, True),
        *(
            pytest.param(*each, marks=pytest.mark.slow(kind="compiled and recorded"))
            for each in [
                ("versatile in 8 bits", True, True),
                ("stable", True, True),
                ("versatile", False, True),
                ("stable", False, False),
            ]
        ),
    ],
)
def test_recordings_replayed_on_other_inputs_paint_the_same(
    recorded: Callable[..., Img2Img], name: str, joint: bool, cached: bool
) -> None:
    switches = {"joint_guidance": joint, "cached_conditions": cached}
    plain, replayed = network(name, SpeedSettings(**switches)), recorded(name, **switches)  # type: ignore[arg-type]
    order: list[tuple[int, dict[str, Any]]] = [(2, {}), (2, {}), (1, {}), (2, {"guidance_interval": (0.2, 0.6)})]
    order += [(1, {})]
    for seed, (n, options) in enumerate(order):
        inputs = given(plain, n, seed)
        if name != "stable" and seed in (1, 4):
            inputs["vision"] = None
        difference = painted(replayed, inputs, **options).int() - painted(plain, inputs, **options).int()
        assert difference.abs().max() == 0, (seed, n, options)
    made = FakeGraph.made
    for seed, n in ((7, 2), (8, 1)):
        painted(replayed, given(plain, n, seed))
    assert FakeGraph.made == made, "shapes that were met before are not recorded again"


def test_both_halves_of_the_autoencoder_are_recorded_once_a_shape(recorded: Callable[..., Img2Img]) -> None:
    plain, replayed = network("versatile"), recorded("versatile")
    made = []
    for n, seed in ((2, 0), (2, 1), (1, 2), (2, 3)):
        inputs, z = given(plain, n, seed), None
        for latent in ("mean", "sample"):
            z, again = (of.encode(inputs["guess_u8"], inputs["encode_noise"], latent) for of in (plain, replayed))  # type: ignore[arg-type]
            assert torch.equal(z, again)
        assert torch.equal(replayed.decode(z), plain.decode(z))  # type: ignore[arg-type]
        made.append(FakeGraph.made)
    assert made == [2, 2, 4, 4], "an encoder and a decoder a shape"
    kept = replayed.decode(z)  # type: ignore[arg-type]
    before = kept.clone()
    replayed.decode(-z)  # type: ignore[operator]
    assert torch.equal(kept, before), "results lie in memory of their own"


def test_a_recording_that_fails_leaves_none_behind(
    recorded: Callable[..., Img2Img], monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = recorded("versatile")
    z = torch.zeros(2, *replayed.latent_shape)
    expected = replayed.decode(z)
    with monkeypatch.context() as full:
        full.setattr(recording, "Graph", lambda work: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        with pytest.raises(torch.OutOfMemoryError):
            replayed.decode(z[:1])
    made = FakeGraph.made
    assert torch.equal(replayed.decode(z), expected)
    assert FakeGraph.made == made + 1, "the memory of all was given back, and what is needed is recorded anew"


# --- the halves of guidance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["versatile", "stable"])
def test_what_both_halves_share_is_computed_once_and_changes_no_bit(name: str) -> None:
    of, joint = network(name, SpeedSettings(cached_conditions=False)), network(name)
    with torch.inference_mode():
        _compare(of, joint)


def _compare(of: Img2Img, joint: Img2Img) -> None:
    inputs = given(of, 2)
    conditions = Conditions({side: inputs[side] for side in of.nothing}, of.nothing, 0.4)
    time, x = time_embeddings(of.unet, [401]), inputs["start_noise"]
    rows: list[int] = []
    for layer in (of.unet.conv_in, of.unet.down_blocks[0].resnets[0], of.unet.mid_block):
        layer.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    both = conditions.of("joint")
    twice = noise_of(of.unet, torch.cat([x, x]), time, both)
    once = noise_of(of.unet, x, time, both)
    assert rows == [4, 4, 4, 2, 2, 4]
    assert torch.equal(once, twice)
    theirs = of.predict_noise(x, 401, conditions.of("conditional"))
    np.testing.assert_allclose(once[2:], theirs, atol=1e-5 * float(theirs.abs().max()))
    joint.evaluate.begin(conditions, [401])
    kept = joint.evaluate(x, 401, conditions, "joint")
    np.testing.assert_allclose(kept, once, atol=1e-5 * float(once.abs().max()))
