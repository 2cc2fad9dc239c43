"""Kernels of attention: by name, refused where they do not fit; by measuring, with a clock that is played."""

import contextlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion import attention, kernels
from bdflow.models.diffusion.attention import Call, calls_of, measured
from bdflow.models.diffusion.kernels import BACKENDS, attending, chosen, said
from bdflow.models.versatile.painter import Painter
from bdflow.models.weights.bundle import open_bundle

from .test_versatile import item_inputs

OPTIONS = PaintOptions(steps=4)
CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Kernels that take so many milliseconds a call, or refuse heads that are too wide; what was asked for."""
    state: dict[str, Any] = {
        "now": None,
        "asked": [],
        "cost": {"flash": 1.5, "cudnn": 1.3, "efficient": 2.0, "math": 9.0},
    }
    state["widest"] = {"flash": 32, "cudnn": 32}

    @contextlib.contextmanager
    def playing(name: str) -> Iterator[None]:
        state["now"] = name
        yield
        state["now"] = None

    def timed(work: Callable[[], object]) -> float:
        query = work.__defaults__[0]  # type: ignore[attr-defined]
        state["asked"].append((state["now"], tuple(query.shape), query.dtype))
        if query.shape[-1] > state["widest"].get(state["now"], math.inf):
            raise RuntimeError("No viable backend")
        return float(state["cost"][state["now"]])

    monkeypatch.setattr(attention, "attending", playing)
    state["timed"] = timed
    return state


def test_the_attention_of_a_painter_is_that_which_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    network = open_bundle("tiny").versatile(speed=SpeedSettings(cached_conditions=False))
    found = calls_of(network, 2, 2)
    seen: Counter[Call] = Counter()
    real = F.scaled_dot_product_attention

    def counted(query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        seen[Call(tuple(query.shape), tuple(key.shape))] += 1
        return real(query, key, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    steps = 3  # int(0.75 * 4)
    network.paint(**item_inputs(2, network), options=OPTIONS)
    expected = Counter({call: times * steps for call, times in found["unet"].items()})
    assert seen == expected + found["autoencoder"]
    assert {call.query[-1] for call in found["autoencoder"]} != {call.query[-1] for call in found["unet"]}
    assert {call.query[0] for call in found["unet"]} == {2, 4}, (
        "both halves of guidance after the first cross-attention"
    )


def test_the_fastest_kernel_that_takes_all_shapes_of_a_part_is_chosen_and_said(played: dict[str, Any]) -> None:
    calls = {
        "unet": Counter({Call((4, 8, 64, 32), (4, 8, 64, 32)): 3, Call((4, 8, 64, 32), (4, 8, 77, 32)): 2}),
        "autoencoder": Counter({Call((2, 1, 64, 512), (2, 1, 64, 512)): 2}),
    }
    times = measured(calls, torch.float16, CPU, played["timed"])
    assert times["unet"] == {"flash": 7.5, "cudnn": 6.5, "efficient": 10.0, "math": 45.0}
    assert chosen(times) == {"unet": "cudnn", "autoencoder": "efficient"}
    assert said(times) == (
        "attention: unet cudnn, 6.50 ms; flash 7.50 ms; efficient 10.00 ms; math 45.00 ms | "
        "autoencoder efficient, 4.00 ms; math 18.00 ms; refused: flash, cudnn"
    )
    assert {dtype for _, _, dtype in played["asked"]} == {torch.float16}
    played["widest"]["cudnn"] = 16
    assert chosen(measured(calls, FLOAT, CPU, played["timed"]))["unet"] == "flash"


def test_a_painter_measures_its_own_batch_and_takes_what_it_was_told(
    played: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "bdflow.models.diffusion.inputs.measured",
        lambda calls, dtype, device: measured(calls, dtype, device, played["timed"]),
    )
    caplog.set_level(logging.INFO, "bdflow")
    speed, sizes = SpeedSettings(attention="measured"), BatchSizes(4, 2, 4, 2, fixed=True)
    painter = Painter("tiny", speed=speed, sizes=sizes)
    assert (painter.versatile.evaluate.kernel, painter.versatile.autoencoder.kernel) == ("cudnn", "efficient")
    rows = {shape[0] for _, shape, _ in played["asked"]}
    assert rows == {2, 4, 8}
    assert len([line for line in caplog.messages if line.startswith("attention: unet cudnn")]) == 1
    played["asked"].clear()
    told = Painter("tiny", speed=speed, sizes=sizes, kernels={"unet": "math", "autoencoder": "flash"})
    assert (told.versatile.evaluate.kernel, told.versatile.autoencoder.kernel) == ("math", "flash")
    assert played["asked"] == [], "what is recorded is not measured again"


def test_on_the_cpu_nothing_is_measured_and_torch_chooses(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bdflow")
    painter, usual = (
        Painter("tiny", speed=SpeedSettings(attention="measured"), options=OPTIONS),
        open_bundle("tiny").versatile(),
    )
    inputs = item_inputs(2, usual)
    assert torch.equal(painter.versatile.paint(**inputs, options=OPTIONS), usual.paint(**inputs, options=OPTIONS))
    assert caplog.messages == [
        "attention: unet as torch chooses (nothing is measured on the CPU) | autoencoder as torch chooses (nothing is "
        "measured on the CPU)"
    ]


def test_a_named_kernel_computes_the_same_and_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, inputs = open_bundle("tiny").versatile(), None
    asked: list[str] = []
    real = kernels.attending

    def watched(name: str) -> Any:
        asked.append(name)
        return real(name)

    for module in ("speed", "autoencoder"):
        monkeypatch.setattr(f"bdflow.models.diffusion.{module}.attending", watched)
    inputs = item_inputs(2, usual)
    expected = usual.paint(**inputs, options=OPTIONS).int()
    for name in ("math", "flash"):
        network = open_bundle("tiny").versatile(speed=SpeedSettings(attention=name))  # type: ignore[arg-type]
        asked.clear()
        moved = (network.paint(**inputs, options=OPTIONS).int() - expected).abs()
        assert moved.max() <= 1
        assert (moved > 0).float().mean() < 1e-2
        assert Counter(asked) == {name: 3, "fused": 2}, "each step; the autoencoder as torch chooses"


def test_painters_in_one_process_never_change_each_others_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = [SpeedSettings(attention=name) for name in ("math", "fused", "flash")]  # type: ignore[arg-type]
    networks = [open_bundle("tiny").versatile(speed=speed) for speed in speeds]
    inputs, together = item_inputs(1, networks[0]), Barrier(len(networks))
    widest = networks[0].vae.config.block_out_channels[-1]  # type: ignore[attr-defined]
    allowed: dict[str, set[tuple[bool, ...]]] = defaultdict(set)
    painter: ContextVar[str] = ContextVar("painter")
    real, cuda = F.scaled_dot_product_attention, torch.backends.cuda

    def allowed_now() -> tuple[bool, ...]:
        return cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()

    def watched(query: Any, *args: Any, **kwargs: Any) -> Any:
        if query.shape[-1] < widest:  # of the UNet, not of the autoencoder
            allowed[painter.get()].add(allowed_now())
        return real(query, *args, **kwargs)

    def painted(network: Any) -> Any:
        painter.set(network.speed.attention)
        together.wait()
        return [network.paint(**inputs, options=OPTIONS) for _ in range(2)]

    alone = [network.paint(**inputs, options=OPTIONS) for network in networks]
    before = allowed_now()
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with ThreadPoolExecutor(len(networks)) as pool:
        for expected, found in zip(alone, pool.map(painted, networks), strict=True):
            assert all(torch.equal(expected, one) for one in found)
    every = (True, True, True)
    assert dict(allowed) == {"math": {(False, True, False)}, "fused": {every}, "flash": {(True, False, False)}}
    assert allowed_now() == before == every


def test_the_kernels_agree_and_only_the_named_one_is_there() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, n, 16, generator=draw) for n in (64, 65, 65))
    plain = (query @ key.transpose(-1, -2) * 16**-0.5).softmax(-1) @ value
    for name in ("math", "flash", "fused"):
        with attending(name):
            np.testing.assert_allclose(F.scaled_dot_product_attention(query, key, value), plain, atol=1e-5)
    assert set(SpeedSettings.model_fields["attention"].annotation.__args__) == {*BACKENDS, "fused", "plain", "measured"}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_a_kernel_that_refuses_is_an_error_before_anything_is_painted(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"networks\.speed\.attention: found {name}, which refuses attention of query"
    ) as no:
        open_bundle("tiny").versatile(speed=SpeedSettings(attention=name))  # type: ignore[arg-type]
    assert "float32 on cpu" in str(no.value)
    assert "measured" in str(no.value)
