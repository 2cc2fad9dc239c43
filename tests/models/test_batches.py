"""Batches that do not fit: halved, remembered, told; the last one filled up."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bdflow.config import PaintOptions
from bdflow.errors import InputError
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion.batches import Batches
from bdflow.models.encoders import ENCODERS, Setup
from bdflow.models.latents import FeatureExtractor
from bdflow.models.versatile.painter import Painter
from bdflow.registry import resolve
from tests.support import logs

IDS = list(range(21, 28))


class Small:
    """A device with memory for `room` items."""

    def __init__(self, room: int) -> None:
        self.room, self.seen = room, []

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nand more")
        return x * 2 if y is None else x * 2 + y


def test_a_batch_that_does_not_fit_is_halved_and_the_smaller_size_remembered(caplog: pytest.LogCaptureFixture) -> None:
    batches, device = Batches("denoising", 16), Small(5)
    x = torch.arange(20.0)[:, None]
    assert torch.equal(batches.run(device, x), 2 * x)
    assert device.seen == [16, 8, 4, 4, 4, 4, 4]
    assert torch.equal(batches.run(device, x[:6], x[:6]), 3 * x[:6])
    assert device.seen[7:] == [4, 2], "remembered"
    assert [line.split("; ")[1].split(".")[0] for line in logs.lines(caplog)] == ["from now on 8", "from now on 4"]
    assert "denoising: a batch of 16 did not fit" in logs.lines(caplog)[0]
    assert {record.levelname for record in logs.records(caplog)} == {"WARNING"}


def test_without_a_size_all_are_taken_at_once_until_memory_says_no() -> None:
    batches, device = Batches("decoding"), Small(3)
    x = torch.arange(7.0)[:, None]
    assert torch.equal(batches.run(device, x), 2 * x)
    assert device.seen == [7, 3, 3, 1]


def test_one_item_that_does_not_fit_is_an_error_that_says_so() -> None:
    with pytest.raises(InputError, match=r"memory of the device, encoding: found too little for a single image \(CUDA"):
        Batches("encoding", 2).run(Small(0), torch.zeros(2, 1))


def test_fixed_batches_have_one_shape_and_drop_what_fills_them(caplog: pytest.LogCaptureFixture) -> None:
    batches, device = Batches("denoising", 8, fixed=True), Small(8)
    x = np.arange(11.0, dtype=np.float32)[:, None]
    assert torch.equal(batches.run(device, x, None), torch.from_numpy(2 * x))
    assert device.seen == [8, 8]
    device.room = 6
    assert torch.equal(batches.run(device, x[:3]), torch.from_numpy(2 * x[:3]))
    assert device.seen[2:] == [8, 4]
    assert len(logs.lines(caplog)) == 1


def test_where_results_depend_on_the_size_a_batch_that_does_not_fit_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batches, device = Batches("denoising", 8, fixed=True, halve=False), Small(8)
    x = torch.arange(20.0)[:, None]
    assert torch.equal(batches.run(device, x), 2 * x)
    device.room = 6
    with pytest.raises(InputError, match=r"a batch of 8, which must not be halved(.|\n)*at most 4") as error:
        batches.run(device, x)
    assert error.value.remedy == "remake"
    assert (batches.size, logs.lines(caplog)) == (8, [])
    with pytest.raises(InputError, match="a single image"):
        Batches("denoising", 1, halve=False).run(Small(0), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_fills_stores_halves_its_batches_in_float32_alone(dtype: str) -> None:
    sizes = BatchSizes(4, 4, 4, 4, fixed=True)
    for given, halves in ((sizes, dtype == "float32"), (None, True)):
        batches = Painter("tiny", dtype=dtype, guess_dtype=dtype, sizes=given).batches
        assert {batches.guess.halve, batches.encode.halve, batches.denoise.halve, batches.decode.halve} == {halves}
    for space in ENCODERS:
        encoder = resolve(space, ENCODERS, "")(Setup(space, dtype=dtype, batch_size=4))
        assert encoder.batches.halve == (dtype == "float32")


def out_of_memory_above(room: int, work, seen: list[int]):
    """`work`, on a device with memory for `room` items."""

    def limited(x, *args, **kwargs):
        seen.append(len(x))
        if len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return work(x, *args, **kwargs)

    return limited


def test_each_stage_of_painting_finds_its_own_size(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((7, 1988)).astype(np.float32) * 0.5
    vision = rng.standard_normal((7, 65, 48)).astype(np.float32) * 0.15
    options = PaintOptions(steps=4)
    roomy = Painter("tiny", options=options)
    text = rng.standard_normal((7, *roomy.bundle.spaces["clip_text"])).astype(np.float32) * 0.15
    guesses = roomy.guess(latents, "subj01", IDS)
    painted = roomy.paint(guesses, vision, text, "subj01", IDS)

    sizes = BatchSizes(guess=4, encode=8, denoise=4, decode=2, fixed=True)
    tight = Painter("tiny", options=options, sizes=sizes)
    seen: dict[str, list[int]] = {"encode": [], "denoise": [], "decode": []}
    for (stage, counts), room in zip(seen.items(), (8, 2, 1), strict=True):
        work = getattr(tight.versatile, stage)
        monkeypatch.setattr(tight.versatile, stage, out_of_memory_above(room, work, counts))
    assert (tight.guess(latents, "subj01", IDS) != guesses).mean() < 1e-3
    again = tight.paint(guesses, vision, text, "subj01", IDS)
    assert np.abs(again.astype(int) - painted).max() <= 1
    assert seen["encode"] == [8], "one batch, filled up"
    assert seen["denoise"] == [4, 2, 2, 2, 2]
    assert seen["decode"] == [2, *([1] * 7)]
    assert [line.split(":")[0] for line in logs.lines(caplog)] == ["denoising", "decoding pictures"]
    assert (tight.batches.denoise.size, tight.batches.decode.size, tight.batches.encode.size) == (2, 1, 8)


def test_pictures_do_not_depend_on_what_is_painted_beside_them() -> None:
    """With fixed batches: the same bytes alone, in other places of the batch, and among others."""
    rng = np.random.default_rng(4)
    painter = Painter("tiny", options=PaintOptions(steps=4), sizes=BatchSizes(4, 4, 4, 4, fixed=True))
    latents = rng.standard_normal((7, 1988)).astype(np.float32) * 0.5
    vision = rng.standard_normal((7, *painter.bundle.spaces["clip_vision"])).astype(np.float32) * 0.15
    guesses = painter.guess(latents, "subj01", IDS)
    painted = painter.paint(guesses, vision, None, "subj01", IDS)
    for rows in ([6], [3, 0], [6, 5, 3, 2, 1, 0], [5, 6, 4, 3, 2]):
        ids = [IDS[row] for row in rows]
        np.testing.assert_array_equal(painter.guess(latents[rows], "subj01", ids), guesses[rows])
        np.testing.assert_array_equal(painter.paint(guesses[rows], vision[rows], None, "subj01", ids), painted[rows])


def test_the_encoders_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    captions = [["a red ball"]] * 5
    extractor = FeatureExtractor("tiny", batch_size=4)
    expected = extractor(images, captions, IDS[:5])
    counts: list[int] = []
    monkeypatch.setattr(extractor.vdvae, "encode", out_of_memory_above(3, extractor.vdvae.encode, counts))
    found = extractor(images, captions, IDS[:5])
    assert counts == [4, 2, 2, 1]
    (line,) = logs.lines(caplog)
    assert line.startswith("encoding for vdvae: a batch of 4 did not fit")
    for space, latent in expected.items():
        np.testing.assert_allclose(found[space], latent, atol=1e-5)
