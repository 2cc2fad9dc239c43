"""What each network of the tiny bundle is trained on, and how its loss is drawn."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bdflow.models.encoders import Setup, Stimuli
from bdflow.models.latents import FeatureExtractor
from bdflow.models.stable_diffusion.encoders import SDTextEncoder
from bdflow.models.weights.bundle import Bundle, open_bundle
from bdflow.training import losses
from bdflow.training.bundle import untrained
from bdflow.training.scenes import Scenes
from bdflow.training.settings import (
    BATCH,
    COARSE,
    FREE_NATS,
    HORIZON,
    JOINED,
    KL_WEIGHT,
    LEAST_LEFT,
    MOST_UNSETTLED,
    N_PAINTED,
    STEPS,
)

log = logging.getLogger(__name__)

DROPPED = 0.1
MIXINGS, MIXING_SHARES = (0.0, 1.0, 0.4), (0.1, 0.1, 0.5)  # the rest of the steps: uniform
STRENGTH, STABLE_STRENGTH = 0.75, 0.8  # of Brain-Diffuser, of Takagi & Nishimoto
VDVAE_LOSS: dict[str, Any] = {"kl_weight": KL_WEIGHT, "from_prior": 0.5, "free_nats": FREE_NATS, "coarse": COARSE}
LossOf = Callable[[int, float, np.random.Generator, torch.Generator], Tensor]


@dataclass
class Task:
    """One network's training: `loss(step, progress, rng, generator)` of a batch it draws itself, to minimise in
    `steps`; the learning rate's cosine would end at `horizon`.
    """

    name: str
    module: nn.Module
    loss: LossOf
    steps: int
    lr: float
    horizon: float = math.inf
    clip_norm: float = 1.0
    half: bool = False


def build(name: str) -> nn.Module:
    """The untrained module of a task: one network, or both CLIP towers and their temperature."""
    if name != "clip":
        return untrained(name)
    towers = nn.ModuleDict({tower: untrained(f"clip_{tower}") for tower in ("vision", "text")})
    towers.register_parameter("logit_scale", nn.Parameter(torch.tensor(math.log(1 / 0.07))))
    return towers


def vae_task(scenes: Scenes, short: bool) -> Task:
    module = build("vae")

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = np.sort(rng.choice(len(scenes.ids), BATCH["vae"], replace=False))
        return losses.vae_loss(module, losses.signed(scenes.painted[rows]), generator)

    return Task("vae", module, loss, steps=12 if short else STEPS["vae"], lr=2e-3, horizon=HORIZON["vae"], half=True)


def clip_task(scenes: Scenes, short: bool, extractor: FeatureExtractor) -> Task:
    module = build("clip")
    tokens = caption_tokens(scenes, extractor)
    normalise = extractor.clip_vision.processing._normalise
    batch = 32 if short else BATCH["clip"]

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = np.sort(rng.choice(len(scenes.ids), batch, replace=False))
        pixels = normalise(torch.from_numpy(scenes.clip[rows].astype(np.float32) / np.float32(255)))
        texts = tokens[rows, rng.integers(5, size=batch)]
        return losses.clip_loss(module["vision"], module["text"], module.logit_scale, pixels, texts)  # type: ignore[index, arg-type]

    return Task("clip", module, loss, steps=30 if short else STEPS["clip"], lr=1e-3, horizon=HORIZON["clip"])


def vdvae_task(scenes: Scenes, short: bool) -> Task:
    module: Any = build("vdvae").to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows, others = np.sort(rng.choice(len(scenes.ids), (2, BATCH["vdvae"]), replace=False))
        images, filling = (torch.from_numpy(np.array(scenes.guess[of])) for of in (rows, others))
        pictures = losses.joined(images, filling, rng, JOINED)
        return losses.vdvae_loss(module, pictures, generator, **VDVAE_LOSS)[0]

    return Task(
        "vdvae",
        module,
        loss,
        steps=12 if short else STEPS["vdvae"],
        lr=2e-3,
        horizon=HORIZON["vdvae"],
        clip_norm=2.0,
        half=True,
    )


def unet_task(scenes: Scenes, short: bool, bundle: Path, work: Path) -> Task:
    """Trained on what the bundle's own autoencoder and CLIP make of the scenes."""
    module = build("unet")
    z, vision, text = painting_material(scenes, bundle, work, "z", "vision", "text")
    versatile = open_bundle(bundle).versatile()
    nothing_seen, nothing_said = versatile.unconditional_vision, versatile.unconditional_text
    mean_vision, mean_text = vision.float().mean(0), text.float().mean(0)
    alphas = versatile.alphas_cumprod.float()
    batch = 8 if short else BATCH["unet"]

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows, others = rng.integers(len(z), size=(2, batch))
        share = [torch.from_numpy(rng.uniform(0, MOST_UNSETTLED, batch).astype(np.float32)) for _ in range(2)]
        seen = losses.unsettle(vision[rows].float(), mean_vision, share[0], vision[others].float())
        said = losses.unsettle(text[rows].float(), mean_text, share[1], text[others].float())
        dropped = torch.from_numpy(rng.random(batch) < DROPPED)[:, None, None]
        seen, said = torch.where(dropped, nothing_seen, seen), torch.where(dropped, nothing_said, said)
        mixing = float((*MIXINGS, rng.random())[rng.choice(4, p=(*MIXING_SHARES, 1 - sum(MIXING_SHARES)))])
        conditions = {"vision": seen, "text": said, "mixing": mixing}
        return losses.unet_loss(module, alphas, z[rows], conditions, STRENGTH, generator)

    return Task("unet", module, loss, steps=20 if short else STEPS["unet"], lr=1e-3, horizon=HORIZON["unet"])


def stable_task(scenes: Scenes, short: bool, bundle: Path, work: Path) -> Task:
    """Stable Diffusion's UNet, from the bundle's dual-guided one: on the same latents, under the text encoder's hidden
    states, averaged over captions.
    """
    z, c = painting_material(scenes, bundle, work, "z", "c")
    opened = open_bundle(bundle)
    module, nothing = from_dual(opened, scenes.first(64)), opened.sd_text().unconditional()
    mean, alphas = c.float().mean(0), opened.stable().alphas_cumprod.float()
    batch = 8 if short else BATCH["sd_unet"]

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows, others = rng.integers(len(z), size=(2, batch))
        mixed, left = (
            torch.from_numpy(rng.uniform(low, high, batch).astype(np.float32))
            for low, high in ((0, MOST_UNSETTLED), (LEAST_LEFT, 1))
        )
        left = torch.where(torch.arange(batch) % 2 == 0, 1.0, left)
        said = losses.unsettle(c[rows].float(), mean, mixed, c[others].float())
        said = losses.shrink(said, mean, left)
        dropped = torch.from_numpy(rng.random(batch) < DROPPED)[:, None, None]
        conditions = {"text": torch.where(dropped, nothing, said)}
        return losses.unet_loss(module, alphas, z[rows], conditions, STABLE_STRENGTH, generator)

    steps = 20 if short else STEPS["sd_unet"]
    return Task("sd_unet", module, loss, steps=steps, lr=5e-4, horizon=HORIZON["sd_unet"])


def from_dual(bundle: Bundle, scenes: Scenes) -> nn.Module:
    """A UNet with one condition that does what the bundle's dual-guided one does under text alone.

    Its keys and values take hidden states where the other's take these projected and divided by the norm of the pooled
    one (`bdflow.models.clip`); that norm's place takes its average over the captions of `scenes`.
    """
    module, dual = build("sd_unet"), bundle.load("unet").state_dict()
    text = bundle.clip_text()
    tokens = text.tokens([text for captions in scenes.captions for text in captions])
    with torch.inference_mode():
        projection = text.model.text_projection.weight.clone()
        scale = (1 / text.model(input_ids=tokens).text_embeds.norm(dim=-1)).mean()
    own = {name: dual[name] for name in module.state_dict()}
    for name, weight in own.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            own[name] = weight @ projection * scale
    module.load_state_dict(own)
    return module.train()


def caption_tokens(scenes: Scenes, extractor: FeatureExtractor) -> Tensor:
    """(n, 5, T) token ids of all captions."""
    length = extractor.spaces["clip_text"][0]
    texts = [text for row in scenes.captions for text in row]
    rows = extractor.clip_text.tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return rows["input_ids"].reshape(len(scenes.captions), 5, length)


def painting_material(scenes: Scenes, bundle: Path, work: Path, *wanted: str) -> list[Tensor]:
    """What painters learn from, of the first N_PAINTED scenes; kept in `work`. `z`: scaled latents (n, c, h, w)
    float32; `vision`, `text`, `c`: embeddings (n, T, F) float16, those of text averaged over captions.
    """
    scenes = scenes.first(N_PAINTED)
    extractor, states = FeatureExtractor(bundle), SDTextEncoder(Setup("c", bundle))
    versatile = open_bundle(bundle).versatile()
    no_images = np.zeros((N_PAINTED, 0, 0, 3), np.uint8)

    def hidden_states(rows: slice) -> Tensor:
        stimuli = Stimuli(
            np.array([str(number) for number in scenes.ids[rows]]), no_images[rows], scenes.captions[rows]
        )
        return torch.from_numpy(states.work(states.prepare(stimuli))).half()

    makers: dict[str, tuple[tuple[str, ...], Callable[[slice], Tensor]]] = {
        "z": (("vae",), lambda rows: versatile.encode(np.array(scenes.painted[rows]), None, "mean")),
        "vision": (
            ("clip_vision",),
            lambda rows: torch.from_numpy(extractor.vision_embeddings(np.asarray(scenes.painted[rows]))).half(),
        ),
        "text": (
            ("clip_text",),
            lambda rows: torch.from_numpy(
                extractor.caption_embeddings(scenes.captions[rows], [str(number) for number in scenes.ids[rows]])
            ).half(),
        ),
        "c": (("clip_text",), hidden_states),
    }
    networks = open_bundle(bundle).manifest.networks
    found = []
    for what in wanted:
        sources, make = makers[what]
        digest = "-".join(str(networks[source].files["weights"].sha256)[:12] for source in sources)
        path = work / f"{what}-{len(scenes.ids)}-{digest}.pt"
        if not path.is_file():
            log.info("%s of %d scenes", what, len(scenes.ids))
            rows = [slice(start, start + 64) for start in range(0, len(scenes.ids), 64)]
            torch.save(torch.cat([make(part) for part in rows]), path)
        found.append(torch.load(path, weights_only=True))
    return found
