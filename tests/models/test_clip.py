"""CLIP embeddings against the formula on transformers' own outputs, and its processing against transformers' own."""

import numpy as np
import pytest
import torch
from PIL import Image

from bdflow.errors import InputError
from bdflow.models.clip import ClipProcessing, ClipText, ClipVision
from bdflow.models.weights.bundle import open_bundle
from bdflow.training.bundle import CLIP_MEAN, CLIP_STD, PROCESSOR

CAPTIONS = ["A red ball on the green grass.", "two dogs", "", "an unheard-of zyxquv £ 漢字 word", "sea " * 40]


@pytest.fixture(scope="module")
def vision() -> ClipVision:
    return open_bundle("tiny").clip_vision()


@pytest.fixture(scope="module")
def text() -> ClipText:
    return open_bundle("tiny").clip_text()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)


def processing_like_the_real_one() -> ClipProcessing:
    config = {"size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    return ClipProcessing.from_config(config, "test")


def test_processing_equals_the_formula(images: np.ndarray) -> None:
    found = processing_like_the_real_one()(images)
    for image, pixels in zip(images, found, strict=True):
        resized = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float64)
        expected = (resized / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
        np.testing.assert_allclose(pixels.permute(1, 2, 0), expected, atol=2e-6)


def test_processing_equals_that_of_transformers(images: np.ndarray) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    theirs = module.CLIPImageProcessorPil(**PROCESSOR)(images=list(images), return_tensors="pt")["pixel_values"]
    ours = ClipProcessing.from_config(PROCESSOR, "test")(images)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_float_images_are_refused_not_rescaled_twice(vision: ClipVision, images: np.ndarray, scale: float) -> None:
    with pytest.raises(InputError, match="divided by 255 a second time"):
        vision.embed(images.astype(np.float32) * np.float32(scale))


def test_other_processing_is_refused() -> None:
    for change in ({"resample": 2}, {"crop_size": 200}, {"do_normalize": False}):
        with pytest.raises(InputError, match="resample"):
            ClipProcessing.from_config({**PROCESSOR, **change}, "test")


def test_vision_equals_the_formula(vision: ClipVision, images: np.ndarray) -> None:
    with torch.inference_mode():
        hidden = vision.model(pixel_values=vision.processing(images)).last_hidden_state
        tokens = vision.model.visual_projection(vision.model.vision_model.post_layernorm(hidden))
        expected = tokens / torch.linalg.vector_norm(tokens[:, 0], dim=-1)[:, None, None]
    found = vision.embed(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[:, 0].norm(dim=-1), torch.ones(3))


def test_text_equals_the_formula(text: ClipText) -> None:
    found = text.embed(CAPTIONS)
    for caption, row in zip(CAPTIONS, found, strict=True):
        ids = text.tokenizer([caption], padding="max_length", max_length=24, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            encoder = text.model.text_model
            out = (encoder or text.model)(input_ids=ids["input_ids"])
            pooled = text.model.text_projection(out.pooler_output)
            expected = text.model.text_projection(out.last_hidden_state) / pooled.norm(dim=-1)[:, None, None]
        torch.testing.assert_close(row[None], expected, rtol=1e-5, atol=1e-6)


def test_pooled_token_is_the_first_end_token(text: ClipText) -> None:
    ids = text.tokenizer(["two dogs"], padding="max_length", max_length=24, return_tensors="pt")["input_ids"][0]
    end = text.model.config.eos_token_id
    position = int((ids == end).nonzero()[0])
    assert (ids[position:] == end).all()
    torch.testing.assert_close(text.embed(["two dogs"])[0, position].norm(), torch.tensor(1.0))


def test_a_caption_does_not_depend_on_the_others(text: ClipText) -> None:
    together = text.embed(CAPTIONS)
    other = text.embed([CAPTIONS[0], *(["a blue sky"] * (len(CAPTIONS) - 1))])
    assert torch.equal(together[0], other[0])
    for caption, row in zip(CAPTIONS, together, strict=True):
        torch.testing.assert_close(text.embed([caption])[0], row, rtol=0, atol=1e-6)


def test_batches_of_pictures_agree(vision: ClipVision, images: np.ndarray) -> None:
    together = vision.embed(images)
    assert torch.equal(vision.embed(images[[0, 2, 1]])[0], together[0])
    for index in range(3):
        torch.testing.assert_close(vision.embed(images[index : index + 1])[0], together[index], rtol=0, atol=1e-6)


def test_unconditional_embeddings(vision: ClipVision, text: ClipText) -> None:
    torch.testing.assert_close(text.unconditional(), text.embed([""]))
    grey = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (127, 128)])
    below, above = vision.embed(grey)
    torch.testing.assert_close(vision.unconditional()[0], (below + above) / 2, rtol=0, atol=2e-3)


def test_everyday_words_are_single_tokens(text: ClipText) -> None:
    ids = text.tokenizer("a blue bird above the sea")["input_ids"]
    assert len(ids) == 6 + 2
    assert "漢字" in text.tokenizer.decode(text.tokenizer("漢字")["input_ids"])


def test_no_texts_no_rows(text: ClipText) -> None:
    assert text.embed([]).shape == (0, 24, 48)
