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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bdflow import random
from bdflow.models.latents import FeatureExtractor
from bdflow.models.weights.bundle import open_bundle
from bdflow.training import losses
from bdflow.training.bundle import VAE, write_bundle
from bdflow.training.scenes import Scenes, load_scenes
from bdflow.training.settings import N_PAINTED, N_SCENES, RECORD, SHARE_OF_TIME, TEMPERATURE
from bdflow.training.tasks import Task, build, clip_task, stable_task, unet_task, vae_task, vdvae_task

log = logging.getLogger(__name__)

SEED = 20231109
NETWORKS = ("vae", "clip", "vdvae", "unet", "sd_unet")
CHECKPOINT_SECONDS = 60.0
LOG_SECONDS = 15.0
EMA = 0.998
COOL_DOWN = 0.15
WARM_UP = 150


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


def trained(name: str, work: Path) -> nn.Module:
    """The module of a task with the averaged weights of its checkpoint, or untrained where there is none."""
    module, path = build(name), work / f"{name}.pt"
    if path.is_file():
        average = torch.load(path, weights_only=True)["average"]
        with torch.no_grad():
            for parameter, smooth in zip(module.parameters(), average, strict=True):
                parameter.copy_(smooth)
    return module.eval()


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
