"""Bundles: directories of model weights, opened without loading anything.

A bundle is a directory with a `manifest.json` (see `bdflow.models.weights.manifest`). `tiny` ships inside the
package. Its networks are built on the meta device and filled from memory-mapped files, straight into the
wanted dtype and device.
"""

import gc
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bdflow.config import SpeedSettings
from bdflow.errors import InputError, NotAtHand
from bdflow.models.config import VDVAEConfig
from bdflow.models.weights.manifest import (
    FAMILIES,
    STABLE,
    VERSATILE,
    FileEntry,
    Manifest,
    NetworkEntry,
    read_json,
    read_manifest,
)
from bdflow.models.weights.networks import (
    Part,
    build_module,
    files_of,
    number_positions,
    outlines,
    parts_of,
    tower_config,
    vdvae_config,
)
from bdflow.stores.inputs import identity

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from bdflow.models.clip import ClipText, ClipVision
    from bdflow.models.stable_diffusion.text import StableText
    from bdflow.models.stable_diffusion.unet import StableDiffusion
    from bdflow.models.vdvae import VDVAE
    from bdflow.models.versatile.unet import VersatileDiffusion

TINY = Path(__file__).parents[1] / "tiny"
SCHEDULER_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


def open_bundle(name_or_path: str | Path) -> "Bundle":
    """Open `tiny`, or the bundle in a directory. Reads its manifest only.

    Raises InputError when there is none or it is not a manifest; the weights are looked at when a network is
    loaded (or all at once by `check_bundle`).
    """
    root = TINY if str(name_or_path) == "tiny" else Path(name_or_path).expanduser()
    return Bundle(read_manifest(root))


class Bundle:
    """The networks of one bundle, and what is known of them without loading: spaces, layers, sizes,
    identity.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.name, self.path = manifest.name, manifest.path.parent

    @cached_property
    def fingerprint(self) -> str:
        """Content identity (16 hex digits): the manifest, and every file it names, whole."""
        digest = hashlib.blake2b(self.manifest.path.read_bytes(), digest_size=8)
        for _, entry in sorted(self.manifest.networks.items()):
            for role, file in sorted(entry.files.items()):
                _require(file.path)
                digest.update(f"{entry.name}/{role}/{_identity(file.path)}\n".encode())
        return digest.hexdigest()

    def digests(self, *networks: str) -> dict[str, str]:
        """Content identity (16 hex digits) of each of these networks: layout, configuration, and its files, whole. What
        else the bundle holds, names of files and licences do not count. Raises NotAtHand for a file that is absent.
        """
        found = {}
        for name in networks:
            entry = self.manifest.network(name)
            about = json.dumps([entry.layout, entry.inline_config], sort_keys=True)
            digest = hashlib.blake2b(about.encode(), digest_size=8)
            for role, file in sorted(entry.files.items()):
                _require(file.path)
                digest.update(f"{role}/{_identity(file.path)}\n".encode())
            found[name] = digest.hexdigest()
        return found

    @cached_property
    def vdvae_config(self) -> VDVAEConfig:
        """The VDVAE's shape; InputError for settings it does not have."""
        return vdvae_config(self.manifest.network("vdvae"))

    @cached_property
    def spaces(self) -> dict[str, tuple[int, ...]]:
        """Target space -> shape of one item's latent, of the families the bundle holds: vdvae (D,), clip_vision (T, F),
        clip_text (T, F); sd_vae (D,), sd_text (T, F).
        """
        found: dict[str, tuple[int, ...]] = {}
        if self.holds(VERSATILE):
            vision = tower_config(self.manifest.network("clip_vision"))
            text = tower_config(self.manifest.network("clip_text"))
            tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
            found["vdvae"] = (sum(c * h * w for c, h, w in self.layers),)
            found["clip_vision"] = (tokens, vision["projection_dim"])
            found["clip_text"] = (text["max_position_embeddings"], text["projection_dim"])
        if self.holds(STABLE):
            text = tower_config(self.manifest.network("sd_text"))
            found["sd_vae"] = (math.prod(self.z_shape),)
            found["sd_text"] = (text["max_position_embeddings"], text["hidden_size"])
        return found

    def holds(self, family: str) -> bool:
        """Whether the bundle holds a family of networks (`bdflow.models.weights.manifest.FAMILIES`)."""
        return all(name in self.manifest.networks for name in FAMILIES[family])

    def shape_of(self, space: str) -> tuple[int, ...]:
        """Shape of one item's latent. Raises InputError where the bundle does not hold the space's networks."""
        if space not in self.spaces:
            raise InputError(
                f"bundle {self.name}, {self.path}",
                found=f"networks of the spaces {', '.join(self.spaces)}",
                expected=f"those of {space}",
                action="name a bundle that holds them in `networks.bundle` (docs/weights.md).",
            )
        return self.spaces[space]

    @cached_property
    def layers(self) -> tuple[tuple[int, int, int], ...]:
        """(c, h, w) of each regressed VDVAE block, in the order of the flattened vdvae space."""
        return self.vdvae_config.latent_shapes

    @cached_property
    def z_size(self) -> int:
        """Edge in pixels of the picture that z is of: 5/8 of `stable_size` (320 for the real one)."""
        return self.stable_size * 5 // 8

    @cached_property
    def z_shape(self) -> tuple[int, int, int]:
        """(c, g, g) of z."""
        vae = self.manifest.network("sd_vae").config()
        edge = self.z_size // 2 ** (len(vae["block_out_channels"]) - 1)
        return (int(vae["latent_channels"]), edge, edge)

    @cached_property
    def stable_size(self) -> int:
        """Edge of a picture of Stable Diffusion in pixels (512 for the real one)."""
        vae = self.manifest.network("sd_vae").config()
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return int(self.manifest.network("sd_unet").config()["sample_size"]) * factor

    @cached_property
    def guess_size(self) -> int:
        """Edge of the VDVAE's image in pixels (64 for the real one)."""
        return self.vdvae_config.image_size

    @cached_property
    def image_size(self) -> int:
        """Edge of a reconstruction in pixels (512 for the real one)."""
        vae = self.manifest.network("vae").config()
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return int(self.manifest.network("unet").config()["sample_size"]) * factor

    def vdvae(self, device: str = "cpu", dtype: str = "float32") -> "VDVAE":
        """The VDVAE. `dtype` here and below: float32, float16 or bfloat16. Raises InputError for unusable
        files.
        """
        return self.load("vdvae", device, dtype)  # type: ignore[return-value]

    def clip_vision(self, device: str = "cpu", dtype: str = "float32") -> "ClipVision":
        """CLIP's vision tower with its image processing."""
        from bdflow.models.clip import ClipProcessing, ClipVision

        processor = self.manifest.network("clip_vision").files["processor"].path
        processing = ClipProcessing.from_config(read_json(processor), processor)
        return ClipVision(self.load("clip_vision", device, dtype), processing)

    def clip_text(self, device: str = "cpu", dtype: str = "float32") -> "ClipText":
        """CLIP's text tower with its tokenizer."""
        from bdflow.models.clip import ClipText

        return ClipText(self.load("clip_text", device, dtype), self._tokenizer("clip_text"))

    def _tokenizer(self, network: str) -> "PreTrainedTokenizerBase":
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

        folder = self.manifest.network(network).files["vocab"].path.parent
        _require(folder / "vocab.json")
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)

    def sd_text(self, device: str = "cpu", dtype: str = "float32") -> "StableText":
        """Stable Diffusion's text encoder with its tokenizer."""
        from bdflow.models.stable_diffusion.text import StableText

        return StableText(self.load("sd_text", device, dtype), self._tokenizer("sd_text"))

    def stable(
        self, device: str = "cpu", dtype: str = "float32", speed: SpeedSettings | None = None
    ) -> "StableDiffusion":
        """Stable Diffusion with the embedding of the empty string (its text encoder is loaded for one pass, and freed);
        `speed` says how its networks are called.
        """
        from bdflow.models.stable_diffusion.unet import StableDiffusion

        nothing = {"text": self.sd_text(device, dtype).unconditional()}
        unet, vae = self.load("sd_unet", device, dtype), self.load("sd_vae", device, dtype)
        return StableDiffusion(unet, vae, self._alphas(), nothing, speed)  # type: ignore[arg-type]

    def _alphas(self) -> "Tensor":
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        config = self.manifest.network("scheduler").config()
        table: Tensor = DDIMScheduler(**{key: config[key] for key in SCHEDULER_KEYS}).alphas_cumprod
        return table

    def versatile(
        self, device: str = "cpu", dtype: str = "float32", speed: SpeedSettings | None = None
    ) -> "VersatileDiffusion":
        """Versatile Diffusion with both unconditional embeddings (each CLIP tower is loaded for one pass,
        and freed); `speed` says how its networks are called.
        """
        from bdflow.models.versatile.unet import VersatileDiffusion

        vision = self.clip_vision(device, dtype).unconditional()
        text = self.clip_text(device, dtype).unconditional()
        unet, vae = self.load("unet", device, dtype), self.load("vae", device, dtype)
        return VersatileDiffusion(unet, vae, self._alphas(), vision, text, speed)  # type: ignore[arg-type]

    def build(self, network: str) -> "nn.Module":
        """The network's module on the meta device: names and shapes, no weights."""
        entry = self.manifest.network(network)
        with outlines():
            return build_module(entry)

    def parts(self, network: str, module: "nn.Module") -> list[Part]:
        """(checkpoint, our name -> its name, its names to ignore) of each weights file of a network."""
        return parts_of(self.manifest.network(network), module)

    def load(self, network: str, device: str = "cpu", dtype: str = "float32") -> "nn.Module":
        """The module of one network of the manifest with its weights."""
        import torch

        from bdflow.models.weights.checkpoint import DTYPES, filled, fit_into

        if dtype not in DTYPES:
            raise InputError(
                "dtype", found=repr(dtype), expected="one of " + ", ".join(sorted(DTYPES)), action="choose one of them"
            )
        entry = self.manifest.network(network)
        with collector_paused():
            files = files_of(entry)
            # On a GPU, room for a file that turns out to be the wrong one could be more than there is.
            early = torch.device(device).type == "cpu"
            begun = [c.plan(c.wanted(ignored), device, DTYPES[dtype]) for c, ignored in files] if early else []
            with filled(begun):
                module = self.build(network)
                parts = parts_of(entry, module, files)
                readings = fit_into(module, parts, device=device, dtype=dtype, begun=begun)
            with filled(readings):
                pass
        number_positions(module, device)
        return module


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without Python's garbage collector: a module's thousands of new objects set it off, and each time it walks
    through all that torch, diffusers and transformers have imported (0.3 s).
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@dataclass(frozen=True)
class BundleReport:
    """All that is wrong with a bundle, one line each; nothing wrong, nothing in `problems`."""

    path: Path
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class NetworkDescription:
    """One network of a bundle: its weights files with their bytes, and what of them bdflow uses.

    `parameters` counts the elements used, `dtypes` names the types they are stored in.
    """

    name: str
    layout: str
    files: tuple[tuple[str, int], ...]
    parameters: int
    dtypes: tuple[str, ...]
    licence: str


@dataclass(frozen=True)
class BundleDescription:
    """What `bdflow bundle info` shows."""

    name: str
    path: Path
    fingerprint: str
    licence: str
    source: str
    spaces: dict[str, tuple[int, ...]]
    guess_size: int | None
    image_size: int
    networks: tuple[NetworkDescription, ...]


def check_bundle(name_or_path: str | Path) -> BundleReport:
    """Every missing, extra or misshapen tensor and every wrong file of a bundle, at once; reads no weights,
    except to compare the SHA-256 of files whose manifest gives one. Never raises InputError: what it says
    becomes a problem.
    """
    try:
        bundle = open_bundle(name_or_path)
    except InputError as error:
        return BundleReport(Path(name_or_path), (str(error),))
    problems: list[str] = []
    for entry in bundle.manifest.networks.values():
        wrong = [line for file in entry.files.values() if (line := _file_problem(file)) is not None]
        problems += wrong
        if not wrong:
            problems += _tensor_problems(bundle, entry)
    return BundleReport(bundle.path, tuple(dict.fromkeys(problems)))  # of a file that two networks share, once


def describe_bundle(name_or_path: str | Path) -> BundleDescription:
    """Files, sizes, parameters, dtypes and licence of every network, without loading any. Raises InputError
    for files that cannot be opened."""
    bundle = open_bundle(name_or_path)
    networks = []
    for entry in bundle.manifest.networks.values():
        parameters, dtypes = 0, set()
        if entry.name != "scheduler":
            for checkpoint, sources, _ in bundle.parts(entry.name, bundle.build(entry.name)):
                used = [checkpoint.tensors[name] for name in set(sources.values()) if name in checkpoint.tensors]
                parameters += sum(math.prod(info.shape) for info in used)
                dtypes |= {info.dtype for info in used}
        files = tuple((file.path.relative_to(bundle.path).as_posix(), file.nbytes) for file in entry.files.values())
        licence = entry.licence or bundle.manifest.licence
        networks.append(NetworkDescription(entry.name, entry.layout, files, parameters, tuple(sorted(dtypes)), licence))
    return BundleDescription(
        bundle.name, bundle.path, bundle.fingerprint, bundle.manifest.licence, bundle.manifest.source,
        bundle.spaces, bundle.guess_size if bundle.holds(VERSATILE) else None,
        bundle.image_size if bundle.holds(VERSATILE) else bundle.stable_size, tuple(networks),
    )  # fmt: skip


def _file_problem(file: FileEntry) -> str | None:
    if not file.path.is_file():
        return f"{file.path}: missing file"
    size = file.path.stat().st_size
    if size != file.nbytes:
        return f"{file.path}: found {size:,} bytes, the manifest says {file.nbytes:,}"
    if file.sha256 is not None:
        with file.path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            return f"{file.path}: found SHA-256 {found[:12]}..., the manifest says {file.sha256[:12]}..."
    return None


def _tensor_problems(bundle: Bundle, entry: NetworkEntry) -> list[str]:
    from bdflow.models.weights.checkpoint import differences

    try:
        if entry.name == "scheduler":
            missing = [key for key in SCHEDULER_KEYS if key not in entry.config()]
            return [f"scheduler: its configuration lacks {key}" for key in missing]
        module = bundle.build(entry.name)
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        return [
            line
            for checkpoint, sources, ignored in bundle.parts(entry.name, module)
            for line in differences(checkpoint.path, sources, expected, checkpoint.tensors, ignored)
        ]
    except InputError as error:
        return [str(error)]
    except (KeyError, TypeError, ValueError) as error:
        return [f"{entry.name}: its configuration builds no network ({error!r})"]


def _identity(path: Path) -> str:
    try:
        return identity(path)
    except OSError as error:
        raise NotAtHand(
            path,
            found=f"a file that cannot be read ({error.strerror})",
            expected="a file that the bundle's manifest names",
            action="give this user the right to read it.",
        ) from error


def _require(path: Path) -> None:
    if not path.is_file():
        raise NotAtHand(
            path,
            found="no such file",
            expected="a file that the bundle's manifest names",
            action="check the bundle to see all that is missing, and put the files there.",
            remedy="check-bundle",
        )
