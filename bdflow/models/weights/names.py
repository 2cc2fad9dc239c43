"""Names of parameters: ours (diffusers' and transformers') and those of the authors' original files.

The original files are `vd-four-flow-v1-0-fp16-deprecated.pth` (both UNets of Versatile Diffusion, behind
`model.diffusion_model.`) and `kl-f8.pth` (its autoencoder); and `sd-v1-4.ckpt` (Stable Diffusion 1: its UNet behind the
same prefix, its autoencoder and text encoder).
"""

import re
from collections.abc import Iterable

UNET_PREFIX = "model.diffusion_model."

FIRST_STAGE = "first_stage_model."
TEXT_STAGE = "cond_stage_model.transformer."

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
}  # fmt: skip
_VAE_ENDS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_TEXT_UNET_REST = re.compile(
    r"unet_text\.((input_blocks|output_blocks)\.\d+|middle_block)\.\d+\."
    r"((in_layers\.[02]|emb_layers\.1|out_layers\.[03]|skip_connection)\.)?(weight|bias)|unet_text\.out\.[02]\.(weight|bias)"
)


def original_unet(name: str, levels: int, layers_per_block: int) -> str:
    """The original name, without prefix, of a dual UNet's parameter.

    >>> original_unet("down_blocks.1.resnets.0.norm1.weight", 4, 2)
    'unet_image.input_blocks.4.0.in_layers.0.weight'
    """
    stem, leaf = name.rsplit(".", 1)
    if stem.startswith("time_embedding"):
        return f"{_ENDS[stem]}.{leaf}"
    if stem in _ENDS:
        return f"unet_image.{_ENDS[stem]}.{leaf}"
    parts = name.split(".")
    if parts[0] == "mid_block":
        kind, number, rest = parts[1], int(parts[2]), ".".join(parts[3:])
        place = f"middle_block.{2 * number if kind == 'resnets' else 1}"
    else:
        level, kind, number, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
        if parts[0] == "down_blocks":
            first = 1 + level * (layers_per_block + 1)
            if kind == "downsamplers":
                place, rest = f"input_blocks.{first + layers_per_block}.0", rest.replace("conv", "op", 1)
            else:
                place = f"input_blocks.{first + number}.{int(kind == 'attentions')}"
        else:
            first = level * (layers_per_block + 1)
            if kind == "upsamplers":
                place = f"output_blocks.{first + layers_per_block}.up"
            else:
                place = f"output_blocks.{first + number}.{int(kind == 'attentions')}"
    if kind == "resnets":
        layer, _, leaf = rest.rpartition(".")
        return f"unet_image.{place}.{_RESNET[layer]}.{leaf}"
    if kind == "attentions":
        branch, _, rest = rest.partition(".")
        return f"unet_{'image' if branch == 'vision' else 'text'}.{place}.{rest}"
    return f"unet_image.{place}.{rest}"


def original_unet_sources(names: Iterable[str], levels: int, layers_per_block: int, prefix: str) -> dict[str, str]:
    """Our name -> the original file's, for every parameter of a dual UNet. An upsampler stands after the
    attention of its position, or in its place where there is none."""
    names = list(names)
    sources = {name: original_unet(name, levels, layers_per_block) for name in names}
    occupied = {theirs.rsplit(".transformer_blocks", 1)[0] for theirs in sources.values()}
    for ours, theirs in sources.items():
        place, found, rest = theirs.partition(".up.")
        if found:
            sources[ours] = f"{place}.{2 if f'{place}.1' in occupied else 1}.{rest}"
    return {ours: prefix + theirs for ours, theirs in sources.items()}


def original_text_unet_sources(names: Iterable[str], levels: int, layers_per_block: int, prefix: str) -> dict[str, str]:
    """Our name -> that of Stable Diffusion 1's file, for every parameter of a UNet with one condition. The names there
    are those of Versatile Diffusion's image UNet.
    """
    as_image = {name: name.replace(".text.", ".vision.", 1) if ".attentions." in name else name for name in names}
    theirs = original_unet_sources(as_image.values(), levels, layers_per_block, "")
    return {ours: prefix + theirs[image].removeprefix("unet_image.") for ours, image in as_image.items()}


def diffusers_text_unet(name: str) -> str:
    """The name in the diffusers directory of a parameter of a UNet with one condition."""
    return re.sub(r"(\.attentions\.\d+)\.text\.", r"\1.", name)


def original_text_encoder(name: str) -> str:
    """The name in `sd-v1-4.ckpt` of a CLIPTextModel's parameter, which since transformers 5.6 has no `text_model.`
    before it.
    """
    return f"{TEXT_STAGE}text_model.{name.removeprefix('text_model.')}"


def unused_in_original_unet(name: str, prefix: str) -> bool:
    """Whether dual guidance leaves this tensor of the original file alone: the text UNet's own residual
    layers, and the other networks that the published file also holds."""
    if not name.startswith(prefix):
        return True
    return _TEXT_UNET_REST.fullmatch(name.removeprefix(prefix)) is not None


def unused_in_text_unet(name: str) -> bool:
    """Whether dual guidance leaves this tensor of the diffusers text UNet alone: all but its transformers."""
    return ".attentions." not in name


def diffusers_unet(name: str) -> tuple[str, str]:
    """("image" or "text", name there) of a dual UNet's parameter in the diffusers directory."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(vision|text)\.(.*)", name)
    if match is None:
        return "image", name
    return ("image" if match[2] == "vision" else "text"), f"{match[1]}.{match[3]}"


def original_vae(name: str, levels: int) -> str:
    """The name in `kl-f8.pth` of an AutoencoderKL's parameter.

    >>> original_vae("decoder.up_blocks.0.resnets.1.conv1.weight", 4)
    'decoder.up.3.block.1.conv1.weight'
    """
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    attention = re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)", name)
    if attention is not None:
        return f"{attention[1]}mid.attn_1.{_VAE_ATTENTION[attention[2]]}.{attention[3]}"
    stem, leaf = name.rsplit(".", 1)
    head, _, layer = stem.rpartition(".")
    return f"{head}.{_VAE_ENDS.get(layer, layer)}.{leaf}" if head else name


def old_diffusers_vae(name: str) -> str:
    """The name that diffusers before 0.18 gave to an AutoencoderKL's attention parameter; others keep
    theirs.
    """
    match = re.fullmatch(r"(.*\.attentions\.0)\.(to_q|to_k|to_v|to_out\.0)\.(weight|bias)", name)
    return name if match is None else f"{match[1]}.{_OLD_ATTENTION[match[2]]}.{match[3]}"
