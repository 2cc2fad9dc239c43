"""Held-out scores of the tiny bundle, its model card, and pictures to look at.

`python -m bdflow.training.train --evaluate --out BUNDLE` writes README.md and scores.json into the bundle and a
contact sheet into the work directory.
"""

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bdflow.models.diffusion.inputs import BICUBIC
from bdflow.models.encoders import Encoder, Setup, Stimuli
from bdflow.models.latents import FeatureExtractor
from bdflow.models.resizing import resize
from bdflow.models.stable_diffusion.encoders import SDTextEncoder, SDVAEEncoder
from bdflow.models.stable_diffusion.painter import StablePainter
from bdflow.models.stable_diffusion.unet import TAKAGI
from bdflow.models.versatile.painter import Painter
from bdflow.models.weights.bundle import describe_bundle, open_bundle
from bdflow.simulation.scenes import Scene, scene
from bdflow.training import losses
from bdflow.training.scenes import FIRST_ID, SCENE_SIZE
from bdflow.training.settings import (
    BATCH,
    COARSE,
    FREE_NATS,
    JOINED,
    KL_WEIGHT,
    LEAST_LEFT,
    MOST_UNSETTLED,
    N_SCENES,
    RECORD,
    TEMPERATURE,
)
from bdflow.training.settings import N_PAINTED as SCENES_PAINTED

log = logging.getLogger(__name__)

SCORES = "scores.json"
CARD = "README.md"
N_HELD_OUT, N_PAINTED = 200, 48
N_LAYOUT, N_LAYOUT_FITTED, GRID, PENALTY = 800, 640, 8, 300.0


def held_out_scores(
    bundle: str | Path, scenes: Sequence[Scene], stimulus_ids: list[str], n_painted: int = N_PAINTED
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores of the networks alone and together on scenes that no training saw, rounded to 4 digits; and the pictures.

    Two-way identification: the share of other scenes that correlate less, over all pairs (chance 0.5).
    """
    extractor, painter = FeatureExtractor(bundle), Painter(bundle)
    images, captions = np.stack([one.image for one in scenes]), [one.captions for one in scenes]
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    as_trained = copy.deepcopy(extractor.vdvae)
    losses.temper(as_trained, 1 / TEMPERATURE)
    small = resize(images, extractor.guess_size, Image.Resampling.BILINEAR)
    with torch.inference_mode():
        bits = [
            float(losses.vdvae_loss(as_trained, torch.from_numpy(small[i : i + 32]), generator)[0])
            for i in range(0, len(small), 32)
        ]
    found["vdvae bits per colour value"] = float(np.mean(bits))
    found["vdvae, regressed latents from layout, median r"] = layout(extractor)

    vision = extractor.vision_embeddings(images)
    pooled = vision[:, 0]
    similarity = pooled @ caption_vectors(extractor, [row[0] for row in captions]).T
    n, own = len(pooled), np.diag(similarity)[:, None]
    found[f"clip, first caption among {n}, top-1"] = float(np.mean(similarity.argmax(1) == np.arange(n)))
    found["clip, caption, two-way"] = float((similarity < own).sum() / (n * (n - 1)))

    truth = resize(images[:n_painted], extractor.image_size, Image.Resampling.BILINEAR)
    versatile = painter.versatile
    decoded = versatile.decode(versatile.encode(truth, None, "mean")).numpy()
    error = np.square(decoded.astype(np.float32) - truth).mean((1, 2, 3))
    found["autoencoder PSNR in dB"] = float(np.mean(10 * np.log10(255**2 / error)))

    latents = {
        "vdvae": extractor.vdvae_latents(images[:n_painted], stimulus_ids[:n_painted]),
        "clip_vision": vision[:n_painted],
        "clip_text": extractor.caption_embeddings(captions[:n_painted], stimulus_ids[:n_painted]),
    }
    pictures = paint(painter, latents, stimulus_ids[:n_painted])
    pictures |= paint_stable(bundle, images[:n_painted], captions[:n_painted], stimulus_ids[:n_painted])
    for name, made in pictures.items():
        seen = extractor.vision_embeddings(made)[:, 0]
        found[f"{name}, clip two-way"] = two_way(pooled[:n_painted], seen)
        found[f"{name}, PixCorr"] = pixcorr(truth, made)
    rounded = {name: round(value, 4) for name, value in found.items()}
    return rounded, {"truth": truth, "autoencoder": decoded, **pictures}


def layout(extractor: FeatureExtractor) -> float:
    """How much of where things are a linear decoder finds: the median over regressed latents of Pearson's r between a
    latent and what ridge makes of the mean colours of GRID x GRID fields, on scenes that it was not fitted on.
    """
    numbers = [FIRST_ID["held_out"] + N_HELD_OUT + index for index in range(N_LAYOUT)]
    images = np.stack([scene(number, 0, extractor.guess_size).image for number in numbers])
    field = extractor.guess_size // GRID
    fields = images.reshape(N_LAYOUT, GRID, field, GRID, field, 3).mean((2, 4)).reshape(N_LAYOUT, -1)
    latents = extractor.vdvae_latents(images, [str(number) for number in numbers]).astype(np.float64)
    fit, held_out = slice(N_LAYOUT_FITTED), slice(N_LAYOUT_FITTED, None)
    fields = (fields - fields[fit].mean(0)) / fields[fit].std(0)
    latents = latents - latents[fit].mean(0)
    kernel = fields[fit].T @ fields[fit] + PENALTY * np.eye(fields.shape[1])
    predicted = fields[held_out] @ np.linalg.solve(kernel, fields[fit].T @ latents[fit])
    predicted, true = predicted - predicted.mean(0), latents[held_out] - latents[held_out].mean(0)
    r = (predicted * true).sum(0) / np.sqrt(np.square(predicted).sum(0) * np.square(true).sum(0))
    return float(np.median(r))


def paint(painter: Painter, latents: dict[str, np.ndarray], stimulus_ids: list[str]) -> dict[str, np.ndarray]:
    """Guesses, brought to the painter's size, and reconstructions."""
    guesses, painted = [], []
    for start in range(0, len(stimulus_ids), 8):
        rows = slice(start, start + 8)
        vdvae, vision, text = (latents[space][rows] for space in ("vdvae", "clip_vision", "clip_text"))
        guess = painter.guess(vdvae, "held out", stimulus_ids[rows])
        guesses.append(resize(guess, painter.image_size, BICUBIC))
        painted.append(painter.paint(guess, vision, text, "held out", stimulus_ids[rows]))
    return {"guess": np.concatenate(guesses), "reconstruction": np.concatenate(painted)}


def paint_stable(
    bundle: str | Path, images: np.ndarray, captions: list[list[str]], stimulus_ids: list[str]
) -> dict[str, np.ndarray]:
    """Stable Diffusion's pictures, as Takagi & Nishimoto paint: of z, decoded and brought to the painter's size; of z
    and c; and of each of them alone.
    """
    stimuli = Stimuli(np.asarray(stimulus_ids), images, captions)
    encoders: tuple[Encoder, ...] = (SDVAEEncoder(Setup("z", bundle)), SDTextEncoder(Setup("c", bundle)))
    z, c = (encoder.work(encoder.prepare(stimuli)) for encoder in encoders)
    painter = StablePainter(bundle, options=TAKAGI)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(stimulus_ids), 8):
        rows = slice(start, start + 8)
        ids = stimulus_ids[rows]
        guess = painter.decode_guesses(painter.guess_inputs(z[rows], "held out", ids))
        found.setdefault("z", []).append(resize(guess, painter.image_size, BICUBIC))
        for name, given in {"z and c": (guess, c[rows]), "z alone": (guess, None), "c alone": (None, c[rows])}.items():
            inputs = painter.paint_inputs(given[0], None, given[1], "held out", ids)
            found.setdefault(f"stable diffusion, {name}", []).append(painter.paint_prepared(inputs))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def caption_vectors(extractor: FeatureExtractor, captions: list[str]) -> np.ndarray:
    """(n, F) unit vectors: the text tower's pooled output, which is that of the end-of-text token."""
    tokens = extractor.clip_text.tokenizer(
        captions,
        padding="max_length",
        max_length=extractor.spaces["clip_text"][0],
        truncation=True,
        return_tensors="pt",
    )["input_ids"]
    with torch.inference_mode():
        pooled = extractor.clip_text.model(input_ids=tokens).text_embeds
    return torch.nn.functional.normalize(pooled, dim=-1).numpy()


def two_way(true: np.ndarray, made: np.ndarray) -> float:
    """Share of other scenes whose features (n, F) correlate less with what was made than the true ones."""
    n = len(true)
    correlation = np.corrcoef(made, true)[:n, n:]
    return float((correlation < np.diag(correlation)[:, None]).sum() / (n * (n - 1)))


def pixcorr(true: np.ndarray, made: np.ndarray) -> float:
    """Mean over images (n, h, w, 3) of the correlation of all pixels."""
    pairs = zip(true.reshape(len(true), -1), made.reshape(len(made), -1), strict=True)
    return float(np.mean([np.corrcoef(a.astype(np.float64), b)[0, 1] for a, b in pairs]))


def contact_sheet(pictures: dict[str, np.ndarray], n: int = 16) -> Image.Image:
    """The first n of each kind of picture (n, s, s, 3), one kind a row."""
    rows = [np.concatenate(list(made[:n]), axis=1) for made in pictures.values()]
    return Image.fromarray(np.concatenate(rows))


def judge(bundle: Path, work: Path) -> dict[str, float]:
    """Measure a bundle on held-out scenes; write `scores.json` and the model card into it, pictures into `work`."""
    numbers = [FIRST_ID["held_out"] + index for index in range(N_HELD_OUT)]
    scenes = [scene(number, 0, SCENE_SIZE) for number in numbers]
    scores, pictures = held_out_scores(bundle, scenes, [str(number) for number in numbers])
    for name, value in scores.items():
        log.info("%s: %.4f", name, value)
    (bundle / SCORES).write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    (bundle / CARD).write_text(card(bundle, scores), encoding="utf-8")
    work.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures).save(work / "held_out.png")
    return scores


def card(bundle: Path, scores: dict[str, float]) -> str:
    """The model card: what the bundle is, how it was made, how well it does, and what it is not for."""
    described, opened = describe_bundle(bundle), open_bundle(bundle)
    parameters = {f"{network.name}_parameters": f"{network.parameters:,}" for network in described.networks}
    size = sum({file: nbytes for network in described.networks for file, nbytes in network.files}.values()) / 1e6
    trained: dict[str, dict[str, Any]] = json.loads((bundle / RECORD).read_text(encoding="utf-8"))
    steps = [
        f"| {name} | {text} | {BATCH[name]} | {trained[name]['steps']:,} | {trained[name]['cpu_minutes']:.0f} "
        f"| {trained[name]['seed']} |"
        for name, text in LOSSES.items()
        if name in trained
    ]
    return CARD_TEXT.format(
        **parameters,
        megabytes=f"{size:.1f}",
        licence=described.licence,
        vdvae=opened.vdvae_config,
        spaces=described.spaces,
        image_size=described.image_size,
        z_size=opened.z_size,
        temperature=TEMPERATURE,
        n_scenes=N_SCENES,
        free_nats=FREE_NATS,
        joined=JOINED,
        coarse=" and ".join(f"{pixels} px" for pixels in COARSE),
        factors=" and ".join(f"{factor:g}" for factor in COARSE.values()),
        n_scenes_painted=SCENES_PAINTED,
        unsettled=MOST_UNSETTLED,
        left=LEAST_LEFT,
        n_held_out=N_HELD_OUT,
        n_painted=N_PAINTED,
        n_layout=N_LAYOUT,
        grid=GRID,
        training="\n".join(steps),
        scores="\n".join(f"| {name} | {value:.4g} |" for name, value in scores.items()),
    )


LOSSES = {
    "vdvae": f"-log likelihood + {KL_WEIGHT} KL; half of each batch with all but the regressed layers from the prior",
    "clip": "InfoNCE, images with one of their captions each, learnt temperature",
    "vae": "L1 and L2 of pixels, L1 of their differences, 1e-4 KL",
    "unet": "predicted noise, min-SNR weights; conditions dropped in 10%",
    "sd_unet": "the same",
}
CARD_TEXT = """# The tiny bundle

The frozen networks of Brain-Diffuser and of Takagi & Nishimoto in miniature: the same classes, code paths, file
layouts and settings as the published weights, trained on bdflow's own procedural scenes
(`bdflow/simulation/scenes.py`), so that the demo and the tests show real reconstructions on a laptop. {megabytes} MB,
float16, licence {licence}.

## Networks

| network | shape | parameters |
|---|---|---|
| vdvae | {vdvae.image_size} px; encoder `{vdvae.enc_blocks}`, decoder `{vdvae.dec_blocks}`; {vdvae.n_latent_blocks} \
blocks regressed ({vdvae.n_latents:,} values), the others drawn from the prior | {vdvae_parameters} |
| clip_vision | ViT, tokens x features {spaces[clip_vision]} | {clip_vision_parameters} |
| clip_text | tokens x features {spaces[clip_text]}; a vocabulary of everyday words | {clip_text_parameters} |
| vae | AutoencoderKL, {image_size} px to 4 x 16 x 16 latents | {vae_parameters} |
| unet | dual-guided UNet; vision and text transformers at 8 x 8 | {unet_parameters} |
| sd_unet | Stable Diffusion's UNet; a transformer at 8 x 8 under c, tokens x features {spaces[sd_text]} | \
{sd_unet_parameters} |
| sd_vae, sd_text | the same files as vae and as clip_text (hidden states, not projected); z is {spaces[sd_vae][0]} \
values, of the picture at {z_size} px | |

## Training

`python -m bdflow.training.train --out DIR`, on CPU cores. Data: {n_scenes:,} procedural scenes with five captions
each, ids from 1,000,000 (far above any demo's); the UNets saw the first {n_scenes_painted:,}.

| network | loss | batch | steps | minutes of one CPU core | seed |
|---|---|---|---|---|---|
{training}

Moving averages of the weights are shipped. The autoencoder's latent channels were brought to mean 0 and one common
standard deviation, which `scaling_factor` makes 1. The UNet's conditions were mixed with those of other scenes, up to
{unsettled:.0%}, so that it knows what regressions make of them. The VDVAE's mixture has a temperature of {temperature},
folded into its last layer, for guesses that are blurry rather than noisy; its bits below are those at temperature 1.

Stable Diffusion's UNet starts from the dual-guided one: what that does under text alone, with the projection of
CLIP's text tower multiplied into its keys and values. Its conditions are the hidden states averaged over captions,
mixed as the other's; half of them are drawn towards their mean too, to as little as {left:.0%} of their deviation, as
ridge draws what is not re-standardised.

All are those of the script, from scratch. {joined:.0%} of the VDVAE's pictures show two scenes, a disc of one in the
other, and the KL of its layers of {coarse} counts {factors} times: so layout lies in layers whose values
have a place. In the other regressed layers up to {free_nats} nats a value, averaged over a channel, cost nothing:
otherwise one channel of four is used, and no decoder can predict the others. It is trained for a short time: with 7,500
steps it had 3.1 bits and better guesses from true latents (PixCorr 0.954), but guesses from a few voxels alone changed
everywhere. It was chosen among nine, of 1,500 to 7,500 steps and KL weights of 0.2 to 1, by where such guesses change.

## Held-out scores

{n_held_out} scenes with ids from 2,000,000; guesses and reconstructions of the first {n_painted}, from their *true*
latents with the papers' settings (`--evaluate` makes these numbers; `scores.json` keeps them). Chance of a two-way
identification is 0.5. `guess` and `reconstruction` are Brain-Diffuser's; `z` is the picture that z decodes to. The
regressed latents are predicted by ridge from mean colours of {grid} x {grid} fields, of {n_layout} scenes more.

| score | value |
|---|---|
{scores}

## Limits

It knows nothing but these scenes: a dozen kinds of things, eight colours, five backgrounds, three places to stand.
Backgrounds, and the colours, numbers and places of things, are mostly right; shapes are soft, so that a face, a car
or a sign is told by its outline. Words on signs cannot be read, faces have hardly any features, small things vanish.
Of Stable Diffusion's pictures from z alone, backgrounds are right and things are not: they become others of that size.
Its CLIP is no judge of photos. For science on NSD, use the published weights.
"""
