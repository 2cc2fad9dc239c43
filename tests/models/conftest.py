"""Reference tensors of the original implementations, and bundles in the three published layouts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from bdflow.models.weights import names
from bdflow.models.weights.bundle import TINY, open_bundle
from bdflow.models.weights.manifest import MANIFEST, write_manifest
from bdflow.training.bundle import CLIP_TEXT, CLIP_VISION, PROCESSOR, UNET, VAE, VDVAE

REFERENCE = Path(__file__).parent.parent / "reference"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reference(name: str) -> dict[str, Tensor]:
    return load_file(REFERENCE / f"{name}.safetensors")


def reference_config(name: str) -> dict[str, Any]:
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((REFERENCE / f"{name}.json").read_text()).items()}


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, dict[str, np.ndarray]]:
    """The shipped weights: network -> (our parameter name -> array)."""
    bundle = open_bundle("tiny")
    return {
        network: {name: value.numpy() for name, value in bundle.load(network).state_dict().items()}
        for network in ("vdvae", "clip_vision", "clip_text", "unet", "vae")
    }


@pytest.fixture(scope="session")
def authors_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Any) -> Path:
    """Tiny's networks as the authors' original files: their key names, prefixes and wrappers."""
    root = tmp_path_factory.mktemp("authors")
    tensors = {net: {k: torch.from_numpy(v).half() for k, v in state.items()} for net, state in tiny_weights.items()}
    (root / "clip").mkdir()

    vdvae = {f"module.{name}": value.float() for name, value in tensors["vdvae"].items()}
    torch.save(vdvae, root / "imagenet64-iter-1600000-model-ema.th")

    sources = names.original_unet_sources(tensors["unet"], 2, 1, names.UNET_PREFIX)
    unet = {sources[name]: value for name, value in tensors["unet"].items()}
    unet[f"{names.UNET_PREFIX}unet_text.input_blocks.1.0.in_layers.2.weight"] = torch.zeros(8, 8, 1, 1)
    unet["clip.model.logit_scale"] = torch.zeros(())
    torch.save(unet, root / "vd-four-flow-v1-0-fp16-deprecated.pth")

    vae = {}
    for name, value in tensors["vae"].items():
        theirs = names.original_vae(name, len(VAE["block_out_channels"]))
        vae[theirs] = value[..., None, None] if ".attn_1." in theirs and value.ndim == 2 else value
    torch.save({"state_dict": {**vae, "loss.logvar": torch.zeros(())}}, root / "kl-f8.pth")

    whole = {**tensors["clip_vision"], **tensors["clip_text"], "logit_scale": torch.zeros(())}
    whole["text_model.embeddings.position_ids"] = torch.arange(CLIP_TEXT["max_position_embeddings"])[None]
    torch.save(whole, root / "clip" / "pytorch_model.bin")
    config = {"projection_dim": 48, "vision_config": CLIP_VISION, "text_config": CLIP_TEXT}
    (root / "clip" / "config.json").write_text(json.dumps(config))
    (root / "clip" / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "size": 64, "crop_size": 64}))
    for name in ("vocab.json", "merges.txt"):
        (root / "clip" / name).write_bytes((TINY / "tokenizer" / name).read_bytes())

    write_manifest(root)
    edit_manifest(root, lambda networks: [networks[n].update(config=c) for n, c in _small.items()])
    return root


_vae = json.loads((TINY / "vae" / "config.json").read_text())
_small = {"vdvae": VDVAE, "unet": UNET, "vae": {**VAE, "scaling_factor": _vae["scaling_factor"]}}


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((root / MANIFEST).read_text())
    change(content["networks"])
    (root / MANIFEST).write_text(json.dumps(content))
