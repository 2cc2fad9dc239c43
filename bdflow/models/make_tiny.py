"""Make the `tiny` bundle: the real bundle's classes, code paths and directory layout, small enough to ship.

`python -m bdflow.models.make_tiny OUT` writes it, the same bytes every time. Its weights are seeded random
numbers, scaled so that outputs depend on inputs and images are not saturated; they show nothing.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from bdflow import noise
from bdflow.models import keys
from bdflow.models.bundle import Bundle
from bdflow.models.manifest import FORMAT, MANIFEST, SCHEDULER, FileEntry, Manifest, NetworkEntry
from bdflow.models.tiny_words import WORDS, learn_merges, vocabulary

SEED = 20231109
LICENCE = "Apache-2.0"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MERGES = learn_merges(WORDS)
VOCABULARY = vocabulary(MERGES)

VDVAE = {
    "image_size": 32,
    "enc_blocks": "32x2,32d2,16x2,16d2,8x2,8d2,4x2,4d4,1x1",
    "dec_blocks": "1x1,4m1,4x2,8m4,8x2,16m8,16x1,32m16,32x1",
    "zdim": 4,
    "width": 48,
    "bottleneck_multiple": 0.5,
    "no_bias_above": 32,
    "num_mixtures": 10,
    "n_latent_blocks": 8,
}
CLIP_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
    "projection_dim": 48,
    "hidden_act": "quick_gelu",
}
CLIP_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "projection_dim": 48,
    "hidden_act": "quick_gelu",
    "vocab_size": len(VOCABULARY),
    "bos_token_id": len(VOCABULARY) - 2,
    "eos_token_id": len(VOCABULARY) - 1,
    "pad_token_id": len(VOCABULARY) - 1,
}
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 48],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
VAE = {
    "sample_size": 128,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 24, 32, 48],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}

WEIGHTS = {
    "vdvae": {"weights": "vdvae/model.safetensors"},
    "clip_vision": {"weights": "image_encoder/model.safetensors"},
    "clip_text": {"weights": "text_encoder/model.safetensors"},
    "unet": {
        "image_weights": "image_unet/diffusion_pytorch_model.safetensors",
        "text_weights": "text_unet/diffusion_pytorch_model.safetensors",
    },
    "vae": {"weights": "vae/diffusion_pytorch_model.safetensors"},
    "scheduler": {},
}
TEXTS: dict[str, dict[str, tuple[str, Any]]] = {
    "vdvae": {},
    "clip_vision": {
        "config": ("image_encoder/config.json", CLIP_VISION),
        "processor": ("image_feature_extractor/preprocessor_config.json", PROCESSOR),
    },
    "clip_text": {
        "config": ("text_encoder/config.json", CLIP_TEXT),
        "vocab": ("tokenizer/vocab.json", VOCABULARY),
        "merges": ("tokenizer/merges.txt", "\n".join(["#version: 0.2", *(" ".join(m) for m in MERGES), ""])),
    },
    "unet": {"config": ("image_unet/config.json", {"_class_name": "UNet2DConditionModel", **UNET})},
    "vae": {"config": ("vae/config.json", {"_class_name": "AutoencoderKL", **VAE})},
    "scheduler": {"config": ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULER})},
}
LAYOUTS = {"vdvae": "openai", "clip_vision": "transformers", "clip_text": "transformers"}


def write_bundle(out: Path, weights: dict[str, dict[str, np.ndarray]], *, name: str = "tiny", source: str) -> Path:
    """Write a bundle of tiny's shape at `out` from each network's weights (our names), stored as float16.

    Returns the manifest's path; the same weights always give the same bytes.
    """
    networks: dict[str, Any] = {}
    for network, texts in TEXTS.items():
        files: dict[str, str] = {}
        for role, (path, content) in texts.items():
            _write(out / path, content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")
            files[role] = path
        for role, path in WEIGHTS[network].items():
            state = _of_role(network, role, weights[network])
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.astype(np.float16) for key, value in state.items()}, out / path)
            files[role] = path
        networks[network] = {"layout": LAYOUTS.get(network, "diffusers"), "licence": LICENCE}
        if network == "vdvae":
            networks[network]["config"] = VDVAE
        networks[network]["files"] = {role: _file(out, path) for role, path in files.items()}
    manifest = {"format": FORMAT, "name": name, "licence": LICENCE, "source": source, "networks": networks}
    _write(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return out / MANIFEST


def _of_role(network: str, role: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if network != "unet":
        return state
    side = role.removesuffix("_weights")
    named = {name: keys.diffusers_unet(name) for name in state}
    return {theirs: state[name] for name, (found, theirs) in named.items() if found == side}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _file(out: Path, path: str) -> dict[str, Any]:
    content = (out / path).read_bytes()
    return {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def tiny_modules() -> dict[str, nn.Module]:
    """The five networks of tiny's shape on the meta device: name -> module."""
    configs = {"vdvae": VDVAE, "clip_vision": CLIP_VISION, "clip_text": CLIP_TEXT, "unet": UNET, "vae": VAE}
    entries: dict[str, NetworkEntry] = {
        name: NetworkEntry(name, LAYOUTS.get(name, "diffusers"), dict[str, FileEntry](), config)
        for name, config in configs.items()
    }
    bundle = Bundle(Manifest(Path(MANIFEST), "tiny", LICENCE, "", entries))
    return {name: bundle.build(name) for name in configs}


def random_weights(seed: int = SEED) -> dict[str, dict[str, np.ndarray]]:
    """Seeded weights of every network: name -> (our parameter name -> float32 array)."""
    return {
        network: {name: _draw(seed, network, name, tuple(p.shape)) for name, p in module.state_dict().items()}
        for network, module in tiny_modules().items()
    }


def _draw(seed: int, network: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One parameter: He-scaled weights, norms at identity, small biases, and last layers whose images are
    mid-range.
    """
    leaf = name.rsplit(".", 1)[-1]
    if name == "decoder.gain" or (len(shape) == 1 and leaf == "weight"):
        return np.ones(shape, np.float32)
    draw = noise.normal(shape, seed, "tiny", network, name)
    if leaf in ("bias", "class_embedding") or "bias_xs" in name or "_embedding.weight" in name:
        values = draw * np.float32(0.3 if leaf != "bias" else 0.05)
        if name.endswith("out_net.out_conv.bias"):
            values[10:].reshape(3, 30)[:, 10:20] -= 3
        return values
    values = draw * np.float32(_gain(network, name) / math.sqrt(math.prod(shape[1:])))
    if name.endswith((".enc.c4.weight", ".prior.c4.weight")):
        zdim = int(VDVAE["zdim"])  # type: ignore[call-overload]
        values[zdim : 2 * zdim] *= np.float32(0.1)
    return values


def _gain(network: str, name: str) -> float:
    if network == "vdvae":
        return 0.3 if ".c4." in name else 0.1 if "out_conv" in name else math.sqrt(2)
    return 0.5 if name == "decoder.conv_out.weight" else 1.0


def main(out: Path) -> None:
    """Write the shipped bundle to `out`."""
    write_bundle(out, random_weights(), source="python -m bdflow.models.make_tiny (seeded random weights)")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bdflow.models.make_tiny OUT")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
