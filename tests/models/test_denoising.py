"""What Stable Diffusion holds while it denoises a photo, against DDIM written out and against torch's own hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bdflow.config import PaintOptions, SpeedSettings
from bdflow.errors import InputError
from bdflow.estimate.sizes import PUBLISHED_STABLE
from bdflow.models.diffusion.img2img import Schedule
from bdflow.models.encoders import Setup, Stimuli
from bdflow.models.stable_diffusion.denoising import SDDenoisingEncoder
from bdflow.models.stable_diffusion.layers import layer_shape
from bdflow.models.stable_diffusion.unet import StableDiffusion, build_text_unet
from bdflow.models.weights.bundle import open_bundle
from bdflow.stages.features import firsts

from .test_stable_diffusion import SD1_UNET

STEPS, RUN = 10, 8  # int(0.8 * 10)
ID = 7


def photos(n: int) -> Stimuli:
    draw = np.random.default_rng(5)
    images = draw.integers(0, 256, (n, 60, 60, 3), dtype=np.uint8)
    return Stimuli(np.arange(ID, ID + n), images, [["a red ball", "a ball"], ["two birds"], ["the sea"]][:n])


def made(stimuli: Stimuli, speed: SpeedSettings | None = None, **options: Any) -> np.ndarray:
    of = encoder(speed, **options)
    return of.work(of.prepare(stimuli))


def encoder(speed: SpeedSettings | None = None, batch_size: int | None = None, **options: Any) -> SDDenoisingEncoder:
    setup = Setup("inside", "tiny", batch_size=batch_size, speed=speed or SpeedSettings())
    return SDDenoisingEncoder(setup, **{"steps": STEPS, **options})


@pytest.fixture(scope="module")
def network() -> StableDiffusion:
    return open_bundle("tiny").stable()


@pytest.fixture(scope="module")
def walk(network: StableDiffusion) -> dict[str, Any]:
    """One photo, noised and denoised by DDIM written out: states by step, and what each evaluation was given."""
    of = encoder()
    pictures, posterior, start, captions = of.prepare(photos(1))
    c = torch.from_numpy(of.text.work(captions))
    table = network.alphas_cumprod
    stride = len(table) // STEPS
    z = network.encode(pictures, posterior, "sample")
    level = 1 + stride * RUN  # the noise of one step above the first that is denoised
    x = table[level].sqrt() * z + (1 - table[level]).sqrt() * start
    states, given = [x], []
    for index in range(RUN - 1, -1, -1):
        t = 1 + stride * index
        given.append((x, t))
        nothing, with_text = (network.predict_noise(x, t, {"text": s}) for s in (network.nothing["text"], c))
        eps = nothing + 5 * (with_text - nothing)
        before = table[t - stride] if index else table[0]
        z0 = (x - (1 - table[t]).sqrt() * eps) / table[t].sqrt()
        x = before.sqrt() * z0 + (1 - before).sqrt() * eps
        states.append(x)
    return {"states": states, "given": given, "c": c, "z": z, "draws": (posterior, start), "pictures": pictures}


@pytest.mark.parametrize("step", [0, 1, 5, RUN, None])
def test_the_latent_at_a_step_is_that_of_ddim_written_out(walk: dict[str, Any], step: int | None) -> None:
    expected = walk["states"][RUN if step is None else step].flatten(1).numpy()
    found = made(photos(1), step=step)
    assert found.shape == (1, *encoder(step=step).shape)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_z_c_is_what_a_picture_is_decoded_from(walk: dict[str, Any], network: StableDiffusion) -> None:
    """The painter, from the same photo, captions and noise, paints what z_c decodes to."""
    posterior, start = walk["draws"]
    options = PaintOptions(steps=STEPS, strength=0.8, guidance_scale=5.0)
    painted = network.paint(
        walk["pictures"], walk["c"], start_noise=start, encode_noise=posterior, options=options
    ).int()
    decoded = network.decode(torch.from_numpy(made(photos(1))).reshape(1, *network.latent_shape)).int()
    assert (painted - decoded).abs().max() <= 1


@contextmanager
def seen_at(network: StableDiffusion, name: str) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []

    def hook(_: object, __: object, out: Any) -> None:
        found.append(out if isinstance(out, Tensor) else out[0])

    watching = network.unet.get_submodule(name).register_forward_hook(hook)
    yield found
    watching.remove()


LAYERS = (
    "conv_in", "down_blocks.0", "down_blocks.1.resnets.0", "down_blocks.1.attentions.0", "mid_block",
    "mid_block.attentions.0", "up_blocks.0", "up_blocks.1.resnets.1",
)  # fmt: skip


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_of_the_half_with_captions(
    walk: dict[str, Any], network: StableDiffusion, layer: str, joint: bool
) -> None:
    x, t = walk["given"][3]
    with seen_at(network, layer) as seen:
        network.predict_noise(x, t, {"text": walk["c"]})
    (expected,) = seen
    speed = SpeedSettings(joint_guidance=joint)
    found = made(photos(1), speed, step=4, layer=layer)
    of = encoder(step=4, layer=layer)
    assert (found.shape[1:], of.layers[0]) == (of.shape, tuple(expected.shape[1:]))
    scale = float(expected.abs().max())
    np.testing.assert_allclose(found, expected.flatten(1).numpy(), atol=1e-3 * scale)
    other = made(photos(1), speed, step=5, layer=layer)
    assert np.abs(other - found).max() > 1e-2 * scale, "another step is another latent"
    pooled = made(photos(1), speed, step=4, layer=layer, pool=2)
    np.testing.assert_allclose(pooled, adaptive_avg_pool2d(expected, 2).flatten(1).numpy(), atol=1e-3 * scale)


@pytest.mark.parametrize("size", ["tiny", "published"])
def test_shapes_of_all_layers_are_known_without_the_network(size: str) -> None:
    """Every block, residual layer and attention layer of both, on outlines; and no name that is not there."""
    config: Any = open_bundle("tiny").manifest.network("sd_unet").config()
    if size == "published":
        config = {"in_channels": 4, "layers_per_block": 2, **SD1_UNET}
        assert {key: config[key] for key in PUBLISHED_STABLE.unet} == {
            key: list(value) if isinstance(value, tuple) else value for key, value in PUBLISHED_STABLE.unet.items()
        }
    with torch.device("meta"):
        unet: Any = build_text_unet(config)
        found: dict[str, tuple[int, ...]] = {}

        def keep(name: str) -> Any:
            return lambda _, __, out: found.update({name: tuple((out if isinstance(out, Tensor) else out[0]).shape)})

        for name, module in unet.named_modules():
            if name.endswith(("blocks", "mid_block")) or name.rpartition(".")[2].isdigit() or name == "conv_in":
                module.register_forward_hook(keep(name))
        side, channels = config["sample_size"], config["in_channels"]
        text = torch.zeros(1, 7, config["cross_attention_dim"])
        unet(
            torch.zeros(1, channels, side, side),
            torch.zeros(1),
            encoder_hidden_states=text,
            cross_attention_kwargs={"text": text},
        )
    wanted = {
        name: shape[1:]
        for name, shape in found.items()
        if len(shape) == 4 and "samplers" not in name and "text" not in name and "to_out" not in name
    }
    assert len(wanted) > (8 if size == "tiny" else 40)
    assert {name: layer_shape(config, name) for name in wanted} == wanted
    for name in ("mid", "down_blocks.9", "up_blocks.0.resnets.7", "mid_block.attentions.1", "conv_out", "down_blocks"):
        with pytest.raises(KeyError):
            layer_shape(config, name)


def test_spaces_of_one_pass_are_asked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values as alone, from one walk that ends with the last step asked for; in batches, too."""
    options: list[dict[str, Any]] = [{"step": 2}, {"step": 5, "layer": "mid_block"}, {"step": 5}, {"step": 0}]
    encoders = {f"s{n}": encoder(batch_size=2, **of) for n, of in enumerate(options)}
    assert set(firsts(encoders).values()) == {"s0"}
    weaker = encoder(strength=0.5)
    assert firsts({"weaker": weaker, **encoders}) == {"weaker": "weaker", **dict.fromkeys(encoders, "s0")}
    first, stimuli = encoders["s0"], photos(3)
    evaluations: list[int] = []
    evaluate = first.network.evaluate._noise
    monkeypatch.setattr(
        first.network.evaluate, "_noise", lambda x, *rest: (evaluations.append(len(x)), evaluate(x, *rest))[1]
    )
    found = first.work_together(first.prepare(stimuli), list(encoders.values()))
    assert evaluations == [2] * 5 + [1] * 5, "two photos, then one; five steps each, both halves from one state"
    for of, values in zip(options, found, strict=True):
        np.testing.assert_allclose(values, made(stimuli, **of), atol=2e-3 * np.abs(values).max())
    alone = made(Stimuli(stimuli.ids[1:2], stimuli.images[1:2], stimuli.captions[1:2]), step=2)
    np.testing.assert_allclose(alone, found[0][1:2], atol=2e-3 * np.abs(alone).max())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": 9}, "step: found 9; expected 0 to 8"),
        ({"step": 0, "layer": "mid_block"}, "step: found 0; expected 1 to 8"),
        ({"step": 1.5}, "step: found 1.5"),
        ({"layer": "middle"}, "layer: found 'middle'; expected a layer of this UNet"),
        ({"pool": 4}, "pool: found 4 without a layer"),
        ({"layer": "mid_block", "pool": 99}, "pool: found 99; expected 1 to "),
        ({"strength": 0}, "strength: found 0"),
        ({"strength": 0.05}, "expected what a painter takes"),
        ({"latent": "median"}, "latent: found 'median'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        encoder(**options).shape
    assert str(error.value).startswith("spaces.inside.options")
    assert words in str(error.value)


def test_layers_of_a_compiled_unet_are_refused() -> None:
    with pytest.raises(InputError, match="expected a UNet that is not compiled"):
        encoder(SpeedSettings(compile="default"), layer="mid_block")
    encoder(SpeedSettings(compile="default"))


def test_what_latents_depend_on_is_all_that_is_run() -> None:
    assert set(encoder().inputs()) == {"sd_unet", "sd_vae", "sd_text", "scheduler", "pixels"}
    assert Schedule.of(open_bundle("tiny").stable().alphas_cumprod, STEPS).start(encoder().options) == (RUN, RUN - 1)
