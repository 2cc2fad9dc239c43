"""The shape of the `tiny` bundle: the real bundle's classes, code paths and directory layout, small enough to
ship; its untrained networks; and how it is written. `bdflow.training.train` trains it.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from bdflow.models.vdvae import VDVAE as VDVAE_CLASS
from bdflow.models.weights import names
from bdflow.models.weights.manifest import FORMAT, MANIFEST, SAME, SCHEDULER, FileEntry, NetworkEntry
from bdflow.models.weights.networks import build_module
from bdflow.training.words import WORDS, learn_merges, vocabulary

SEED = 20231109
LICENCE = "Apache-2.0"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MERGES = learn_merges(WORDS)
VOCABULARY = vocabulary(MERGES)

VDVAE = {
    "image_size": 32,
    "enc_blocks": "32d2,16x2,16d2,8x2,8d2,4x2,4d4,1x1",
    "dec_blocks": "1x1,4m1,4x2,8m4,8x2,16m8,16x1,32m16",
    "zdim": 4,
    "width": 48,
    "bottleneck_multiple": 0.5,
    "no_bias_above": 32,
    "num_mixtures": 5,
    "n_latent_blocks": 8,
}
CLIP_VISION = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "projection_dim": 48,
    "hidden_act": "quick_gelu",
}
CLIP_TEXT = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
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
    "block_out_channels": [48, 64],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
SD_UNET = {**UNET, "cross_attention_dim": CLIP_TEXT["hidden_size"]}
VAE = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
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
    "sd_unet": {"weights": "unet/diffusion_pytorch_model.safetensors"},
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
    "sd_unet": {"config": ("unet/config.json", {"_class_name": "UNet2DConditionModel", **SD_UNET})},
    "scheduler": {"config": ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULER})},
}
LAYOUTS = {"vdvae": "openai", "clip_vision": "transformers", "clip_text": "transformers"}


def write_bundle(
    out: Path,
    weights: dict[str, dict[str, np.ndarray]],
    *,
    name: str = "tiny",
    source: str,
    scaling_factor: float = float(VAE["scaling_factor"]),  # type: ignore[arg-type]
) -> Path:
    """Write a bundle of tiny's shape at `out` from each network's weights (our names), stored as float16.

    `scaling_factor` is the autoencoder's: its latents times this have a standard deviation of 1. Stable Diffusion's
    autoencoder and text encoder are those of the others. Returns the manifest's path; the same weights always give the
    same bytes.
    """
    networks: dict[str, Any] = {}
    for network, texts in TEXTS.items():
        files: dict[str, str] = {}
        for role, (path, content) in texts.items():
            if network == "vae":
                content = {**content, "scaling_factor": scaling_factor}
            _write(out / path, content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")
            files[role] = path
        for role, path in WEIGHTS[network].items():
            state = _of_role(network, role, weights[network])
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.astype(np.float16, order="C") for key, value in state.items()}, out / path)
            files[role] = path
        networks[network] = {"layout": LAYOUTS.get(network, "diffusers"), "licence": LICENCE}
        if network == "vdvae":
            networks[network]["config"] = VDVAE
        networks[network]["files"] = {role: _file(out, path) for role, path in files.items()}
    networks |= {network: {"same_as": of, "licence": LICENCE} for network, of in SAME.items()}
    manifest = {"format": FORMAT, "name": name, "licence": LICENCE, "source": source, "networks": networks}
    _write(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return out / MANIFEST


def _of_role(network: str, role: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if network == "sd_unet":
        return {names.diffusers_text_unet(name): value for name, value in state.items()}
    if network != "unet":
        return state
    side = role.removesuffix("_weights")
    named = {name: names.diffusers_unet(name) for name in state}
    return {theirs: state[name] for name, (found, theirs) in named.items() if found == side}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _file(out: Path, path: str) -> dict[str, object]:
    content = (out / path).read_bytes()
    return {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def untrained(network: str, seed: int = SEED) -> nn.Module:
    """A network of tiny's shape with the weights that training starts from; the same for the same seed.

    The libraries' initialisation; the VDVAE's as in Child (2021), with quiet residual and stochastic branches; an
    autoencoder that starts with next to no noise; cross-attention that makes up for the small scale of normalised
    embeddings.
    """
    configs = {"vdvae": VDVAE, "clip_vision": CLIP_VISION, "clip_text": CLIP_TEXT, "unet": UNET, "vae": VAE}
    configs["sd_unet"] = SD_UNET
    entry = NetworkEntry(network, LAYOUTS.get(network, "diffusers"), dict[str, FileEntry](), configs[network])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_module(entry)
        with torch.no_grad():
            if isinstance(module, VDVAE_CLASS):
                _quieten(module)
            if network == "vae":
                channels = int(VAE["latent_channels"])  # type: ignore[call-overload]
                module.quant_conv.bias[channels:] -= 6  # type: ignore[index, operator, union-attr]
            if network == "unet":
                for name, weight in module.named_parameters():
                    if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                        weight.mul_(math.sqrt(weight.shape[1]))
    return module.train()


def _quieten(vdvae: VDVAE_CLASS) -> None:
    encoder, decoder = vdvae.encoder.enc_blocks, vdvae.decoder.blocks
    for block in encoder:
        block.c4.weight.mul_(1 / math.sqrt(len(encoder)))  # type: ignore[union-attr, operator]
    for layer in decoder:
        layer.prior.c4.weight.zero_()
        layer.prior.c4.bias.zero_()  # type: ignore[union-attr]
        for quiet in (layer.z_proj, layer.resnet.c4):
            quiet.weight.mul_(1 / math.sqrt(len(decoder)))
