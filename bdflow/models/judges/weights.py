"""The networks that judge reconstructions, and where their published weights lie. Light to import: no torch.

Weights are looked for in a directory of the user's, then in the caches that torch and Hugging Face keep. Nothing is
ever downloaded: what is not there is reported as missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BUNDLE_CLIP = "CLIP (bundle)"
CLIP_REPOSITORY = "openai/clip-vit-large-patch14"
CLIP_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Judge:
    """One network, and what is taken from it.

    Attributes
    ----------
    network : the architecture, of torchvision or `clip`.
    layers : the metric that compares a layer -> the name of that layer's module, and how many features it gives.
    size : pixels of a side, to which pictures are brought.
    filter : of PIL, by which they are: `bilinear` or `bicubic`.
    mean, std : of each colour (0 to 1), subtracted and divided by.
    """

    network: str
    layers: Mapping[str, tuple[str, int]]
    size: int = 224
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    @property
    def file(self) -> str:
        """The published file of its weights; for CLIP a directory."""
        return FILES[self.network]


FILES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "inception_v3": "inception_v3_google-0cc3c7bd.pth",
    "clip": CLIP_REPOSITORY.rpartition("/")[2],
    "efficientnet_b1": "efficientnet_b1_rwightman-bac287d4.pth",
    "swav": "swav_800ep_pretrain.pth.tar",
}
TOKENS = 257 * 1024  # of CLIP ViT-L/14's hidden states
JUDGES: Mapping[str, Judge] = {
    # Brain-Diffuser's, of `eval_extract_features.py`
    "alexnet": Judge(
        "alexnet", {"AlexNet(2)": ("features.4", 192 * 27 * 27), "AlexNet(5)": ("features.11", 256 * 13 * 13)}
    ),
    "inception_v3": Judge("inception_v3", {"Inception": ("avgpool", 2048)}),
    "clip": Judge("clip", {"CLIP": ("visual_projection", 768)}, 224, "bilinear", *OPENAI_CLIP),
    "efficientnet_b1": Judge("efficientnet_b1", {"EffNet-B": ("avgpool", 1280)}),
    "swav": Judge("swav", {"SwAV": ("avgpool", 2048)}),
    # Takagi & Nishimoto's, of `img2feat_decoded.py`: behind the pooling of AlexNet's layers, all networks but CLIP at
    # 299 px, and CLIP as its own processor takes pictures
    "takagi_alexnet": Judge(
        "alexnet",
        {
            "Takagi AlexNet(2)": ("features.5", 192 * 17 * 17),
            "Takagi AlexNet(5)": ("features.12", 256 * 8 * 8),
            "Takagi AlexNet(fc7)": ("classifier.5", 4096),
        },
        299,
    ),
    "takagi_inception_v3": Judge("inception_v3", {"Takagi Inception": ("avgpool", 2048)}, 299),
    "takagi_clip": Judge(
        "clip",
        {
            "Takagi CLIP": ("visual_projection", 768),
            "Takagi CLIP(6)": ("vision_model.encoder.layers.5", TOKENS),
            "Takagi CLIP(12)": ("vision_model.encoder.layers.11", TOKENS),
        },
        224,
        "bicubic",
        *OPENAI_CLIP,
    ),
}
JUDGE_OF: Mapping[str, str] = {metric: name for name, judge in JUDGES.items() for metric in judge.layers}
DISTANCES = frozenset({"EffNet-B", "SwAV"})
AMONG_RECONSTRUCTIONS = frozenset(metric for metric, judge in JUDGE_OF.items() if judge.startswith("takagi_"))
"""Metrics whose protocol fixes what a pair is compared with, whatever is asked for."""


def distractors_of(metric: str, wanted: str) -> str:
    """What the true pair of a metric is compared with: what is wanted, or what its protocol says."""
    return "reconstructions" if metric in AMONG_RECONSTRUCTIONS else wanted


@dataclass(frozen=True)
class Weights:
    """The files of one judge's weights; `missing` says why there are none, in words that name no place."""

    files: tuple[Path, ...] = ()
    missing: str = ""


def find_weights(name: str, folder: Path | None = None, where: str = "`evaluate.weights`") -> Weights:
    """Where the weights of a judge lie: in `folder`, else in torch's or Hugging Face's cache.

    Parameters
    ----------
    name : of `JUDGES`.
    folder : a directory that holds the published files under their own names (for CLIP, a directory
        `clip-vit-large-patch14`); None for the caches alone.
    where : that folder in words, for what is said of weights that are not there.

    Returns
    -------
    Weights: the weights file, for CLIP after its `config.json`; or why the judge cannot be had.
    """
    judge = JUDGES[name]
    if judge.network == "clip":
        for place in _clip_folders(folder, judge.file):
            found = [place / file for file in CLIP_FILES if (place / file).is_file()]
            if found and (place / "config.json").is_file():
                return Weights((place / "config.json", found[0]))
        return Weights(
            missing=f"no weights: found no {judge.file} (config.json with model.safetensors or pytorch_model.bin) in "
            f"{where}, nor {CLIP_REPOSITORY} in the Hugging Face cache"
        )
    for place in (torch_cache(),) if folder is None else (folder, torch_cache()):
        if (place / judge.file).is_file():
            if find_spec("torchvision") is None:
                return Weights(missing="torchvision is not installed; the extra `metrics` brings it")
            return Weights((place / judge.file,))
    return Weights(missing=f"no weights: found no {judge.file} in {where}, nor in torch's cache")


def torch_cache() -> Path:
    """Where torch.hub keeps checkpoints."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub/checkpoints"


def hugging_face_cache() -> Path:
    """Where Hugging Face keeps repositories."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _clip_folders(folder: Path | None, name: str) -> Iterator[Path]:
    if folder is not None:
        yield folder / name
    cached = hugging_face_cache() / ("models--" + CLIP_REPOSITORY.replace("/", "--"))
    main = cached / "refs/main"
    if main.is_file():
        yield cached / "snapshots" / main.read_text(encoding="utf-8").strip()
    yield from sorted((cached / "snapshots").glob("*"))


def layer_width(metric: str) -> int:
    """Length of what the layer that a metric compares gives for a picture."""
    return {name: width for judge in JUDGES.values() for name, (_, width) in judge.layers.items()}[metric]
