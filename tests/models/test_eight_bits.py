"""Linear layers in 8 bits: torch's product against the rounding written out, how wrong layers and pictures become."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bdflow.config import PaintOptions, load
from bdflow.errors import InputError
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion import eight_bits
from bdflow.models.diffusion.compiling import compiled
from bdflow.models.diffusion.eight_bits import E4M3, LARGEST, STEP, Linear8, replace_linears, rounded
from bdflow.models.painters import painter_kind
from bdflow.models.versatile.painter import Painter
from bdflow.models.weights.bundle import open_bundle

from .test_versatile import item_inputs

OPTIONS = PaintOptions(steps=4, linear="fp8")
FP8 = 2.0**-9  # the smallest number above 0, below which all is 0 or it
BFLOAT16 = 2.0**-8


def test_rows_are_rounded_to_four_bits_of_mantissa_and_a_scale_of_their_own() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 64, generator=draw) * 10.0 ** torch.linspace(-20, 20, 50)[:, None]
    found, scale = rounded(rows)
    assert (found.dtype, scale.dtype, scale.shape) == (E4M3, torch.float32, (50, 1))
    again = found.float() * scale
    assert (found.float().abs().amax(1) == LARGEST).all(), "the largest of a row is the largest of the format"
    allowed = STEP * rows.abs() * (1 + 1e-5) + FP8 / 2 * scale
    assert ((again - rows).abs() <= allowed).all()
    assert ((again - rows).abs().amax() / rows.abs().amax()) > 1e-3, "the test would see no rounding otherwise"
    zero, one = rounded(torch.zeros(2, 16))
    assert torch.isfinite(one).all()
    assert (zero.float() * one == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_rounded_numbers(dtype: torch.dtype, bias: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    exact = nn.Linear(64, 48, bias=bias, dtype=dtype)
    for parameter in exact.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw).to(dtype)
    values = torch.randn(3, 5, 64, generator=draw).to(dtype)
    (rows, by_row), (weight, by_output) = rounded(values.reshape(15, 64)), rounded(exact.weight.detach())
    product = (rows.double() @ weight.double().T) * by_row.double() * by_output.double().T
    expected = product + (exact.bias.detach().double() if bias else 0)
    found = Linear8(exact)(values)
    assert (found.shape, found.dtype) == ((3, 5, 48), dtype)
    # what is added up is given in bfloat16
    np.testing.assert_allclose(
        found.reshape(15, 48).double(), expected, atol=2 * BFLOAT16 * float(product.abs().max() + 3)
    )


def _layers(network: Any) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in network.unet.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks" in name
    }


def test_every_linear_layer_of_the_tiny_unet_stays_within_its_bound() -> None:
    """By no more than two roundings of each product, and in the mean as if they knew nothing of each other."""
    network = open_bundle("tiny").versatile()
    layers, seen, mean = _layers(network), {}, {}

    def look(name: str) -> Any:
        def keep(_: nn.Module, args: tuple[Tensor]) -> None:
            seen.setdefault(name, args[0])

        return keep

    for name, layer in layers.items():
        layer.register_forward_pre_hook(look(name))
    network.paint(**item_inputs(2, network), options=PaintOptions(steps=4))
    assert seen.keys() == layers.keys()
    with torch.inference_mode():
        for name, layer in layers.items():
            values = seen[name].reshape(-1, layer.in_features)
            one, two = (rounded(of)[1] * FP8 / 2 for of in (values, layer.weight))
            product, sizes = values @ layer.weight.T, values.abs() @ layer.weight.abs().T
            error = (Linear8(layer)(values) - layer(values)).abs()
            small = one * layer.weight.abs().sum(1) + values.abs().sum(1, keepdim=True) * two.T
            assert (error <= (2 * STEP + STEP**2 + BFLOAT16) * sizes + 1.1 * small).all(), name
            mean[name] = float(error.square().mean().sqrt() / product.square().mean().sqrt())
    assert min(mean.values()) > 0.005
    assert max(mean.values()) < 0.08, mean


def test_all_layers_of_the_transformers_are_replaced_and_others_are_not() -> None:
    network = open_bundle("tiny").versatile()
    before = _layers(network)
    others = [m for name, m in network.unet.named_modules() if isinstance(m, nn.Linear) and name not in before]
    assert replace_linears(network.unet) == len(before) == sum(isinstance(m, Linear8) for m in network.unet.modules())
    assert [m for m in network.unet.modules() if isinstance(m, nn.Linear)] == others


def test_a_painter_of_that_mode_paints_nearly_the_same_pictures() -> None:
    exact, coarse = Painter("tiny", options=PaintOptions(steps=4)), Painter("tiny", options=OPTIONS)
    inputs = item_inputs(2, exact.versatile)
    a, b = (of.versatile.paint(**inputs, options=of.options).float().numpy() for of in (exact, coarse))
    assert not np.array_equal(a, b)
    for one, other in zip(a, b, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95
    with pytest.raises(InputError, match="linear: found fp8, and a network whose linear layers are exact"):
        exact.versatile.paint(**inputs, options=OPTIONS)
    with pytest.raises(InputError, match="linear: found exact, and a network whose linear layers are fp8"):
        coarse.versatile.paint(**inputs, options=exact.options)


def test_batches_are_recorded_and_not_halved_as_in_half_precision() -> None:
    sizes = BatchSizes(4, 4, 4, 4, fixed=True)
    of = Painter("tiny", options=OPTIONS, sizes=sizes).batches
    assert (of.guess.halve, of.encode.halve, of.denoise.halve, of.decode.halve) == (True, False, False, False)
    for settings, recorded in (([], False), (["painters.brain_diffuser.linear=fp8"], True)):
        kind = painter_kind(load("demo", settings), "brain_diffuser")
        assert ("batches" in kind.arithmetic("full")) == recorded
        assert "batches" not in kind.guess_arithmetic()
        assert kind.variant_settings("full")["linear"] == ("fp8" if recorded else "exact")


def test_a_device_without_such_products_is_refused_before_anything_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter("tiny", options=OPTIONS)
    with monkeypatch.context() as old:
        old.setattr(
            torch, "_scaled_mm", lambda *args, **kwargs: (_ for _ in ()).throw(NotImplementedError("no kernel"))
        )
        with pytest.raises(InputError, match=r"painters\.NAME\.linear: found fp8 on torch .* on cpu \(no kernel\)"):
            _ = painter.versatile
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(InputError, match=r"fp8 on NVIDIA A100, a GPU of compute capability 8\.0") as refused:
        eight_bits.refuse_without(torch.device("cuda"))
    assert "8.9 or higher" in str(refused.value)


def test_the_replaced_network_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph break; with the recorded CUDA graphs see test_without_a_device.py."""
    graphs: list[int] = []
    compile_ = torch.compile

    def backend(graph: Any, inputs: object) -> Any:
        graphs.append(sum("scaled_mm" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, *, fullgraph, dynamic, mode: compile_(
            function, fullgraph=fullgraph, dynamic=dynamic, backend=backend
        ),
    )
    layer = nn.Sequential(Linear8(nn.Linear(32, 64)), nn.GELU(), Linear8(nn.Linear(64, 16)))
    torch._dynamo.reset()
    with torch.inference_mode():
        values = torch.randn(4, 7, 32)
        called = compiled(lambda x: layer(x), "default")
        assert torch.equal(called(values), layer(values))
        called(2 * values)
    torch._dynamo.reset()
    assert graphs == [2]
