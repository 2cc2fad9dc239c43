"""The VDVAE against OpenAI's implementation (tests/reference), and the promises of its own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bdflow.errors import InputError
from bdflow.models.config import VDVAEConfig
from bdflow.models.vdvae import VDVAE, sample_mixture
from bdflow.models.weights.bundle import open_bundle

from .conftest import manifest, reference, reference_config, relative

TOLERANCE = 2e-5
BATCH_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return reference("vdvae_a.io")


@pytest.fixture(scope="module")
def net() -> VDVAE:
    config = reference_config("vdvae_a.weights")
    shapes = config.pop("latent_shapes")
    net = VDVAE(VDVAEConfig(**config))
    net.load_state_dict(reference("vdvae_a.weights"))
    assert [list(shape) for shape in net.config.block_shapes] == shapes
    return net.requires_grad_(False).eval()


def posterior(io: dict[str, Tensor], net: VDVAE) -> list[Tensor]:
    return [io[f"posterior_noise.{block:02d}"] for block in range(len(net.latent_shapes))]


def prior(io: dict[str, Tensor], net: VDVAE) -> list[Tensor]:
    return [io[f"prior_noise.{block:02d}"] for block in range(len(net.prior_shapes))]


def test_latents_equal_the_official_ones(net: VDVAE, io: dict[str, Tensor]) -> None:
    found = net.encode(io["image"], posterior(io, net))
    assert found.dtype == torch.float32
    assert relative(found, io["latents_flat"]) < TOLERANCE


def test_decoding_equals_the_official_one(net: VDVAE, io: dict[str, Tensor]) -> None:
    px_z = net.decode_state(io["predicted_latents_flat"], prior(io, net))
    assert relative(px_z, io["px_z"]) < TOLERANCE
    parameters = net.mixture(px_z)
    assert relative(parameters, io["mol_params"]) < TOLERANCE
    sampled = sample_mixture(parameters, io["uniform_mixture"], io["uniform_logistic"], net.config.num_mixtures)
    assert relative(sampled, io["sampled_image"]) < TOLERANCE
    uniforms = io["uniform_mixture"], io["uniform_logistic"]
    pixels = net.decode(io["predicted_latents_flat"], prior(io, net), *uniforms).int()
    difference = (pixels - io["sampled_uint8"].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 1e-3


def test_full_size_has_exactly_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        net = VDVAE(VDVAEConfig())
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == manifest(
        "vdvae_imagenet64_manifest"
    )
    assert sum(value.numel() for value in net.parameters()) == pytest.approx(125.0e6, rel=1e-3)
    config = VDVAEConfig()
    assert config.n_latents == 91_168
    assert len(config.decoder_layout) == 75
    assert [config.latent_shapes.count((16, size, size)) for size in (1, 4, 8, 16, 32)] == [2, 4, 8, 16, 1]


def test_encoding_stops_after_the_last_regressed_block(net: VDVAE, io: dict[str, Tensor]) -> None:
    ran: list[int] = []
    hooks = [
        block.resnet.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, block in enumerate(net.decoder.blocks)
    ]
    net.encode(io["image"], None)
    for hook in hooks:
        hook.remove()
    assert ran == list(range(net.config.n_latent_blocks))


def test_mean_is_the_sample_without_noise(net: VDVAE, io: dict[str, Tensor]) -> None:
    still = [torch.zeros_like(draw) for draw in posterior(io, net)]
    assert torch.equal(net.encode(io["image"], None), net.encode(io["image"], still))


def test_batch_of_one_and_batch_of_n_agree(net: VDVAE, io: dict[str, Tensor]) -> None:
    together = net.encode(io["image"], posterior(io, net))
    for item in range(len(together)):
        alone = net.encode(io["image"][item : item + 1], [d[item : item + 1] for d in posterior(io, net)])
        assert relative(alone, together[item : item + 1]) < BATCH_TOLERANCE


def test_tiny_decodes_pictures_that_depend_on_their_latents() -> None:
    net = open_bundle("tiny").vdvae()
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, net.config.n_latents, generator=rng)
    draws = [torch.zeros(2, *shape) for shape in net.prior_shapes]
    uniforms = [torch.full((2, *shape), 0.5) for shape in net.uniform_shapes]
    first, second = net.decode(latents, draws, *uniforms).float()
    assert (first - second).abs().mean() > 10
    assert ((first == 0) | (first == 255)).float().mean() < 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    bundle = open_bundle("tiny")
    full, half = (bundle.vdvae(dtype=kind).encode(images, None) for kind in ("float32", dtype))
    assert half.dtype == torch.float32
    assert relative(half, full) < 0.05


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 3, 16, 16), np.uint8)],
)
def test_images_of_wrong_type_or_shape_are_refused(net: VDVAE, images: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected uint8 of shape"):
        net.encode(images, None)


def test_wrong_latents_and_draws_are_refused(net: VDVAE, io: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="VDVAE latents"):
        net.decode_state(io["predicted_latents_flat"][:, :-1], prior(io, net))
    with pytest.raises(InputError, match="prior noise"):
        net.decode_state(io["predicted_latents_flat"], prior(io, net)[:-1])
    with pytest.raises(InputError, match="posterior noise"):
        net.encode(io["image"], posterior(io, net)[:2])


def test_a_misspelt_block_string_is_refused() -> None:
    with pytest.raises(InputError, match="8q4"):
        VDVAE(VDVAEConfig(dec_blocks="1x1,8q4"))
