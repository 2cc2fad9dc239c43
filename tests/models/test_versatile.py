"""Versatile Diffusion against the authors' implementation (tests/reference), and the promises of its own."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from bdflow.config import PaintOptions
from bdflow.errors import InputError
from bdflow.models.diffusion.img2img import Schedule
from bdflow.models.versatile.unet import DualTransformer, VersatileDiffusion, build_dual_unet
from bdflow.models.weights import names
from bdflow.models.weights.bundle import open_bundle
from bdflow.models.weights.checkpoint import TensorInfo, differences
from bdflow.models.weights.manifest import SCHEDULER, VERSATILE_UNET
from bdflow.training.bundle import VAE

from .conftest import manifest, reference, reference_config, relative

TOLERANCE = 2e-5
LOOP_TOLERANCE = 2e-4
BATCH_TOLERANCE = 1e-3  # of a 37-step latent, relative to its largest magnitude
TABLE = DDIMScheduler(**SCHEDULER).alphas_cumprod


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return reference("vd_a.io")


@pytest.fixture(scope="module")
def original(io: dict[str, Tensor]) -> VersatileDiffusion:
    """The reference's dual UNet, read by its original key names."""
    config = reference_config("vd_a.io")["image_unet"]
    attention = config["with_attn"]
    unet = build_dual_unet(
        {
            "sample_size": 8,
            "block_out_channels": [config["model_channels"] * m for m in config["channel_mult"]],
            "layers_per_block": config["num_noattn_blocks"][0],
            "cross_attention_dim": config["context_dim"],
            "attention_head_dim": config["num_heads"],
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        }
    )
    weights = reference("vd_a.weights")
    sources = names.original_unet_sources(unet.state_dict(), len(attention), 1, "")
    assert sorted(sources.values()) == sorted(weights)
    unet.load_state_dict({ours: weights[theirs] for ours, theirs in sources.items()})
    vae = AutoencoderKL(**VAE)
    return VersatileDiffusion(unet.requires_grad_(False), vae, TABLE, io["uncond_vision"], io["uncond_text"])


@pytest.fixture(scope="module")
def tiny() -> VersatileDiffusion:
    return open_bundle("tiny").versatile()


def item_inputs(n: int, painter: VersatileDiffusion) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    size = painter.image_size

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((n, *shape), dtype=np.float32))

    return {
        "guess_u8": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        "vision": normal(*painter.unconditional_vision.shape[1:]) * 0.15,
        "text": normal(*painter.unconditional_text.shape[1:]) * 0.15,
        "start_noise": normal(*painter.latent_shape),
        "encode_noise": normal(*painter.latent_shape),
    }


def test_one_evaluation_equals_the_original(original: VersatileDiffusion, io: dict[str, Tensor]) -> None:
    conditions = {"vision": io["cond_vision"], "text": io["cond_text"], "mixing": 0.4}
    assert relative(original.predict_noise(io["z0"], io["timestep"], conditions), io["eps_pred"]) < TOLERANCE


def test_noised_start_and_37_steps_equal_the_original(original: VersatileDiffusion, io: dict[str, Tensor]) -> None:
    config, options = reference_config("vd_a.io"), PaintOptions()
    schedule = Schedule.of(TABLE, options.steps)
    assert list(schedule.timesteps) == io["ddim_timesteps"].tolist()
    noise_index, first = schedule.start(options)
    assert (noise_index, first) == (config["t_encode"], config["t_encode"] - 1) == (37, 36)
    start = original.add_noise(io["z0"], io["noise"], schedule, noise_index)
    assert relative(start, io["z_noised"]) < TOLERANCE
    assert (options.guidance_scale, options.mixing) == (config["guidance_scale"], config["mixing_text"])
    end = original.denoise(start, io["cond_vision"], io["cond_text"], schedule, first, options)
    assert relative(end, io["z_denoised"]) < LOOP_TOLERANCE


def test_noise_index_is_741_for_the_authors_and_721_for_diffusers() -> None:
    schedule = Schedule.of(TABLE, 50)
    for choice, timestep in (("authors", 741), ("diffusers", 721)):
        noise_index, first = schedule.start(PaintOptions(noise_index=choice))  # type: ignore[arg-type]
        assert (schedule.timesteps[noise_index], schedule.timesteps[first], first + 1) == (timestep, 721, 37)
    assert schedule.start(PaintOptions(strength=1.0)) == (49, 49)


def test_the_last_alpha_is_the_first_of_the_table() -> None:
    assert Schedule.of(TABLE, 50).alpha_previous[0] == TABLE[0]


def test_full_size_accepts_exactly_the_original_names() -> None:
    with torch.device("meta"):
        unet = build_dual_unet(VERSATILE_UNET)
    assert sum(value.numel() for value in unet.parameters()) == pytest.approx(1126.8e6, rel=1e-4)
    found = {
        names.UNET_PREFIX + name: TensorInfo(shape, "float16", 0, 0)
        for name, shape in manifest("vd_unet_manifest").items()
    }
    expected = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    sources = names.original_unet_sources(expected, 4, 2, names.UNET_PREFIX)

    def unused(name: str) -> bool:
        return names.unused_in_original_unet(name, names.UNET_PREFIX)

    def report(**changes: TensorInfo) -> list[str]:
        return differences("it", sources, expected, {**found, **changes}, unused)  # type: ignore[arg-type]

    assert report() == []
    stranger = f"{names.UNET_PREFIX}unet_text.input_blocks.1.2.weird.weight"
    assert report(**{stranger: TensorInfo((1,), "float16", 0, 0)}) == [f"it: extra tensor {stranger} [1]"]
    for name in manifest("vd_unet_manifest"):
        if name.startswith("unet_image.") or ".transformer_blocks." in name:
            assert names.UNET_PREFIX + name in sources.values()


def test_autoencoder_names_equal_those_of_diffusers_own_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = AutoencoderKL(**VAE)
    ours = vae.state_dict()
    original = {}
    for name, value in ours.items():
        theirs = names.original_vae(name, len(VAE["block_out_channels"]))
        original[theirs] = value[..., None, None] if ".attn_1." in theirs and value.ndim == 2 else value
    converted = convert_ldm_vae_checkpoint(dict(original), vae.config)
    assert set(converted) == set(ours)
    assert all(torch.equal(converted[name].reshape(value.shape), value) for name, value in ours.items())


def test_the_dual_block_mixes_residuals(original: VersatileDiffusion, io: dict[str, Tensor]) -> None:
    block = next(m for m in original.unet.modules() if isinstance(m, DualTransformer))
    h = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    vision, text = io["cond_vision"], io["cond_text"]

    def mixed(**given: Any) -> Tensor:
        return block(h, cross_attention_kwargs={"vision": None, "text": None, "mixing": 0.4, **given})[0]

    by_vision = block.vision(h, encoder_hidden_states=vision, return_dict=False)[0]
    by_text = block.text(h, encoder_hidden_states=text, return_dict=False)[0]
    both = h + 0.6 * (by_vision - h) + 0.4 * (by_text - h)
    torch.testing.assert_close(mixed(vision=vision, text=text), both)
    assert torch.equal(mixed(vision=vision), by_vision)
    assert torch.equal(mixed(text=text), by_text)
    assert torch.equal(mixed(vision=vision, text=text, mixing=0), by_vision)
    assert torch.equal(mixed(vision=vision, text=text, mixing=1), by_text)


def test_batch_of_one_and_batch_of_n_agree(tiny: VersatileDiffusion) -> None:
    inputs = item_inputs(3, tiny)
    together = tiny.paint(**inputs).int()
    for item in range(3):
        alone = tiny.paint(**{name: value[item : item + 1] for name, value in inputs.items()}).int()
        difference = (alone - together[item : item + 1]).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-2


def test_latents_of_one_and_of_n_agree(original: VersatileDiffusion, io: dict[str, Tensor]) -> None:
    schedule = Schedule.of(TABLE, 50)
    for item in range(2):
        one = slice(item, item + 1)
        alone = original.denoise(io["z_noised"][one], io["cond_vision"][one], io["cond_text"][one], schedule, 36)
        assert relative(alone, io["z_denoised"][one]) < BATCH_TOLERANCE


def test_an_item_does_not_depend_on_its_neighbours(tiny: VersatileDiffusion) -> None:
    inputs = item_inputs(3, tiny)
    options = PaintOptions(steps=8)
    first = tiny.paint(**inputs, options=options)[0]
    swapped = {name: value[[0, 2, 1]] for name, value in inputs.items()}
    assert torch.equal(tiny.paint(**swapped, options=options)[0], first)


def test_ablations_paint_and_differ(tiny: VersatileDiffusion) -> None:
    inputs = item_inputs(2, tiny)
    options = PaintOptions(steps=12)
    full = tiny.paint(**inputs, options=options).float()
    assert full.shape == (2, 64, 64, 3)
    assert ((full == 0) | (full == 255)).float().mean() < 0.2
    for absent in ("guess_u8", "vision", "text"):
        without = tiny.paint(**{**inputs, absent: None}, options=options).float()
        assert (without - full).abs().mean() > 0.5, absent


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 6},
        {"strength": 0.25},
        {"guidance_scale": 1.0},
        {"mixing": 0.9},
        {"noise_index": "diffusers"},
        {"latent": "mean"},
    ],
)
def test_every_option_acts(tiny: VersatileDiffusion, change: dict[str, Any]) -> None:
    inputs = item_inputs(1, tiny)
    base: dict[str, Any] = {"steps": 8}
    usual = tiny.paint(**inputs, options=PaintOptions(**base))
    assert not torch.equal(tiny.paint(**inputs, options=PaintOptions(**{**base, **change})), usual)


def test_without_a_guess_all_steps_run_from_noise(tiny: VersatileDiffusion) -> None:
    inputs = {**item_inputs(1, tiny), "guess_u8": None, "encode_noise": None}
    weak, strong = (tiny.paint(**inputs, options=PaintOptions(steps=6, strength=s)) for s in (0.2, 1.0))
    assert torch.equal(weak, strong)


def test_half_precision_stays_near_float32() -> None:
    full, half = (open_bundle("tiny").versatile(dtype=dtype) for dtype in ("float32", "bfloat16"))
    x = torch.randn(2, *full.latent_shape, generator=torch.Generator().manual_seed(3))
    conditions = {"vision": full.unconditional_vision.expand(2, -1, -1), "text": None, "mixing": 0.4}
    rounded = {**conditions, "vision": conditions["vision"].bfloat16()}
    found = half.predict_noise(x, 401, rounded)
    assert found.dtype == torch.float32
    assert relative(found, full.predict_noise(x, 401, conditions)) < 0.05


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("strength", 0.0),
        ("strength", 1.2),
        ("strength", 0.01),
        ("mixing", -0.1),
        ("latent", "mode"),
        ("noise_index", "a"),
    ],
)
def test_wrong_options_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        PaintOptions(**{name: value})


def test_an_already_dual_unet_is_refused() -> None:
    with pytest.raises(InputError, match="dual_cross_attention"):
        build_dual_unet({"dual_cross_attention": True})


def test_wrong_inputs_are_refused(tiny: VersatileDiffusion) -> None:
    inputs = item_inputs(2, tiny)
    with pytest.raises(InputError, match="neither CLIP-vision nor CLIP-text"):
        tiny.paint(**{**inputs, "vision": None, "text": None})
    with pytest.raises(InputError, match="guess_u8"):
        tiny.paint(**{**inputs, "guess_u8": inputs["guess_u8"].astype(np.float32) / 255})
    with pytest.raises(InputError, match="vision"):
        tiny.paint(**{**inputs, "vision": inputs["vision"][:1]})
    with pytest.raises(InputError, match="encode_noise"):
        tiny.paint(**{**inputs, "encode_noise": None})
    with pytest.raises(InputError, match="steps"):
        tiny.paint(**inputs, options=PaintOptions(steps=2000))
