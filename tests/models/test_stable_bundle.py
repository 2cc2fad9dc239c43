"""Bundles of Stable Diffusion 1: the published checkpoint's layout and diffusers', target spaces, a study with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from bdflow.config import parse
from bdflow.errors import InputError
from bdflow.models.encoders import ENCODERS, Encoder, Setup, Stimuli, encoder_of
from bdflow.models.weights import names
from bdflow.models.weights.bundle import TINY, Bundle, check_bundle, describe_bundle, open_bundle
from bdflow.models.weights.manifest import MANIFEST, write_manifest
from bdflow.pipeline import Pipeline
from bdflow.registry import resolve
from bdflow.stores import Store
from bdflow.study.target_reader import layers_of
from bdflow.training.bundle import untrained, write_bundle
from tests.support.parts import whole

from .conftest import edit_manifest, reference, reference_config, relative

TOKENS, WIDTH = 7, 24
WORDS = json.loads((TINY / "tokenizer/vocab.json").read_text())
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": TOKENS,
    "hidden_act": "quick_gelu",
    "bos_token_id": WORDS["<|startoftext|>"],
    "eos_token_id": WORDS["<|endoftext|>"],
}
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 64],
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64, 64, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
NETWORKS = ("sd_unet", "sd_vae", "sd_text")


@pytest.fixture(scope="module")
def text() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(**TEXT)).state_dict()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, text: dict[str, Tensor]) -> Path:
    """As `sd-v1-4.ckpt`: everything in one file, with what is not used, and the tokenizer's files beside it."""
    root = tmp_path_factory.mktemp("published")
    weights = {name: value.float() for name, value in reference("sd1_a.weights").items()}
    weights |= {names.original_text_encoder(name): value for name, value in text.items()}
    weights[f"{names.TEXT_STAGE}text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    weights["model_ema.decay"], weights["betas"] = torch.ones(()), torch.zeros(1000)
    torch.save({"state_dict": weights, "global_step": 470000}, root / "sd-v1-4.ckpt")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TINY / "tokenizer" / name, root / name)
    write_manifest(root)
    small = {"sd_unet": UNET, "sd_vae": VAE, "sd_text": TEXT}
    edit_manifest(root, lambda networks: [networks[name].update(config=of) for name, of in small.items()])
    return root


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory: pytest.TempPathFactory, published: Path, text: dict[str, Tensor]) -> Path:
    """The same networks as diffusers keeps them."""
    root, bundle = tmp_path_factory.mktemp("diffusers"), open_bundle(published)
    unet = {names.diffusers_text_unet(k): v for k, v in bundle.load("sd_unet").state_dict().items()}
    of = {"unet": (UNET, unet), "vae": (VAE, dict(bundle.load("sd_vae").state_dict()))}
    for name, (config, state) in of.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
        save_file({k: v.contiguous() for k, v in state.items()}, root / name / "diffusion_pytorch_model.safetensors")
    (root / "text_encoder").mkdir()
    (root / "text_encoder/config.json").write_text(json.dumps({**TEXT, "architectures": ["CLIPTextModel"]}))
    old = {f"text_model.{name.removeprefix('text_model.')}": value.contiguous() for name, value in text.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(old, root / "text_encoder/model.safetensors")
    shutil.copytree(TINY / "tokenizer", root / "tokenizer")
    write_manifest(root)
    return root


def test_the_checkpoint_and_the_diffusers_directory_are_the_same_networks(published: Path, diffusers: Path) -> None:
    for root in (published, diffusers):
        assert check_bundle(root).problems == ()
        found = describe_bundle(root)
        assert {network.name for network in found.networks} == {*NETWORKS, "scheduler"}
        assert found.spaces == {"sd_vae": (400,), "sd_text": (TOKENS, WIDTH)}
        assert (found.guess_size, found.image_size) == (None, 64)
        assert found.licence.startswith("CreativeML OpenRAIL-M")
    one, other = open_bundle(published), open_bundle(diffusers)
    for network in NETWORKS:
        a, b = (bundle.load(network).state_dict() for bundle in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained networks of both families, those that may be the same named once."""
    weights = {
        name: {key: value.numpy() for key, value in untrained(name).state_dict().items()}
        for name in ("vdvae", "clip_vision", "clip_text", "unet", "vae", "sd_unet")
    }
    return write_bundle(tmp_path_factory.mktemp("both"), weights, source="a test").parent


def check_same(bundle: Bundle, of: Bundle) -> None:
    """Stable Diffusion's autoencoder and text encoder are the other family's, and both encode."""
    vae, towers = of.load("vae").state_dict(), of.load("clip_text").state_dict()
    found = bundle.load("sd_vae").state_dict()
    assert found.keys() == vae.keys()
    assert all(torch.equal(found[name], vae[name]) for name in found)
    found = bundle.load("sd_text").state_dict()
    named = {name.removeprefix("text_model."): value for name, value in towers.items()}
    assert {name.removeprefix("text_model.") for name in found} == named.keys() - {"text_projection.weight"}
    assert all(torch.equal(value, named[name.removeprefix("text_model.")]) for name, value in found.items())


def test_a_bundle_of_both_families_names_what_they_share_once(both: Path) -> None:
    bundle, networks = open_bundle(both), json.loads((both / MANIFEST).read_text())["networks"]
    assert networks["sd_vae"].keys() == networks["sd_text"].keys() == {"same_as", "licence"}
    assert check_bundle(both).problems == ()
    assert bundle.spaces.keys() == {"vdvae", "clip_vision", "clip_text", "sd_vae", "sd_text"}
    assert (bundle.spaces["sd_vae"], bundle.spaces["sd_text"]) == ((400,), (24, 96))
    check_same(bundle, bundle)
    of = bundle.digests("vae", "sd_vae", "clip_text", "sd_text")
    assert of["vae"] == of["sd_vae"] != of["clip_text"] == of["sd_text"]
    described = {network.name: network for network in describe_bundle(both).networks}
    assert described["sd_vae"].files == described["vae"].files
    projection = bundle.load("clip_text").state_dict()["text_projection.weight"].numel()
    assert described["clip_text"].parameters - described["sd_text"].parameters == projection


def test_an_encoder_loads_its_network_when_it_is_first_needed(both: Path) -> None:
    stimuli = Stimuli(np.arange(3), np.zeros((3, 40, 40, 3), np.uint8), [["a ball"]] * 3)
    for space, shape in (("sd_vae", (3, 400)), ("sd_text", (3, 24, 96))):
        of = encoder(space, both)
        assert of.work(of.prepare(stimuli)).shape == shape


def test_what_is_shared_may_lie_in_the_authors_files(authors_bundle: Path, both: Path, tmp_path: Path) -> None:
    """In `kl-f8.pth`, whose names have no prefix, and in a whole CLIP model."""
    root = Path(shutil.copytree(authors_bundle, tmp_path / "bundle"))
    shutil.copytree(both / "unet", root / "unet")
    entry = json.loads((both / MANIFEST).read_text())["networks"]["sd_unet"]
    shared = {"sd_vae": {"same_as": "vae"}, "sd_text": {"same_as": "clip_text"}}
    edit_manifest(root, lambda networks: networks.update(sd_unet=entry, **shared))
    assert check_bundle(root).problems == ()
    check_same(open_bundle(root), open_bundle("tiny"))


def test_a_bundle_paints(published: Path) -> None:
    network = open_bundle(published).stable()
    assert (network.image_size, network.latent_shape) == (64, (4, 16, 16))
    assert network.nothing["text"].shape == (1, TOKENS, WIDTH)
    draw = torch.Generator().manual_seed(0)
    guess = network.enlarged(network.guess(torch.randn(2, 4, 10, 10, generator=draw) * 0.2))
    noise = torch.randn(2, 4, 16, 16, generator=draw)
    painted = network.paint(guess, network.nothing["text"].expand(2, -1, -1), start_noise=noise, encode_noise=noise)
    assert (painted.shape, painted.dtype) == ((2, 64, 64, 3), torch.uint8)


def test_a_family_is_whole_or_not_there(published: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(published, tmp_path / "bundle"))
    edit_manifest(root, lambda networks: networks.pop("sd_text"))
    with pytest.raises(InputError, match="network sd_text is missing"):
        open_bundle(root)
    edit_manifest(root, lambda networks: [networks.pop(name) for name in ("sd_unet", "sd_vae")])
    with pytest.raises(InputError, match="network vdvae is missing; network clip_vision is missing"):
        open_bundle(root)


def test_another_architecture_is_refused_before_weights_are_read(published: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(published, tmp_path / "bundle"))
    edit_manifest(root, lambda networks: networks["sd_unet"].update(config={**UNET, "cross_attention_dim": 32}))
    problems = check_bundle(root).problems
    assert problems
    assert all("attn2" in line for line in problems)
    with pytest.raises(InputError, match="attn2"):
        open_bundle(root).load("sd_unet")


def test_spaces_of_another_family_are_refused(published: Path, authors_bundle: Path) -> None:
    for space in ("vdvae", "clip_vision", "clip_text"):
        with pytest.raises(InputError, match=f"networks of the spaces sd_vae, sd_text; expected those of {space}"):
            encoder(space, published).shape
    with pytest.raises(InputError, match="expected those of sd_vae"):
        encoder("sd_vae", authors_bundle).shape


def encoder(space: str, bundle: str | Path, **options: Any) -> Encoder:
    made: Encoder = resolve(space, ENCODERS, "")(Setup(space, bundle=bundle, batch_size=2), **options)
    return made


def test_z_is_the_authors_latent(published: Path) -> None:
    """Of their two photos: the posterior mean equals theirs, and a sample lies around it by its spread."""
    io, scale = reference("sd1_a.io"), reference_config("sd1_a.io")["scale_factor"]
    photos = np.stack([io[f"features.{item}.image_uint8"].numpy() for item in (0, 1)])
    stimuli = Stimuli(np.array([3, 7]), photos, [(), ()])
    mean = encoder("sd_vae", published, latent="mean")
    found = mean.work(mean.prepare(stimuli))
    assert found.shape == (2, *mean.shape)
    expected = torch.stack([io[f"features.{item}.mean"].flatten() for item in (0, 1)]) * scale
    assert relative(torch.from_numpy(found), expected) < 5e-6
    sample = encoder("sd_vae", published)
    drawn = sample.work(sample.prepare(stimuli))
    spread = torch.stack([(io[f"features.{item}.logvar"] / 2).exp().flatten() for item in (0, 1)]) * scale
    noise = ((torch.from_numpy(drawn) - expected) / spread).numpy()
    assert abs(noise.mean()) < 0.15
    assert abs(noise.std() - 1) < 0.1
    swapped = Stimuli(stimuli.ids[::-1], photos[::-1], [(), ()])
    np.testing.assert_allclose(sample.work(sample.prepare(swapped))[::-1], drawn, atol=1e-5)
    with pytest.raises(InputError, match="sample or mean"):
        encoder("sd_vae", published, latent="median")


def test_c_is_the_mean_over_captions_of_every_token(published: Path, text: dict[str, Tensor]) -> None:
    model = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    model.load_state_dict(text)
    captions = [["a red ball", "a ball on grass"], ["a house"]]
    of = encoder("sd_text", published)
    found = of.work(of.prepare(Stimuli(np.array([1, 2]), np.zeros((2, 8, 8, 3), np.uint8), captions)))
    network = open_bundle(published).sd_text()
    with torch.inference_mode():
        each = [model(input_ids=network.tokens(texts)).last_hidden_state.mean(dim=0) for texts in captions]
        expected = model(input_ids=network.tokens([""])).last_hidden_state[0]
    assert found.shape == (2, TOKENS, WIDTH)
    assert relative(torch.from_numpy(found), torch.stack(each)) < 1e-5
    assert relative(network.unconditional()[0], expected) < 1e-5


def takagi(settings: Any, root: Path, bundle: Path, **sections: Any) -> Any:
    """Single trials, z from early regions and c from others, without an intercept; painted by Stable Diffusion."""
    ridge = {"rows": "trials", "intercept": False, "standardise": "none", "alpha": 10}
    spaces = {
        "z": {"encoder": "sd_vae", "ridge": {**ridge, "regions": "V1 | V2"}},
        "c": {"encoder": "sd_text", "ridge": {**ridge, "regions": "V3 | hV4"}},
    }
    painter = {"kind": "stable_diffusion", "guess": "z", "vision": None, "text": "c", "steps": 10, "strength": 0.8}
    painter |= {"guidance_scale": 5, "batch_size": 4, "variants": ["full", "only_z", "only_c"]}
    content = settings(root, subjects=["subj01"], spaces=spaces, networks={"bundle": str(bundle)})
    content |= {"painters": {"takagi": painter}, "evaluate": {"metrics": ["PixCorr", "SSIM"]}, **sections}
    return parse(content)


@pytest.mark.slow(kind="recipes")
def test_a_study_is_painted_by_settings_alone(published: Path, settings: Any, tmp_path: Path) -> None:
    """From photos to a report; pictures from the true latents are those that the network itself paints from them."""
    config = takagi(settings, tmp_path, published, reconstruct={"upper_bound": True})
    Pipeline(config).run()
    study, bundle = Path(config.study), open_bundle(published)
    ids = Store(study, "guesses/takagi/true").read("stimulus_id")
    z, c = (whole(study, f"targets/{space}") for space in "zc")
    rows = z.rows("stimulus_id", ids)
    latents = [of.read("latent")[rows].astype(np.float32) for of in (z, c)]
    network = bundle.stable()
    guesses = network.guess(latents[0].reshape(-1, 4, 10, 10))
    assert (Store(study, "guesses/takagi/true").read("image") != guesses).mean() < 1e-3
    images = {
        v: Store(study, f"reconstructions/takagi/true/{v}").read("image")[:, 0] for v in ("full", "only_z", "only_c")
    }
    assert all(image.shape == (6, 64, 64, 3) for image in images.values())
    from bdflow import random

    start, encode = (
        torch.from_numpy(np.stack([random.normal((4, 16, 16), 0, purpose, "true", str(i)) for i in ids]))
        for purpose in ("diffusion start", "guess posterior")
    )
    options = config.painters["takagi"].paint_options
    guess, text = network.enlarged(guesses), torch.from_numpy(latents[1])
    for variant, given in {"full": (guess, text), "only_z": (guess, None), "only_c": (None, text)}.items():
        expected = network.paint(*given, start_noise=start, encode_noise=encode, options=options)
        moved = np.abs(images[variant].astype(int) - expected.numpy())
        assert (moved > 1).mean() < 2e-3, variant
    assert all((images["full"] != images[v]).mean() > 0.05 for v in ("only_z", "only_c"))
    assert np.isfinite(Store(study, "metrics/takagi/subj01").read("value")).all()
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "only_z" in page
    assert "VDVAE" not in page.split("<script")[0]
    before = {row.path: row.state.kind for row in Pipeline(config).status()}
    assert set(before.values()) == {"sealed"}
    other = takagi(settings, tmp_path, published, painters={})
    assert {row.state.kind for row in Pipeline(other).status()} == {"sealed", "stale"}


def test_a_study_is_decoded_into_both_spaces(published: Path, settings: Any, tmp_path: Path) -> None:
    """Single trials, z from early regions and c from others, without an intercept: by settings alone."""
    config = takagi(settings, tmp_path, published, painters={})
    Pipeline(config).run(("ingest", "features", "regress"))
    study = Path(config.study)
    for space, shape in (("z", (400,)), ("c", (TOKENS, WIDTH))):
        latent = whole(study, f"targets/{space}").read("latent")
        assert latent.shape[1:] == shape
        assert encoder_of(config, space).shape == shape
        predicted = Store(study, f"predictions/subj01/{space}").read("latent")
        assert predicted.shape == (6, *shape)
        assert np.isfinite(predicted).all()
    assert layers_of(Store(study, "targets/z/shared")) == [(4, 10, 10)]
    used = [Store(study, f"systems/subj01/{path.name}").read("used") for path in (study / "systems/subj01").glob("*/")]
    assert len(used) == 2
    assert not (used[0] & used[1]).any()
    assert json.loads((published / MANIFEST).read_text())["networks"]["sd_vae"]["layout"] == "original"
