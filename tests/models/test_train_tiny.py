"""The training of the tiny bundle in its short mode, its losses against references, and the shipped scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import logistic
from torch import nn

from bdflow.config import PaintOptions
from bdflow.models.latents import FeatureExtractor
from bdflow.models.versatile.painter import Painter
from bdflow.models.weights.bundle import TINY, check_bundle, open_bundle
from bdflow.simulation.scenes import scene
from bdflow.training import losses, tasks, train
from bdflow.training.bundle import untrained, write_bundle
from bdflow.training.judge import N_HELD_OUT, SCORES, held_out_scores, paint_stable, two_way
from bdflow.training.scenes import FIRST_ID, SCENE_SIZE, Scenes, load_scenes
from bdflow.training.settings import RECORD

from .conftest import relative

MODULES = ("vdvae", "clip_vision", "clip_text", "vae", "unet", "sd_unet")
SCORE_TOLERANCE = 0.03
PSNR_TOLERANCE = 0.3


@pytest.mark.slow(kind="science")
def test_the_short_mode_learns_and_writes_a_bundle_that_paints(tmp_path: Path) -> None:
    out, work = tmp_path / "bundle", tmp_path / "work"
    found = train.train(out, work, short=True)
    assert set(found) == set(train.NETWORKS)
    for name, progress in found.items():
        assert np.mean(progress.losses[-5:]) < np.mean(progress.losses[:3]), name
    assert check_bundle(out).problems == ()
    one = scene(7, 0, 64)
    latents = FeatureExtractor(out)(one.image[None], [one.captions], [7])
    painter = Painter(out, options=PaintOptions(steps=3))
    guess = painter.guess(latents["vdvae"], "subj01", [7])
    painted = painter.paint(guess, latents["clip_vision"], latents["clip_text"], "subj01", [7])
    size = open_bundle(out).image_size
    assert painted.shape == (1, size, size, 3)
    pictures = paint_stable(out, one.image[None], [one.captions], [7])
    assert {made.shape for made in pictures.values()} == {(1, size, size, 3)}
    again = train.train(out, work, ["vae"], short=True)
    assert again["vae"].losses == found["vae"].losses


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow(kind="training goes on")
def test_networks_that_are_not_trained_are_those_of_the_bundle_that_it_starts_from(tmp_path: Path) -> None:
    """All others byte for byte, with their records; the new one has its steps, seed and time said."""
    out, work = tmp_path / "bundle", tmp_path / "work"
    train.train(out, work, ["sd_unet"], short=True, start=TINY)
    found, before = files(out), files(TINY)
    new = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    changed = {name for name in found if name not in before or found[name] != before[name]}
    assert changed - new <= {"manifest.json", RECORD}
    assert new <= set(found)
    record = json.loads(found[RECORD])
    assert record.pop("sd_unet").keys() == {"steps", "cpu_minutes", "seed"}
    said = json.loads(before[RECORD])
    assert record == {name: said[name] for name in ("vae", "clip", "vdvae", "unet")}
    assert check_bundle(out).problems == ()


def test_stable_diffusion_starts_as_the_dual_guided_unet_under_text_alone() -> None:
    bundle = open_bundle("tiny")
    one = scene(7, 0, 64)
    scenes = Scenes([7], *(np.zeros((1, 1, 1, 3), np.uint8),) * 3, [one.captions])
    module, dual = tasks.from_dual(bundle, scenes).eval(), bundle.load("unet")
    text = bundle.clip_text()
    draw = torch.Generator().manual_seed(0)
    x, step = torch.randn(5, 4, 16, 16, generator=draw), torch.tensor([3, 200, 400, 700, 999])
    with torch.inference_mode():
        tokens = text.tokens(one.captions)
        embedded, model = text.embed_tokens(tokens), text.model
        states = model.text_model(input_ids=tokens).last_hidden_state
        norms = model(input_ids=tokens).text_embeds.norm(dim=-1)[:, None, None]
        conditions = {"vision": None, "text": embedded * norms * (1 / norms).mean(), "mixing": 1.0}
        expected, found = (
            of(x, step, encoder_hidden_states=x, cross_attention_kwargs=given).sample
            for of, given in ((dual, conditions), (module, {"text": states}))
        )
        moved = module(x, step, encoder_hidden_states=x, cross_attention_kwargs={"text": 0 * states}).sample
    assert relative(found, expected) < 1e-5
    assert relative(moved, expected) > 1e-3


@pytest.fixture(scope="module")
def vdvae_loss() -> Callable[..., tuple[float, float]]:
    """The VDVAE's loss and KL, of the same noise whatever is asked."""
    vdvae = open_bundle("tiny").load("vdvae").float()
    images = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def loss(**options: Any) -> tuple[float, float]:
        with torch.inference_mode():
            draw = torch.Generator().manual_seed(1)
            found = losses.vdvae_loss(vdvae, images, draw, kl_weight=0.5, from_prior=0.5, **options)
        return float(found[0]), float(found[1])

    return loss


BITS = 1 / (np.log(2) * 32 * 32 * 3)


def test_regressed_channels_cost_their_free_nats_at_least(vdvae_loss) -> None:
    costs, kl = zip(*(vdvae_loss(free_nats=free) for free in (0.0, 0.1, 1e4, 3e4)), strict=True)
    assert len(set(kl)) == 1
    assert costs[0] < costs[1] < costs[2]
    n_latents = open_bundle("tiny").vdvae_config.n_latents
    assert costs[3] - costs[2] == pytest.approx(0.5 * n_latents * 2e4 * BITS, rel=1e-5)


def test_coarse_layers_cost_more_and_have_nothing_free(vdvae_loss) -> None:
    """Of each size the KL is linear in its factor; all sizes twice as dear is the whole KL twice."""
    plain, kl = vdvae_loss()
    more = {size: vdvae_loss(coarse={size: 3.0})[0] - plain for size in (1, 4, 8, 16, 32)}
    assert min(more.values()) >= 0
    assert sum(more.values()) / 2 == pytest.approx(0.5 * kl, rel=1e-4)
    layers = open_bundle("tiny").layers
    free = [vdvae_loss(free_nats=nats, coarse={1: 20.0, 4: 8.0})[0] for nats in (1e4, 3e4)]
    fine = sum(c * h * w for c, h, w in layers if h >= 8)
    assert free[1] - free[0] == pytest.approx(0.5 * fine * 2e4 * BITS, rel=1e-5)


def test_joined_pictures_are_discs_of_one_scene_in_another() -> None:
    images, others = torch.zeros(400, 32, 32, 3, dtype=torch.uint8), torch.full((400, 32, 32, 3), 9, dtype=torch.uint8)
    found = losses.joined(images, others, np.random.default_rng(0), 0.5)[..., 0].numpy()
    filled = (found == 9).mean((1, 2))
    assert 0.4 < (filled > 0).mean() < 0.6
    assert set(np.unique(found)) == {0, 9}
    y, x = np.indices((32, 32)) + 0.5
    for picture in found[(filled > 0) & (filled < 0.97)]:
        inside = picture == 0
        corners = [(cy, cx) for cy in (0, 31) for cx in (0, 31) if inside[cy, cx]]
        if corners:  # cut by the edge: its centre is not that of what is seen
            continue
        far = np.hypot(y - y[inside].mean(), x - x[inside].mean())
        if far[inside].max() < 12 and inside[1:-1, 1:-1].sum() == inside.sum():
            assert far[inside].max() <= far[~inside].min() + 1
    assert not losses.joined(images, others, np.random.default_rng(0), 0).any()


def test_conditions_are_shrunk_towards_their_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    conditions, mean = torch.randn(2, 3, 4, generator=draw), torch.randn(3, 4, generator=draw)
    found = losses.shrink(conditions, mean, torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(found[0], conditions[0])
    torch.testing.assert_close(found[1], 0.25 * conditions[1] + 0.75 * mean)


@pytest.mark.slow(kind="training goes on")
def test_a_killed_training_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)

    def task(dies_at: int | None = None) -> tasks.Task:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)

        def loss(step: int, progress: float, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
            if step == dies_at:
                raise KeyboardInterrupt
            return module(torch.randn(4, 3, generator=generator)).square().mean() + float(rng.random())

        return tasks.Task("toy", module, loss, steps=9, lr=0.1)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = task()
    losses = train.fit(expected, whole).losses
    with pytest.raises(KeyboardInterrupt):
        train.fit(task(dies_at=4), broken)
    resumed = task()
    assert train.fit(resumed, broken).losses == losses
    assert torch.equal(resumed.module.weight, expected.module.weight)  # type: ignore[arg-type]


def test_the_learning_rate_ends_low_wherever_on_its_cosine_the_training_ends() -> None:
    end = train.COOL_DOWN / 2
    assert train.learning_rate(0, 0) == pytest.approx(1)
    for along in (0.4, 0.8):
        before, middle, after = (train.learning_rate(along, 1 - left) for left in (2 * end, end, 0))
        assert before == pytest.approx(0.02 + 0.49 * (1 + np.cos(np.pi * along)))
        assert middle == pytest.approx(before / 2)
        assert after == pytest.approx(0.02 * before)


def test_weights_are_stored_alike_whatever_their_strides(tmp_path: Path) -> None:
    modules = {name: untrained(name) for name in MODULES}
    for layout in (torch.contiguous_format, torch.channels_last):
        modules["vdvae"] = modules["vdvae"].to(memory_format=layout)
        weights = {name: {k: v.numpy() for k, v in module.state_dict().items()} for name, module in modules.items()}
        write_bundle(tmp_path / str(layout), weights, source="a test")
    one, two = (Path(path, "vdvae/model.safetensors").read_bytes() for path in sorted(tmp_path.iterdir()))
    assert one == two


def test_an_untrained_network_is_the_same_every_time() -> None:
    first, second = untrained("unet").state_dict(), untrained("unet").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_mixture_likelihood_is_that_of_scipys_logistic() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    parameters = rng.normal(size=(2, 3, 3, 20))
    found = losses.mixture_log_likelihood(torch.from_numpy(parameters), torch.from_numpy(images), 2)
    x = images / 127.5 - 1
    logits, rest = parameters[..., :2], parameters[..., 2:].reshape(2, 3, 3, 3, 6)
    weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean, scale, c = rest[..., :2], np.exp(rest[..., 2:4]), np.tanh(rest[..., 4:])
    shift = np.zeros_like(mean)
    shift[..., 1, :] = c[..., 0, :] * x[..., 0, None]
    shift[..., 2, :] = c[..., 1, :] * x[..., 0, None] + c[..., 2, :] * x[..., 1, None]
    value = x[..., None]
    above = np.where(value > 0.999, 1, logistic.cdf(value + 1 / 255, mean + shift, scale))
    below = np.where(value < -0.999, 0, logistic.cdf(value - 1 / 255, mean + shift, scale))
    expected = np.log(((above - below).prod(-2) * weight).sum(-1)).sum((1, 2))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)


def test_settled_latents_have_one_scale_and_decode_to_the_same() -> None:
    vae = untrained("vae").eval()
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    pixels = losses.signed(images)
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample  # type: ignore[operator]
        scale = train.settle_latents(vae, images)
        z = vae.encode(pixels).latent_dist.mean  # type: ignore[operator]
        after = vae.decode(z).sample  # type: ignore[operator]
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close((z * scale).std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)


def test_scenes_are_drawn_once_and_in_any_number_of_processes(tmp_path: Path) -> None:
    one, two = load_scenes(tmp_path / "a", "train", 120), load_scenes(tmp_path / "b", "train", 120, processes=2)
    np.testing.assert_array_equal(one.painted, two.painted)
    assert one.captions == two.captions
    folder = next((tmp_path / "a").iterdir())
    stamp = (folder / "clip.npy").stat().st_mtime_ns
    load_scenes(tmp_path / "a", "train", 120)
    assert (folder / "clip.npy").stat().st_mtime_ns == stamp


def test_two_way_counts_the_others() -> None:
    features = np.random.default_rng(0).normal(size=(5, 8))
    assert two_way(features, features) == 1
    assert two_way(features, -features) == 0


@pytest.mark.slow(kind="science")
def test_the_shipped_bundle_has_the_scores_it_is_said_to_have() -> None:
    said = json.loads((TINY / SCORES).read_text())
    numbers = [FIRST_ID["held_out"] + index for index in range(N_HELD_OUT)]
    scenes = [scene(number, 0, SCENE_SIZE) for number in numbers]
    found, _ = held_out_scores("tiny", scenes, [str(number) for number in numbers])
    assert found.keys() == said.keys()
    for name, value in found.items():
        assert value == pytest.approx(said[name], abs=PSNR_TOLERANCE if "dB" in name else SCORE_TOLERANCE), name
