"""Train the tiny bundle: `python -m bdflow.training.train --out DIR [--minutes M] [--short] [--network NAME ...]`.

Scenes and checkpoints are kept in `--work`; run again, it goes on from there. Everything is drawn by seed and step,
so an interrupted training ends as an uninterrupted one. `vae`, `clip` and `vdvae` may train side by side, each in a
process of its own with the same `--out`; `unet` learns from what `vae` and `clip` make of the scenes, and comes after
them; `sd_unet` starts from `unet`, and comes last. With `--start BUNDLE`, networks that are not trained here are those
of that bundle, byte for byte. `--evaluate` measures the bundle on held-out scenes instead, and writes its model card
and scores.
"""

import argparse
import fcntl
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bdflow import random
from bdflow.models.encoders import Setup, Stimuli
from bdflow.models.latents import FeatureExtractor
from bdflow.models.stable_diffusion.encoders import SDTextEncoder
from bdflow.models.weights.bundle import Bundle, open_bundle
from bdflow.training import losses
from bdflow.training.bundle import VAE, untrained, write_bundle
from bdflow.training.scenes import Scenes, load_scenes
from bdflow.training.settings import (
    BATCH,
    HORIZON,
    LEAST_LEFT,
    MOST_UNSETTLED,
    N_PAINTED,
    N_SCENES,
    RECORD,
    SHARE_OF_TIME,
    STEPS,
    TEMPERATURE,
)

log = logging.getLogger(__name__)

SEED = 20231109
NETWORKS = ("vae", "clip", "vdvae", "unet", "sd_unet")
CHECKPOINT_SECONDS = 60.0
LOG_SECONDS = 15.0
EMA = 0.998
COOL_DOWN = 0.15
WARM_UP = 150
DROPPED = 0.1
MIXINGS, MIXING_SHARES = (0.0, 1.0, 0.4), (0.1, 0.1, 0.5)  # the rest of the steps: uniform
KL_WEIGHT = 0.2
STRENGTH, STABLE_STRENGTH = 0.75, 0.8  # of Brain-Diffuser, of Takagi & Nishimoto
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


@dataclass
class Progress:
    """What a checkpoint holds beside weights: steps done, seconds and CPU seconds spent, the loss of every step."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def fit(task: Task, work: Path, *, minutes: float | None = None) -> Progress:
    """Train to the end, from the checkpoint if there is one; with `minutes`, all within them.

    The learning rate warms up and follows `learning_rate` over steps, or over the minutes where these are shorter.
    Updates with a gradient norm that is not finite are left out. An exponential moving average of the weights is
    kept, and is what the module holds on return.
    """
    path = work / f"{task.name}.pt"
    parameters = list(task.module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=task.lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = [parameter.detach().clone() for parameter in parameters]
    done = Progress()
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        done = Progress(**saved["progress"])
        task.module.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        average = saved["average"]
    limit = math.inf if minutes is None else 60 * minutes
    started, logged, kept = time.monotonic() - done.seconds, 0.0, time.monotonic()
    computed = time.process_time() - done.cpu_seconds

    def save() -> None:
        content = {
            "progress": vars(done),
            "weights": task.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
        }
        torch.save(content, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    while done.step < task.steps and done.seconds < limit:
        progress = max(done.step / task.steps, done.seconds / limit)
        warm = min(1.0, (done.step + 1) / min(WARM_UP, math.ceil(task.steps / 8)))
        for group in optimizer.param_groups:
            group["lr"] = task.lr * warm * learning_rate(done.step / task.horizon, progress)
        rng = random.generator(SEED, "train tiny", task.name, done.step)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with torch.autocast("cpu", torch.bfloat16, enabled=task.half):
            loss = task.loss(done.step, progress, rng, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, task.clip_norm))
        if math.isfinite(norm):
            optimizer.step()
        decay = min(EMA, (1 + done.step) / (10 + done.step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        now = time.monotonic()
        done.step, done.seconds = done.step + 1, now - started
        done.cpu_seconds = time.process_time() - computed
        done.losses.append(float(loss.detach()))
        if now - logged > LOG_SECONDS:
            rate = done.step / done.seconds
            left = min((task.steps - done.step) / rate, limit - done.seconds)
            recent = float(np.mean(done.losses[-50:]))
            log.info(
                "%s: step %d of %d, loss %.4f, gradient %.2f, %.2f steps/s, %.1f minutes left",
                task.name, done.step, task.steps, recent, norm, rate, left / 60,
            )  # fmt: skip
            logged = now
        if now - kept > CHECKPOINT_SECONDS:
            save()
            kept = now
    save()
    with torch.no_grad():
        for parameter, smooth in zip(parameters, average, strict=True):
            parameter.copy_(smooth)
    task.module.eval()
    log.info(
        "%s: done, %d steps in %.1f minutes, %.1f of CPU",
        task.name, done.step, done.seconds / 60, done.cpu_seconds / 60,
    )  # fmt: skip
    return done


def learning_rate(along: float, progress: float) -> float:
    """Factor of the learning rate: a cosine from 1 to 0.02 that is `along` its way, brought down linearly in the last
    COOL_DOWN of the training, wherever on the cosine that is.
    """
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))
    return cosine * min(1.0, max(0.02, (1 - progress) / COOL_DOWN))


def build(name: str) -> nn.Module:
    """The untrained module of a task: one network, or both CLIP towers and their temperature."""
    if name != "clip":
        return untrained(name)
    towers = nn.ModuleDict({tower: untrained(f"clip_{tower}") for tower in ("vision", "text")})
    towers.register_parameter("logit_scale", nn.Parameter(torch.tensor(math.log(1 / 0.07))))
    return towers


def trained(name: str, work: Path) -> nn.Module:
    """The module of a task with the averaged weights of its checkpoint, or untrained where there is none."""
    module, path = build(name), work / f"{name}.pt"
    if path.is_file():
        average = torch.load(path, weights_only=True)["average"]
        with torch.no_grad():
            for parameter, smooth in zip(module.parameters(), average, strict=True):
                parameter.copy_(smooth)
    return module.eval()


def vae_task(scenes: Scenes, short: bool) -> Task:
    module = build("vae")

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = np.sort(rng.choice(len(scenes.nsd_ids), BATCH["vae"], replace=False))
        return losses.vae_loss(module, losses.signed(scenes.painted[rows]), generator)

    return Task("vae", module, loss, steps=12 if short else STEPS["vae"], lr=2e-3, horizon=HORIZON["vae"], half=True)


def clip_task(scenes: Scenes, short: bool, extractor: FeatureExtractor) -> Task:
    module = build("clip")
    tokens = caption_tokens(scenes, extractor)
    normalise = extractor.clip_vision.processing._normalise
    batch = 32 if short else BATCH["clip"]

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = np.sort(rng.choice(len(scenes.nsd_ids), batch, replace=False))
        pixels = normalise(torch.from_numpy(scenes.clip[rows].astype(np.float32) / np.float32(255)))
        texts = tokens[rows, rng.integers(5, size=batch)]
        return losses.clip_loss(module["vision"], module["text"], module.logit_scale, pixels, texts)  # type: ignore[index, arg-type]

    return Task("clip", module, loss, steps=30 if short else STEPS["clip"], lr=1e-3, horizon=HORIZON["clip"])


def vdvae_task(scenes: Scenes, short: bool) -> Task:
    module: Any = build("vdvae").to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = np.sort(rng.choice(len(scenes.nsd_ids), BATCH["vdvae"], replace=False))
        images = torch.from_numpy(np.array(scenes.guess[rows]))
        return losses.vdvae_loss(module, images, generator, kl_weight=KL_WEIGHT, from_prior=0.5)[0]

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
        stimuli = Stimuli(np.array(scenes.nsd_ids[rows]), no_images[rows], scenes.captions[rows])
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
                extractor.caption_embeddings(scenes.captions[rows], scenes.nsd_ids[rows])
            ).half(),
        ),
        "c": (("clip_text",), hidden_states),
    }
    networks = open_bundle(bundle).manifest.networks
    found = []
    for what in wanted:
        sources, make = makers[what]
        digest = "-".join(str(networks[source].files["weights"].sha256)[:12] for source in sources)
        path = work / f"{what}-{len(scenes.nsd_ids)}-{digest}.pt"
        if not path.is_file():
            log.info("%s of %d scenes", what, len(scenes.nsd_ids))
            rows = [slice(start, start + 64) for start in range(0, len(scenes.nsd_ids), 64)]
            torch.save(torch.cat([make(part) for part in rows]), path)
        found.append(torch.load(path, weights_only=True))
    return found


def settle_latents(vae: Any, images_u8: np.ndarray) -> float:
    """Give the autoencoder's latent channels mean 0 and one common standard deviation, by its 1x1 convolutions
    alone; the images it decodes stay the same. Returns the scaling factor, 1 / that standard deviation.
    """
    pixels = losses.signed(images_u8)
    with torch.no_grad():
        z = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(16)])
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        common = std.square().mean().sqrt()
        gain, channels = common / std, len(mean)
        into, out_of = vae.quant_conv, vae.post_quant_conv
        into.weight[:channels] *= gain[:, None, None, None]
        into.bias[:channels] = (into.bias[:channels] - mean) * gain
        into.bias[channels:] += 2 * gain.log()
        out_of.bias += (out_of.weight[..., 0, 0] * mean).sum(1)
        out_of.weight /= gain[None, :, None, None]
    return float(1 / common)


def write(out: Path, work: Path, scenes: Scenes, start: Path | None = None) -> None:
    """Write the bundle of all checkpoints in `work`, and of the record of their training. Networks without a checkpoint
    are those of the bundle `start`, as they are, or untrained.
    """
    given = None if start is None else open_bundle(start)
    record = {} if given is None else json.loads((given.path / RECORD).read_text(encoding="utf-8"))
    modules: dict[str, nn.Module] = {}
    scale = float(VAE["scaling_factor"])  # type: ignore[arg-type]
    for name in NETWORKS:
        members = ("clip_vision", "clip_text") if name == "clip" else (name,)
        done = progress_of(name, work)
        if done is not None:
            record[name] = {"steps": done.step, "cpu_minutes": round(done.cpu_seconds / 60, 1), "seed": SEED}
        elif given is not None and set(members) <= given.manifest.networks.keys():
            modules |= {member: given.load(member) for member in members}
            if name == "vae":
                scale = float(given.manifest.network("vae").config()["scaling_factor"])
            continue
        module: Any = trained(name, work)
        if name == "clip":
            modules |= {"clip_vision": module["vision"], "clip_text": module["text"]}
            continue
        modules[name] = module
        if name == "vdvae":
            losses.temper(module, TEMPERATURE)
        elif name == "vae":
            scale = round(settle_latents(module, np.asarray(scenes.painted[:256])), 5)
    weights = {
        name: {key: value.detach().numpy() for key, value in module.state_dict().items()}
        for name, module in modules.items()
    }
    write_bundle(out, weights, source="python -m bdflow.training.train", scaling_factor=scale)
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def progress_of(name: str, work: Path) -> Progress | None:
    """How far the training of a network in `work` has come; None where it has not begun."""
    path = work / f"{name}.pt"
    if not path.is_file():
        return None
    return Progress(**torch.load(path, weights_only=True, mmap=True)["progress"])


def train(
    out: Path,
    work: Path,
    networks: Iterable[str] = NETWORKS,
    *,
    minutes: float | None = None,
    short: bool = False,
    processes: int = 1,
    n_scenes: int | None = None,
    start: Path | None = None,
) -> dict[str, Progress]:
    """Train `networks` in their order and write the bundle after each; `minutes` are shared among them. `start`: see
    `write`.
    """
    work.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in NETWORKS if name in set(networks)]
    needed = N_PAINTED if set(chosen) <= {"unet", "sd_unet"} else N_SCENES
    scenes = load_scenes(work, "train", n_scenes or (128 if short else needed), processes)
    found = {}
    for name in chosen:
        with alone(work):
            write(out, work, scenes, start)
            if name == "vae":
                task = vae_task(scenes, short)
            elif name == "vdvae":
                task = vdvae_task(scenes, short)
            elif name == "clip":
                task = clip_task(scenes, short, FeatureExtractor(out))
            elif name == "unet":
                task = unet_task(scenes, short, out, work)
            else:
                task = stable_task(scenes, short, out, work)
        share = SHARE_OF_TIME[name] / sum(SHARE_OF_TIME[other] for other in chosen)
        found[name] = fit(task, work, minutes=None if minutes is None else minutes * share)
    with alone(work):
        write(out, work, scenes, start)
    return found


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """While one process writes or reads the bundle, others that train beside it wait."""
    with (work / "lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bdflow.training.train", description="Train the tiny bundle.")
    parser.add_argument("--out", type=Path, required=True, help="where the bundle is written")
    parser.add_argument("--work", type=Path, help="where scenes and checkpoints are kept (default: OUT.work)")
    parser.add_argument("--start", type=Path, help="bundle whose networks are kept where none is trained here")
    parser.add_argument("--minutes", type=float, help="end within so many minutes of training")
    parser.add_argument("--short", action="store_true", help="a few steps of each network, to see that it works")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=NETWORKS, help="train only these")
    parser.add_argument("--evaluate", action="store_true", help="measure the bundle at OUT; train nothing")
    parser.add_argument("--processes", type=int, default=1, help="that draw the scenes")
    parser.add_argument("--threads", type=int, default=1, help="of the networks")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(given.threads)
    work = given.work or given.out.with_name(given.out.name + ".work")
    if given.evaluate:
        from bdflow.training.judge import judge

        judge(given.out, work)
        return
    train(
        given.out,
        work,
        given.network,
        minutes=given.minutes,
        short=given.short,
        processes=given.processes,
        start=given.start,
    )


if __name__ == "__main__":
    main()
