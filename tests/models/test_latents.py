"""Stimuli to latents and latents to pictures: resizing, captions, and noise that follows the item."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bdflow import random
from bdflow.config import PaintOptions
from bdflow.errors import InputError
from bdflow.models.latents import FeatureExtractor
from bdflow.models.versatile.painter import Painter

IDS = [11, 12, 13, 14]
CAPTIONS = [["a red ball", "", "a ball on the grass"], ["two birds"], ["two birds", "a red ball"], ["night"]]
LATENT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (len(IDS), 17, 17, 3), dtype=np.uint8)
    return np.kron(small, np.ones((1, 25, 25, 1), np.uint8))


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor("tiny")


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter("tiny", options=PaintOptions(steps=6))


@pytest.fixture(scope="module")
def latents(extractor: FeatureExtractor, images: np.ndarray) -> dict[str, np.ndarray]:
    return extractor(images, CAPTIONS, IDS)


def test_shapes_and_types(latents: dict[str, np.ndarray], extractor: FeatureExtractor) -> None:
    assert {space: array.shape for space, array in latents.items()} == {
        space: (4, *shape) for space, shape in extractor.spaces.items()
    }
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in latents.values())


def test_resizing_is_the_protocols(
    extractor: FeatureExtractor, images: np.ndarray, latents: dict[str, np.ndarray]
) -> None:
    def bilinear(size: int) -> np.ndarray:
        return np.stack(
            [np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR)) for i in images]
        )

    np.testing.assert_array_equal(latents["clip_vision"], extractor.clip_vision.embed(bilinear(64)).numpy())
    draws = [
        torch.from_numpy(np.stack([random.normal(shape, 0, "vdvae posterior", str(i), block) for i in IDS]))
        for block, shape in enumerate(extractor.vdvae.latent_shapes)
    ]
    np.testing.assert_array_equal(latents["vdvae"], extractor.vdvae.encode(bilinear(32), draws).numpy())


def test_captions_are_averaged_and_each_string_embedded_once(
    extractor: FeatureExtractor, latents: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = extractor.clip_text.tokens
    rows = extractor.clip_text.embed(["a red ball", "a ball on the grass"]).numpy()
    np.testing.assert_allclose(latents["clip_text"][0], rows.mean(axis=0), atol=1e-6)
    seen: list[str] = []
    monkeypatch.setattr(extractor.clip_text, "tokens", lambda texts: (seen.extend(texts), tokens(texts))[1])
    extractor.caption_embeddings(CAPTIONS, IDS)
    assert sorted(seen) == sorted({text for texts in CAPTIONS for text in texts if text})


def test_a_stimulus_without_captions_is_refused(extractor: FeatureExtractor) -> None:
    with pytest.raises(InputError, match="captions of stimulus 12"):
        extractor.caption_embeddings([["a"], ["", " "]], [11, 12])
    with pytest.raises(InputError, match="1 list"):
        extractor.caption_embeddings([["a"]], [11, 12])


def test_float_pictures_are_refused(extractor: FeatureExtractor, painter: Painter, images: np.ndarray) -> None:
    with pytest.raises(InputError, match="stimuli"):
        extractor(images / 255.0, CAPTIONS, IDS)
    with pytest.raises(InputError, match="guesses"):
        painter.paint(np.zeros((1, 32, 32, 3)), np.zeros((1, 65, 48), np.float32), None, "subj01", [1])
    with pytest.raises(InputError, match="one for each stimulus_id"):
        painter.guess(np.zeros((2, 1988), np.float32), "subj01", [1])
    with pytest.raises(InputError, match="latent of the VDVAE"):
        FeatureExtractor("tiny", vdvae_latent="mode")


def test_order_and_batch_change_nothing(
    extractor: FeatureExtractor, painter: Painter, images: np.ndarray, latents: dict[str, np.ndarray]
) -> None:
    guesses = painter.guess(latents["vdvae"], "subj01", IDS)
    painted = painter.paint(guesses, latents["clip_vision"], latents["clip_text"], "subj01", IDS)
    order = [2, 0, 3, 1]
    ids = [IDS[i] for i in order]
    shuffled = extractor(images[order], [CAPTIONS[i] for i in order], ids)
    for space, array in shuffled.items():
        np.testing.assert_allclose(array, latents[space][order], atol=LATENT_TOLERANCE, err_msg=space)
    again = painter.paint(guesses[order], latents["clip_vision"][order], latents["clip_text"][order], "subj01", ids)
    assert np.abs(again.astype(int) - painted[order]).max() <= 1
    for i in range(len(IDS)):
        one = slice(i, i + 1)
        alone = painter.guess(latents["vdvae"][one], "subj01", IDS[one]).astype(int)
        difference = np.abs(alone - guesses[one])
        assert (difference > 0).mean() <= 1e-3


def test_noise_differs_by_subject_item_and_seed(painter: Painter, latents: dict[str, np.ndarray]) -> None:
    same = np.repeat(latents["vdvae"][:1], 2, axis=0)
    first, second = painter.guess(same, "subj01", [1, 2])
    assert (first != second).any()
    assert (painter.guess(same, "subj02", [1, 2])[0] != first).any()
    other = Painter("tiny", seed=1, options=painter.options)
    assert (other.guess(same, "subj01", [1, 2])[0] != first).any()
    np.testing.assert_array_equal(painter.guess(same, "subj01", np.array([1, 2]))[0], first)


DIGEST = """
import hashlib, torch
from bdflow.models.diffusion.draws import draws_of, items_of, stack
from bdflow import random
torch.set_num_threads(1)
draws = draws_of([(4, 1, 1), (4, 8, 8)], 7, "vdvae prior", ("subj01",), {ids})
draws.append(stack(random.uniform, (3, 5), 7, "mixture value", items_of("subj01", {ids})))
index = {ids}.index(42)
print(hashlib.sha256(b"".join(d[index].numpy().tobytes() for d in draws)).hexdigest())
"""


def test_noise_is_the_same_bits_in_another_process_order_and_batch() -> None:
    def digest(ids: list[int]) -> str:
        return subprocess.run(
            [sys.executable, "-c", DIGEST.format(ids=ids)], capture_output=True, text=True, check=True
        ).stdout.strip()

    keyed = [
        random.normal(shape, 7, "vdvae prior", "subj01", "42", b) for b, shape in enumerate([(4, 1, 1), (4, 8, 8)])
    ]
    keyed.append(random.uniform((3, 5), 7, "mixture value", "subj01", "42"))
    expected = hashlib.sha256(b"".join(array.tobytes() for array in keyed)).hexdigest()
    assert digest([42]) == digest([7, 9, 42]) == expected


def test_empty_batches(extractor: FeatureExtractor, painter: Painter) -> None:
    empty = extractor(np.zeros((0, 425, 425, 3), np.uint8), [], [])
    assert {space: array.shape[0] for space, array in empty.items()} == {"vdvae": 0, "clip_vision": 0, "clip_text": 0}
    guesses = painter.guess(empty["vdvae"], "subj01", [])
    assert guesses.shape == (0, 32, 32, 3)
    assert painter.paint(guesses, empty["clip_vision"], None, "subj01", []).shape == (0, 64, 64, 3)


def test_the_mean_needs_no_noise(images: np.ndarray) -> None:
    means = [FeatureExtractor("tiny", seed=seed, vdvae_latent="mean").vdvae_latents(images, IDS) for seed in (0, 1)]
    np.testing.assert_array_equal(*means)
