"""Networks that judge reconstructions: pictures in, features of named layers out (paper, Methods: evaluation).

The architectures are torchvision's (the authors' choice) and, for CLIP, transformers'; a forward hook takes each
layer. Weights come from files that are already here (`bdflow.models.judges.weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bdflow.errors import InputError
from bdflow.models.judges.weights import BUNDLE_CLIP, JUDGES, Judge, Weights
from bdflow.models.resizing import resize
from bdflow.models.weights.bundle import open_bundle
from bdflow.models.weights.checkpoint import load_into, open_checkpoint
from bdflow.models.weights.manifest import FileEntry, NetworkEntry
from bdflow.models.weights.networks import build_module, number_positions, parts_of

if TYPE_CHECKING:
    from bdflow.models.weights.networks import Part

HEADS = {"alexnet": "classifier.6", "inception_v3": "fc", "efficientnet_b1": "classifier", "swav": "fc"}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
UNUSED = {"inception_v3": ("AuxLogits.",), "swav": ("projection_head.", "prototypes.")}


class Network:
    """One judge, ready: uint8 pictures to features.

    Parameters
    ----------
    module : the network; it is set to evaluation.
    judge : which layers are taken, and what pictures go through first.
    device : where it runs, in float32.
    """

    def __init__(self, module: nn.Module, judge: Judge, device: str = "cpu") -> None:
        self.module, self.judge, self.device = module.to(device).eval(), judge, device
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (judge.mean, judge.std))
        self.seen: dict[str, Tensor] = {}
        for metric, (layer, _) in judge.layers.items():
            module.get_submodule(layer).register_forward_hook(self._keep(metric))

    def _keep(self, metric: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self.seen[metric] = output[0] if isinstance(output, tuple) else output

        return hook

    def prepare(self, resized: np.ndarray) -> Tensor:
        """Input (n, 3, s, s) float32 on the device, of uint8 pictures (n, s, s, 3) of the judge's size."""
        pixels = torch.from_numpy(np.ascontiguousarray(resized)).to(self.device).permute(0, 3, 1, 2)
        return (pixels.float() / 255 - self.mean) / self.std

    @torch.inference_mode()
    def features(self, resized: np.ndarray) -> dict[str, Tensor]:
        """Features (n, F) float32 on the device by metric, of uint8 pictures (n, s, s, 3) of the judge's size."""
        self.seen.clear()
        self.module(self.prepare(resized))
        return {metric: self.seen[metric].float().flatten(1) for metric in self.judge.layers}


class Panel:
    """Several judges that look at the same pictures; these are resized once for all judges of one size and filter."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks

    @property
    def device(self) -> str:
        """Where the features are."""
        return self.networks[0].device

    def __call__(self, images: np.ndarray) -> dict[str, Tensor]:
        """Features (n, F) float32 by metric, of uint8 pictures (n, h, w, 3) of any size."""
        wanted = {(network.judge.size, network.judge.filter) for network in self.networks}
        resized = {of: resize(images, of[0], FILTERS[of[1]]) for of in wanted}
        found: dict[str, Tensor] = {}
        for network in self.networks:
            found |= network.features(resized[network.judge.size, network.judge.filter])
        return found


def load_panel(weights: Mapping[str, Weights], bundle: str | Path | None = None, device: str = "cpu") -> Panel:
    """The judges whose weights are given by name, and if `bundle` is given the CLIP tower of that bundle.

    Raises
    ------
    InputError : a file that does not hold the network it should, or torchvision cannot be imported.
    """
    networks = [load_network(name, found, device) for name, found in weights.items()]
    return Panel(networks if bundle is None else [*networks, bundle_clip(bundle, device)])


def load_network(name: str, weights: Weights, device: str = "cpu") -> Network:
    """One judge of `JUDGES` with its published weights. Raises InputError as `load_panel` does."""
    network = JUDGES[name].network
    if network == "clip":
        roles = zip(("config", "weights"), weights.files, strict=True)
        files = {role: FileEntry(path, path.stat().st_size) for role, path in roles}
        entry = NetworkEntry("clip_vision", "transformers", files)
        with torch.device("meta"):
            module = build_module(entry)
        parts = parts_of(entry, module)
    else:
        module = _torchvision(network)
        parts = [_part(network, module, weights.files[0])]
    action = "put the published file in its place; docs/weights.md says which."
    load_into(module, parts, device=device, dtype="float32", action=action)
    number_positions(module, device)
    return Network(module, JUDGES[name], device)


def _torchvision(name: str) -> nn.Module:
    """The architecture on the meta device, without what stands behind its last layer."""
    models = _torchvision_models()
    with torch.device("meta"):
        if name == "swav":
            module = models.resnet50()
        elif name == "inception_v3":
            module = models.inception_v3(transform_input=True, init_weights=False)
            module.AuxLogits = None
        else:
            module = getattr(models, name)()
    module.set_submodule(HEADS[name], nn.Identity())
    return module


def _torchvision_models() -> ModuleType:
    try:
        from torchvision import models
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            "torchvision",
            found=f"that it cannot be imported ({error})",
            expected="the torchvision that belongs to the installed torch",
            meaning="AlexNet, Inception, EfficientNet and SwAV's ResNet are torchvision's.",
            action="install both from one place: pip install --force-reinstall torch torchvision",
        ) from error
    return models


def _part(name: str, module: nn.Module, file: Path) -> Part:
    unused = (f"{HEADS[name]}.", *UNUSED.get(name, ()))
    return (
        open_checkpoint(file),
        {ours: ours for ours in module.state_dict() if not ours.endswith("num_batches_tracked")},
        lambda theirs: theirs.startswith(unused) or theirs.endswith("num_batches_tracked"),
    )


def bundle_clip(bundle: str | Path, device: str = "cpu") -> Network:
    """The CLIP vision tower of a bundle as a judge: its pooled, projected image embedding."""
    tower = open_bundle(bundle).clip_vision(device, "float32")
    steps = tower.processing
    width = tower.model.config.projection_dim
    layers = {BUNDLE_CLIP: ("visual_projection", width)}
    judge = Judge("clip", layers, steps.size, "bilinear", steps.mean, steps.std)
    return Network(tower.model, judge, device)
