"""Stable Diffusion 1 and the authors' chain around it against the original implementation (tests/reference)."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from bdflow.config import PaintOptions
from bdflow.errors import InputError
from bdflow.models.diffusion.img2img import Schedule
from bdflow.models.resizing import resize
from bdflow.models.stable_diffusion.unet import TAKAGI, StableDiffusion, build_text_unet
from bdflow.models.weights import names
from bdflow.models.weights.checkpoint import TensorInfo, differences
from bdflow.models.weights.manifest import KL_F8, SCHEDULER

from .conftest import REFERENCE, manifest, reference, reference_config, relative

TABLE = DDIMScheduler(**SCHEDULER).alphas_cumprod
ONE, LOOP = 5e-6, 2e-6  # of the largest value: one evaluation; 40 steps
SD1_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return reference("sd1_a.io")


def group(io: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in io.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def original(io: dict[str, Tensor]) -> StableDiffusion:
    """The reference's networks, read by the key names of `sd-v1-4.ckpt`; every tensor of the file is used."""
    config, weights = reference_config("sd1_a.io"), reference("sd1_a.weights")
    assert config["unet"]["attention_resolutions"] == [1]
    width, depth = config["unet"]["model_channels"], config["unet"]["num_res_blocks"]
    unet = build_text_unet(
        {
            "sample_size": 16,
            "block_out_channels": [width, width],
            "layers_per_block": depth,
            "cross_attention_dim": config["unet"]["context_dim"],
            "attention_head_dim": config["unet"]["num_heads"],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        }
    )
    sources = names.original_text_unet_sources(unet.state_dict(), 2, depth, names.UNET_PREFIX)
    of_unet = {ours: weights.pop(theirs).float() for ours, theirs in sources.items()}
    unet.load_state_dict(of_unet)
    stage = config["first_stage"]["ddconfig"]
    vae = AutoencoderKL(
        block_out_channels=[stage["ch"] * m for m in stage["ch_mult"]],
        layers_per_block=stage["num_res_blocks"],
        latent_channels=stage["z_channels"],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        scaling_factor=config["scale_factor"],
    )
    of_vae = {
        name: weights.pop(names.FIRST_STAGE + names.original_vae(name, 3)).float().reshape(value.shape)
        for name, value in vae.state_dict().items()
    }
    vae.load_state_dict(of_vae)
    assert weights == {}
    return StableDiffusion(unet.requires_grad_(False), vae.requires_grad_(False), TABLE, {"text": io["chain.uncond"]})


def test_one_evaluation_equals_the_original(original: StableDiffusion, io: dict[str, Tensor]) -> None:
    found = original.predict_noise(io["unet.x"], io["unet.timesteps"], {"text": io["unet.context"]})
    assert relative(found, io["unet.eps"]) < ONE


def test_the_autoencoder_equals_the_original(original: StableDiffusion, io: dict[str, Tensor]) -> None:
    mean = original.encode(io["vae.image_uint8"], None, "mean")
    assert relative(mean / original.scale, io["vae.mean"]) < ONE
    latent = original.encode(io["vae.image_uint8"], io["vae.posterior_noise"], "sample")
    assert relative(latent, io["vae.latent"]) < ONE
    expected = ((io["vae.decoded"] + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1)
    found = original.decode(io["vae.decode_latent"])
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3


def test_noising_and_40_steps_equal_the_original(original: StableDiffusion, io: dict[str, Tensor]) -> None:
    of = group(io, "ddim.")
    schedule = Schedule.of(TABLE, TAKAGI.steps)
    assert list(schedule.timesteps) == of["timesteps"].tolist()
    assert relative(schedule.alpha, of["alphas"]) < 1e-6
    assert relative(schedule.alpha_previous.double(), of["alphas_prev"]) < 1e-6
    noise_index, first = schedule.start(TAKAGI)
    assert (noise_index, first, int(of["t_enc"])) == (40, 39, 40)
    assert (schedule.timesteps[noise_index], schedule.timesteps[first]) == (801, 781)
    assert [schedule.timesteps[i] for i in range(first, -1, -1)] == of["timesteps_run"].tolist()
    start = original.add_noise(of["z0"], of["noise"], schedule, noise_index)
    assert relative(start, of["z_noised"]) < ONE
    original.nothing["text"] = of["uncond"]
    assert relative(original.denoise(start, of["cond"], schedule, first), of["z_denoised"]) < LOOP
    few = original.denoise(start, of["cond"], schedule, first - 1)
    assert relative(few, of["z_denoised"]) > 1e-2, "a step too few is seen"
    wrong = original.add_noise(of["z0"], of["noise"], schedule, first)
    assert relative(original.denoise(wrong, of["cond"], schedule, first), of["z_denoised"]) > 1e-2, (
        "so is a wrong index"
    )


def test_every_step_on_the_way_equals_the_original(original: StableDiffusion, io: dict[str, Tensor]) -> None:
    of, schedule = group(io, "ddim."), Schedule.of(TABLE, TAKAGI.steps)
    original.nothing["text"] = of["uncond"]
    x = of["z_noised"]
    for number, expected in enumerate(of["trajectory"][:5]):
        index = 39 - number
        eps = [
            original.predict_noise(x, schedule.timesteps[index], {"text": given.expand(2, -1, -1)})
            for given in (of["uncond"], of["cond"])
        ]
        if number == 0:
            assert relative(eps[0], of["eps_uncond_first"]) < ONE
            assert relative(eps[1], of["eps_cond_first"]) < ONE
        both = eps[0] + TAKAGI.guidance_scale * (eps[1] - eps[0])
        alpha, previous = schedule.alpha[index], schedule.alpha_previous[index]
        x = previous.sqrt() * (x - (1 - alpha).sqrt() * both) / alpha.sqrt() + (1 - previous).sqrt() * both
        assert relative(x, expected) < LOOP


def test_an_item_through_the_whole_chain_is_the_authors_picture(
    original: StableDiffusion, io: dict[str, Tensor]
) -> None:
    of = group(io, "chain.")
    original.nothing["text"] = of["uncond"]
    item = int(of["imgidx"])
    z = of["scores_init_latent"][item].reshape(of["z"].shape)
    c = of["scores_c"][item].reshape(of["cond"].shape)
    assert torch.equal(z, of["z"])
    assert torch.equal(c, of["cond"])
    guess = original.guess(z)
    np.testing.assert_array_equal(guess[0], of["z_uint8"])
    enlarged = original.enlarged(guess)
    np.testing.assert_array_equal(enlarged[0], of["resized_uint8"])
    for picture in (0, 1):
        painted = original.paint(
            enlarged, c, start_noise=of[f"{picture}.noise"], encode_noise=of["posterior_noise"], options=TAKAGI
        )
        difference = (painted[0].int() - of[f"{picture}.image_uint8"].int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3


def test_latents_of_photos_are_those_of_the_authors_script(original: StableDiffusion, io: dict[str, Tensor]) -> None:
    for item in ("features.0.", "features.1."):
        of = group(io, item)
        photo = of["image_uint8"].numpy()[None]
        small = resize(photo, of["resized_uint8"].shape[0], Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(small[0], of["resized_uint8"])
        latent = original.encode(small, of["posterior_noise"], "sample")
        assert relative(latent.flatten(), of["init_latent"]) < ONE
        assert relative(of["caption_embeddings"].mean(dim=0).flatten(), of["c"]) < 1e-6


def test_without_a_text_the_picture_alone_is_painted_and_without_a_picture_the_text(
    original: StableDiffusion, io: dict[str, Tensor]
) -> None:
    of, few = group(io, "chain."), PaintOptions(steps=10, strength=0.8, guidance_scale=5.0)
    original.nothing["text"] = of["uncond"]
    pictures, noise = of["resized_uint8"][None].numpy(), {"start_noise": of["0.noise"]}
    draws = noise | {"encode_noise": of["posterior_noise"]}
    full = original.paint(pictures, of["cond"], **draws, options=few)
    only_z = original.paint(pictures, None, **draws, options=few)
    empty = original.paint(pictures, of["uncond"], **draws, options=few)
    only_c = original.paint(None, of["cond"], **noise, options=few)
    assert torch.equal(only_z, empty)
    assert all((full != other).float().mean() > 0.05 for other in (only_z, only_c))
    with pytest.raises(InputError, match="neither a picture nor a text"):
        original.paint(None, None, **noise)
    with pytest.raises(InputError, match="pictures: found uint8 of shape"):
        original.paint(pictures[:, :32], of["cond"], **draws)


@pytest.mark.parametrize("network", ["unet", "vae", "clip_text"])
def test_full_size_networks_accept_exactly_the_names_of_the_published_file(network: str) -> None:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    with torch.device("meta"):
        if network == "unet":
            module: torch.nn.Module = build_text_unet(SD1_UNET)
            sources = names.original_text_unet_sources(module.state_dict(), 4, 2, names.UNET_PREFIX)
        elif network == "vae":
            module = AutoencoderKL.from_config(KL_F8)
            sources = {name: names.FIRST_STAGE + names.original_vae(name, 4) for name in module.state_dict()}
        else:
            module = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
            sources = {name: names.original_text_encoder(name) for name in module.state_dict()}
    published = manifest(f"sd1_{network}_manifest")
    found = {name: TensorInfo(shape, "float32", 0, 0) for name, shape in published.items()}
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    buffers = [name for name in published if name.endswith("position_ids")]
    assert len(buffers) == (network == "clip_text")
    assert len(published) == {"unet": 686, "vae": 248, "clip_text": 197}[network]
    assert differences("it", sources, expected, found, lambda name: name in buffers) == []
    assert set(sources.values()) == set(published) - set(buffers)


def test_diffusers_own_converter_gives_the_same_names(io: dict[str, Tensor]) -> None:
    """Of the small UNet: the file's tensors by diffusers' converter, and by ours, under diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = build_text_unet(SD1_UNET)
    sources = names.original_text_unet_sources(unet.state_dict(), 4, 2, names.UNET_PREFIX)
    numbers = {theirs: torch.tensor(float(number)) for number, theirs in enumerate(sorted(sources.values()))}
    converted = convert_ldm_unet_checkpoint(dict(numbers), dict(unet.config))
    ours = {names.diffusers_text_unet(name): numbers[theirs] for name, theirs in sources.items()}
    assert {name: float(value) for name, value in converted.items()} == {n: float(v) for n, v in ours.items()}


def test_the_reference_is_of_the_protocol() -> None:
    config = reference_config("sd1_a.io")
    assert (config["ddim"]["steps"], config["ddim"]["strength"], config["ddim"]["scale"]) == (50, 0.8, 5.0)
    assert (TAKAGI.steps, TAKAGI.strength, TAKAGI.guidance_scale, TAKAGI.noise_index) == (50, 0.8, 5.0, "authors")
    assert json.loads((REFERENCE / "sd1_unet_manifest.json").read_text())
