"""From a manifest's entry to a network: its configuration, its module, and which file holds which parameter."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bdflow.errors import InputError
from bdflow.models.config import VDVAEConfig
from bdflow.models.weights.manifest import NetworkEntry
from bdflow.models.weights.names import FIRST_STAGE, TEXT_STAGE, UNET_PREFIX

if TYPE_CHECKING:
    from torch import nn

    from bdflow.models.weights.checkpoint import Checkpoint

SD_PREFIXES = {"sd_unet": UNET_PREFIX, "sd_vae": FIRST_STAGE, "sd_text": TEXT_STAGE}
NOT_TEXT = ("text_projection.", "vision_model.", "visual_", "logit_scale")
"""What CLIP's files may hold beside the text encoder that Stable Diffusion takes."""
Part = tuple["Checkpoint", dict[str, str], Callable[[str], bool]]


def vdvae_config(entry: NetworkEntry) -> VDVAEConfig:
    """The VDVAE's shape; InputError for settings it does not have."""
    config = entry.config()
    known = {field.name for field in fields(VDVAEConfig)}
    if not known.issuperset(config):
        raise InputError(
            "vdvae config",
            found="unknown settings " + ", ".join(sorted(set(config) - known)),
            expected="settings among " + ", ".join(sorted(known)),
            action="correct the entry of this network in the bundle's manifest.json",
        )
    return VDVAEConfig(**config)


def tower_config(entry: NetworkEntry) -> dict[str, Any]:
    """The configuration of one CLIP tower, from its own file or from that of a whole CLIP model."""
    config = entry.config()
    inner = config.get("vision_config" if entry.name == "clip_vision" else "text_config")
    if inner is not None:
        config = {**inner, "projection_dim": config["projection_dim"]}
    return {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype", "dtype")}


@contextmanager
def outlines() -> Iterator[None]:
    """Modules built in this context have names and shapes only: they lie on the meta device, and the functions of
    `torch.nn.init` do nothing (they make up half of the time that building takes).
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class NoFirstValues(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"] if "tensor" in kwargs else args[0]
            return func(*args, **kwargs)

    with torch.device("meta"), NoFirstValues():
        yield


def build_module(entry: NetworkEntry) -> "nn.Module":
    """A network's module; call it under `outlines` to get names and shapes only."""
    if entry.name == "vdvae":
        from bdflow.models.vdvae import VDVAE

        return VDVAE(vdvae_config(entry))
    if entry.name == "clip_vision":
        from transformers.models.clip.configuration_clip import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(CLIPVisionConfig(**tower_config(entry)))
    if entry.name == "clip_text":
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

        return CLIPTextModelWithProjection(CLIPTextConfig(**tower_config(entry)))
    if entry.name == "sd_text":
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModel

        return CLIPTextModel(CLIPTextConfig(**tower_config(entry)))
    if entry.name == "sd_unet":
        from bdflow.models.stable_diffusion.unet import build_text_unet

        return build_text_unet(entry.config())
    if entry.name == "unet":
        from bdflow.models.versatile.unet import build_dual_unet

        return build_dual_unet(entry.config())
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL.from_config({k: v for k, v in entry.config().items() if not k.startswith("_")})


def number_positions(module: "nn.Module", device: str) -> None:
    """Fill the buffers that no file holds: the numbers of CLIP's tokens or patches."""
    import torch

    for name, buffer in list(module.named_buffers()):
        if name.endswith("position_ids"):
            owner, _, leaf = name.rpartition(".")
            ids = torch.arange(buffer.shape[-1], device=device)[None]
            module.get_submodule(owner).register_buffer(leaf, ids, persistent=False)


def files_of(entry: NetworkEntry) -> list[tuple["Checkpoint", Callable[[str], bool]]]:
    """A network's weights files, opened: (checkpoint, its names to ignore) a file. Needs no module."""
    from bdflow.models.weights import names
    from bdflow.models.weights.checkpoint import open_checkpoint

    if entry.name == "unet" and entry.layout == "diffusers":
        return [
            (open_checkpoint(entry.files["image_weights"].path), _nothing),
            (open_checkpoint(entry.files["text_weights"].path), names.unused_in_text_unet),
        ]
    checkpoint = open_checkpoint(entry.files["weights"].path)
    if entry.name == "unet":
        return [(checkpoint, _bound(names.unused_in_original_unet, names.UNET_PREFIX))]
    if entry.name in SD_PREFIXES and entry.layout == "original" and entry.same_as is None:
        return [(checkpoint, _all_but(SD_PREFIXES[entry.name]))]
    if entry.name == "sd_text":
        return [(checkpoint, _clip_rest(NOT_TEXT))]
    if entry.name in ("vae", "sd_vae") and entry.layout == "original":
        return [(checkpoint, _is_loss)]
    if entry.name in ("clip_vision", "clip_text"):
        other = ("text_model.", "text_projection.") if entry.name == "clip_vision" else ("vision_model.", "visual_")
        whole = any(name == "logit_scale" for name in checkpoint.tensors)
        return [(checkpoint, _clip_rest((*other, "logit_scale") if whole else ()))]
    return [(checkpoint, _nothing)]


def parts_of(
    entry: NetworkEntry,
    module: "nn.Module",
    files: Sequence[tuple["Checkpoint", Callable[[str], bool]]] | None = None,
) -> list[Part]:
    """How a network's files map onto its module: (checkpoint, our name -> its name, its names to ignore) a file.
    `files` are those that `files_of` has opened already.
    """
    from bdflow.models.weights import names

    files = files_of(entry) if files is None else files
    own_names = list(module.state_dict())
    sources = [{name: name for name in own_names}]
    if entry.name == "unet" and entry.layout == "original":
        config = entry.config()
        levels, depth = len(config["block_out_channels"]), config["layers_per_block"]
        sources = [names.original_unet_sources(own_names, levels, depth, names.UNET_PREFIX)]
    elif entry.name == "unet":
        sources = [{}, {}]
        for name in own_names:
            side, theirs = names.diffusers_unet(name)
            sources[side == "text"][name] = theirs
    elif entry.name == "sd_unet" and entry.layout == "original":
        config = entry.config()
        levels, depth = len(config["block_out_channels"]), config["layers_per_block"]
        sources = [names.original_text_unet_sources(own_names, levels, depth, names.UNET_PREFIX)]
    elif entry.name == "sd_unet":
        sources = [{name: names.diffusers_text_unet(name) for name in own_names}]
    elif entry.name == "sd_text" and entry.layout == "original":
        sources = [{name: names.original_text_encoder(name) for name in own_names}]
    elif entry.name == "sd_text":
        before = "text_model." if any(name.startswith("text_model.") for name in files[0][0].tensors) else ""
        sources = [{name: before + name.removeprefix("text_model.") for name in own_names}]
    elif entry.name in ("vae", "sd_vae") and entry.layout == "original":
        levels = len(entry.config()["block_out_channels"])
        before = names.FIRST_STAGE if entry.name == "sd_vae" and entry.same_as is None else ""
        sources = [{name: before + names.original_vae(name, levels) for name in own_names}]
    elif entry.name in ("vae", "sd_vae") and any(name.endswith(".query.weight") for name in files[0][0].tensors):
        sources = [{name: names.old_diffusers_vae(name) for name in own_names}]
    return [(checkpoint, own, ignored) for (checkpoint, ignored), own in zip(files, sources, strict=True)]


def _nothing(name: str) -> bool:
    return False


def _all_but(prefix: str) -> Callable[[str], bool]:
    """Of a file that holds several networks: the names of the others, and the numbers of tokens."""
    return lambda name: not name.startswith(prefix) or name.endswith(".position_ids")


def _is_loss(name: str) -> bool:
    return name.startswith("loss.")


def _clip_rest(others: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: name.endswith(".position_ids") or (bool(others) and name.startswith(others))


def _bound(function: Callable[[str, str], bool], prefix: str) -> Callable[[str], bool]:
    return lambda name: function(name, prefix)
