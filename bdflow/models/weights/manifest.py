"""The manifest of a bundle: which file is what. Light to import: no torch.

`manifest.json` stands at the root of a bundle:

    {"format": "bdflow-bundle-1", "name": ..., "licence": ..., "source": ...,
     "networks": {"vdvae": {"layout": "openai", "config": {...}, "files": {"weights": {"path": ..., "bytes":
     ...}}}, ...}}

Each network names its layout (whose parameter names its weights carry), its configuration (inline, or a file
in the role `config`) and its files by role, with their sizes and, optionally, their `sha256`. Stable Diffusion's
autoencoder and text encoder may be Versatile Diffusion's and CLIP's, named once: `"sd_vae": {"same_as": "vae"}`,
`"sd_text": {"same_as": "clip_text"}`.

`python -m bdflow.models.weights.manifest PATH` writes one for a directory that holds the published files.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bdflow.errors import InputError, NotAtHand, listed

FORMAT = "bdflow-bundle-1"
MANIFEST = "manifest.json"

ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "vdvae": {"openai": ("weights",)},
    "clip_vision": {"transformers": ("weights", "config", "processor")},
    "clip_text": {"transformers": ("weights", "config", "vocab", "merges")},
    "unet": {"diffusers": ("image_weights", "text_weights"), "original": ("weights",)},
    "vae": {"diffusers": ("weights",), "original": ("weights",)},
    "sd_unet": {"diffusers": ("weights",), "original": ("weights",)},
    "sd_vae": {"diffusers": ("weights",), "original": ("weights",)},
    "sd_text": {"transformers": ("weights", "config", "vocab", "merges"), "original": ("weights", "vocab", "merges")},
    "scheduler": {"diffusers": ()},
}
VERSATILE, STABLE, SHARED = "Versatile Diffusion", "Stable Diffusion", "scheduler"
FAMILIES: dict[str, tuple[str, ...]] = {
    VERSATILE: ("vdvae", "clip_vision", "clip_text", "unet", "vae", SHARED),
    STABLE: ("sd_unet", "sd_vae", "sd_text", SHARED),
}
"""Networks that belong together: a bundle holds at least one family, and each whole."""
SAME = {"sd_vae": "vae", "sd_text": "clip_text"}
"""Networks of one family that may be those of the other, with the same files."""

VDVAE_IMAGENET64: dict[str, Any] = {
    "image_size": 64,
    "enc_blocks": "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
    "dec_blocks": "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
    "zdim": 16,
    "width": 512,
    "bottleneck_multiple": 0.25,
    "no_bias_above": 64,
    "num_mixtures": 10,
    "n_latent_blocks": 31,
}
VERSATILE_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD1_UNET: dict[str, Any] = {**VERSATILE_UNET, "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]}
SD1_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
KL_F8: dict[str, Any] = {
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


@dataclass(frozen=True)
class FileEntry:
    """One file of a network: absolute path, the size it must have, optionally its SHA-256."""

    path: Path
    nbytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class NetworkEntry:
    """One network of a manifest. `same_as`: the network whose layout, files and configuration these are (`SAME`)."""

    name: str
    layout: str
    files: dict[str, FileEntry]
    inline_config: dict[str, Any] | None = None
    licence: str = ""
    same_as: str | None = None

    def config(self) -> dict[str, Any]:
        """Its configuration, from the manifest or from its own file."""
        if self.inline_config is not None:
            return dict(self.inline_config)
        return read_json(self.files["config"].path)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    path: Path
    name: str
    licence: str
    source: str
    networks: dict[str, NetworkEntry] = field(default_factory=dict)

    def network(self, name: str) -> NetworkEntry:
        """The entry of one network; InputError if the bundle has none."""
        if name not in self.networks:
            raise InputError(
                self.path,
                found="the networks " + (", ".join(sorted(self.networks)) or "none"),
                expected=f"one named {name}",
                action=f"add the files of {name} and their entry in the manifest",
            )
        return self.networks[name]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError when it is something else, NotAtHand when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = (
            "no such file" if isinstance(error, FileNotFoundError) else f"a file that cannot be read ({error.strerror})"
        )
        raise NotAtHand(
            path, found=found, expected="a JSON file", action="put it there, or name the right path"
        ) from error
    except ValueError as error:
        raise InputError(
            path,
            found=f"text that is not JSON ({error})",
            expected="a JSON object",
            action="get this file anew from where it came from",
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            path,
            found="JSON of another form",
            expected="a JSON object (`{...}`)",
            action="get this file anew from where it came from",
        )
    return content


def read_manifest(root: Path) -> Manifest:
    """The manifest of the bundle at `root`. Raises InputError that lists everything wrong in it at once."""
    path = root / MANIFEST
    if not root.is_dir():
        raise NotAtHand(
            root,
            found="no such directory",
            expected="a bundle",
            action="give `tiny` or a bundle's directory.",
        )
    if not path.is_file():
        raise NotAtHand(
            root,
            found="no manifest.json",
            expected="a bundle: the weights and a manifest that names them",
            action=f"run `python -m bdflow.models.weights.manifest {root}` once the published files are in it.",
        )
    content = read_json(path)
    problems: list[str] = []
    if content.get("format") != FORMAT:
        problems.append(f"format {content.get('format', '(none)')}, expected {FORMAT}")
    networks = {}
    entries = content.get("networks")
    for name, entry in (entries if isinstance(entries, dict) else {}).items():
        same_as = entry.get("same_as") if isinstance(entry, dict) else None
        if same_as is not None:
            entry = _resolved(name, entry, content["networks"], problems)
        network = None if entry is None else _network(root, name, entry, problems)
        if network is not None:
            networks[name] = replace(network, same_as=same_as)
    problems += [f"network {name} is missing" for name in _lacking(set(entries or {}))]
    if problems:
        raise InputError(
            path,
            found=listed(problems, joint="; "),
            expected=f"a manifest of format {FORMAT}",
            action=f"correct it, or write it anew with `python -m bdflow.models.weights.manifest {root}`",
        )
    return Manifest(path, str(content["name"]), content.get("licence", ""), content.get("source", ""), networks)


def _lacking(there: set[str]) -> list[str]:
    """Networks without which a family is not whole; of the first family where there is none."""
    begun = [members for members in FAMILIES.values() if there & set(members) - {SHARED}]
    return [name for members in begun or [FAMILIES[VERSATILE]] for name in members if name not in there]


def _resolved(name: str, entry: dict[str, Any], listed: dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
    """The entry of a network that is `same_as` another one: that one's, under its own licence."""
    of, before = entry["same_as"], len(problems)
    if SAME.get(name) != of:
        allowed = f"only {SAME[name]}" if name in SAME else "no network"
        problems.append(f"{name}: same_as {of!r}, where {allowed} may stand")
    problems += [f"{name}: {key} beside same_as" for key in entry if key not in ("same_as", "licence")]
    if len(problems) == before and not isinstance(listed.get(of), dict):
        problems.append(f"{name}: same_as {of}, which is missing")
    if len(problems) > before:
        return None
    return {**listed[of], **entry}


def _network(root: Path, name: str, entry: object, problems: list[str]) -> NetworkEntry | None:
    if name not in ROLES or not isinstance(entry, dict):
        problems.append(f"network {name!r} is not one of {sorted(ROLES)}")
        return None
    layout, files = entry.get("layout"), entry.get("files", {})
    if layout not in ROLES[name]:
        problems.append(f"{name}: layout {layout!r} is not one of {sorted(ROLES[name])}")
        return None
    before = len(problems)
    roles = ROLES[name][layout] + (() if "config" in entry or "config" in ROLES[name][layout] else ("config",))
    problems += [f"{name}: no file in the role {role}" for role in roles if role not in files]
    problems += [f"{name}: unknown role {role}" for role in files if role not in roles]
    paths = {}
    for role, file in files.items():
        relative = file.get("path") if isinstance(file, dict) else None
        if not isinstance(relative, str) or not isinstance(file.get("bytes"), int):
            problems.append(f"{name}: {role} needs `path` and `bytes`")
        elif Path(relative).is_absolute() or ".." in Path(relative).parts:
            problems.append(f"{name}: {role} lies outside the bundle: {relative}")
        else:
            paths[role] = FileEntry(root / relative, file["bytes"], file.get("sha256"))
    if len(problems) > before:
        return None
    return NetworkEntry(name, layout, paths, entry.get("config"), entry.get("licence", ""))


MIT, OPENRAIL = "MIT", "CreativeML OpenRAIL-M"
VD_LICENCE = "MIT (VDVAE: OpenAI; CLIP: OpenAI; Versatile Diffusion: SHI Labs)"
SD_LICENCE = "CreativeML OpenRAIL-M (Stable Diffusion: CompVis)"
SD_SOURCE = "CompVis/stable-diffusion-v1-4"
STEM, CHECKPOINT, VDVAE_FILE = "diffusion_pytorch_model", "sd-v1-4.ckpt", "imagenet64-iter-1600000-model-ema.th"


def write_manifest(root: Path, name: str | None = None) -> Path:
    """Write the manifest of a directory that holds the published files, and return its path.

    Recognised, anywhere below `root`, for Versatile Diffusion: the diffusers directory
    `shi-labs/versatile-diffusion`, or the authors' files `vd-four-flow-v1-0-fp16-deprecated.pth` and `kl-f8.pth`
    with a copy of `openai/clip-vit-large-patch14`; either way with OpenAI's `imagenet64-iter-1600000-model-ema.th`. For
    Stable Diffusion: `sd-v1-4.ckpt` with CLIP's `vocab.json` and `merges.txt`, or a diffusers directory of version 1
    (`unet`, `vae`, `text_encoder`, `tokenizer`). Raises InputError that lists all that was not found.
    """
    missing: list[str] = []

    def find(*names: str) -> Path | None:
        for wanted in names:
            hits = sorted(root.rglob(wanted))
            if hits:
                return hits[0]
        missing.append(" or ".join(names))
        return None

    def weights(folder: str, *stems: str) -> Path | None:
        suffixes = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
        return find(*(f"{folder}{stem}{suffix}" for stem in stems for suffix in suffixes))

    def network(
        layout: str, licence: str, inline: dict[str, object] | None = None, **files: Path | None
    ) -> dict[str, object]:
        entry: dict[str, object] = {"layout": layout, "licence": licence}
        if inline is not None:
            entry["config"] = inline
        entry["files"] = {
            role: {"path": path.relative_to(root).as_posix(), "bytes": path.stat().st_size}
            for role, path in files.items()
            if path is not None
        }
        return entry

    def clip(folder: str) -> tuple[Path | None, Path | None]:
        return weights(folder, "model", "pytorch_model"), find(f"{folder}config.json")

    def versatile() -> dict[str, object]:
        vdvae = find(VDVAE_FILE)
        if any(root.rglob("image_unet")):
            vision, vision_config = clip("image_encoder/")
            text, text_config = clip("text_encoder/")
            processor = find("image_feature_extractor/preprocessor_config.json")
            vocab, merges = find("tokenizer/vocab.json"), find("tokenizer/merges.txt")
            unet = network(
                "diffusers", MIT, config=find("image_unet/config.json"), image_weights=weights("image_unet/", STEM),
                text_weights=weights("text_unet/", STEM),
            )  # fmt: skip
            vae = network("diffusers", MIT, config=find("vae/config.json"), weights=weights("vae/", STEM))
            scheduler = network("diffusers", MIT, config=find("scheduler/scheduler_config.json"))
        else:
            vision, vision_config = text, text_config = clip("")
            processor, vocab, merges = find("preprocessor_config.json"), find("vocab.json"), find("merges.txt")
            unet = network("original", MIT, VERSATILE_UNET, weights=find("vd-four-flow-v1-0-fp16-deprecated.pth"))
            vae = network("original", MIT, KL_F8, weights=find("kl-f8.pth"))
            scheduler = network("diffusers", MIT, SCHEDULER)
        return {
            "vdvae": network("openai", MIT, VDVAE_IMAGENET64, weights=vdvae),
            "clip_vision": network("transformers", MIT, config=vision_config, weights=vision, processor=processor),
            "clip_text": network("transformers", MIT, config=text_config, weights=text, vocab=vocab, merges=merges),
            "unet": unet,
            "vae": vae,
            SHARED: scheduler,
        }

    def stable() -> dict[str, object]:
        if any(root.rglob(CHECKPOINT)):
            file = find(CHECKPOINT)
            words = {"vocab": find("vocab.json"), "merges": find("merges.txt")}
            return {
                "sd_unet": network("original", OPENRAIL, SD1_UNET, weights=file),
                "sd_vae": network("original", OPENRAIL, KL_F8, weights=file),
                "sd_text": network("original", OPENRAIL, SD1_TEXT, weights=file, **words),
                SHARED: network("diffusers", OPENRAIL, SCHEDULER),
            }
        words = {"vocab": find("tokenizer/vocab.json"), "merges": find("tokenizer/merges.txt")}
        text, text_config = clip("text_encoder/")
        unet = {"config": find("unet/config.json"), "weights": weights("unet/", STEM)}
        vae = {"config": find("vae/config.json"), "weights": weights("vae/", STEM)}
        return {
            "sd_unet": network("diffusers", OPENRAIL, None, **unet),
            "sd_vae": network("diffusers", OPENRAIL, None, **vae),
            "sd_text": network("transformers", OPENRAIL, None, config=text_config, weights=text, **words),
            SHARED: network("diffusers", OPENRAIL, SCHEDULER),
        }

    is_stable = any(root.rglob(CHECKPOINT)) or any(root.rglob("unet/config.json"))
    is_versatile = not is_stable or any(root.rglob("*versatile*")) or any(root.rglob(VDVAE_FILE))
    manifest = {
        "format": FORMAT,
        "name": name or ("stable-diffusion" if is_stable and not is_versatile else "versatile-diffusion"),
        "licence": "; ".join([VD_LICENCE] * is_versatile + [SD_LICENCE] * is_stable),
        "source": ", ".join(["openai/vdvae, shi-labs/versatile-diffusion"] * is_versatile + [SD_SOURCE] * is_stable),
        "networks": {**(stable() if is_stable else {}), **(versatile() if is_versatile else {})},
    }
    if missing:
        raise InputError(
            root,
            found=f"nothing named {listed(missing, 40, joint='; ')}",
            expected="the published files of VDVAE and Versatile Diffusion, or of Stable Diffusion 1",
            action="download what is missing into this directory (docs/weights.md says from where) and run this again",
        )
    path = root / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m bdflow.models.weights.manifest DIRECTORY")
    try:
        print(write_manifest(Path(sys.argv[1])))
    except InputError as error:
        sys.exit(str(error))
