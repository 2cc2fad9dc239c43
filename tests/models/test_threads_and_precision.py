"""Draws and resizing over threads, what float32 means on a GPU, and the precision of the VDVAE."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bdflow import random
from bdflow.config import load
from bdflow.models import threads
from bdflow.models.config import BatchSizes
from bdflow.models.diffusion.batches import Batches, bucket
from bdflow.models.diffusion.draws import draws_of, stack
from bdflow.models.encoders import encoder_of, encoder_settings
from bdflow.models.painters import painter_kind
from bdflow.models.resizing import resize
from bdflow.models.stable_diffusion.painter import StablePainter
from bdflow.models.versatile.painter import Painter
from bdflow.models.weights.bundle import open_bundle


def test_draws_and_pictures_are_the_same_over_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)
    used: set[str] = set()
    normal = random.normal

    def watched(*args: Any) -> np.ndarray:
        used.add(threading.current_thread().name)
        return normal(*args)

    monkeypatch.setattr(random, "normal", watched)
    found = []
    for count in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        drawn = draws_of([(4, 1, 1), (2, 8, 8)], 7, "vdvae prior", ("subj01",), ["a", "b", "c", "d"])
        drawn.append(stack(random.uniform, (3, 5), 7, "mixture value", [("a",), ("b",)]))
        found.append([*drawn, torch.from_numpy(resize(images, 33, Image.Resampling.BICUBIC))])
        if count == "1":
            assert used == {threading.current_thread().name}, "one thread needs no others"
    assert len(used) > 1
    for one, several in zip(*found, strict=True):
        assert torch.equal(one, several)
    np.testing.assert_array_equal(found[0][0][2].numpy(), normal((4, 1, 1), 7, "vdvae prior", "subj01", "c", 0))
    assert [len(resize(images[:0], 8, Image.Resampling.BICUBIC)), len(stack(normal, (2,), 0, "x", []))] == [0, 0]


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ZeroDivisionError):
        threads.over_threads(lambda n: 1 // n, [1, 0, 2])
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.allowed() >= 1


def test_every_network_that_is_loaded_settles_that_float32_is_no_tf32() -> None:
    bundle = open_bundle("tiny")
    loads: list[Callable[[], object]] = [bundle.vdvae, bundle.clip_vision, lambda: bundle.load("unet")]
    for load_one in loads:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        load_one()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


def test_what_was_settled_is_recorded_where_there_is_such_a_choice() -> None:
    for device, expected in (("cpu", {"device": "cpu"}), ("cuda:1", {"device": "cuda", "tf32": False})):
        assert load("demo", [f"networks.device={device}"]).networks.arithmetic(denoise=4) == expected


def test_the_vdvae_has_a_precision_of_its_own() -> None:
    half = load("demo", ["networks.dtype=bfloat16"])
    assert encoder_of(half, "vdvae").setup.dtype == "float32"
    assert encoder_of(half, "clip_vision").setup.dtype == "bfloat16"
    assert encoder_settings(half, "vdvae") == encoder_settings(load("demo"), "vdvae")
    kind = painter_kind(half, "brain_diffuser")
    assert kind.guess_arithmetic() == {"device": "cpu"}
    assert "batches" in kind.arithmetic("full")
    painter: Any = kind.load()
    assert next(painter.vdvae.parameters()).dtype == torch.float32
    assert (painter.batches.guess.halve, painter.batches.denoise.halve) == (True, False)
    other = load("demo", ["networks.vdvae_dtype=float16"])
    assert encoder_settings(other, "vdvae")["networks"] == {"dtype": "float16"}
    assert "batches" in painter_kind(other, "brain_diffuser").guess_arithmetic()
    assert painter_kind(other, "stable_diffusion").guess_arithmetic() == {"device": "cpu"}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_painter_that_is_made_directly_decodes_guesses_as_settings_do_by_default(dtype: str) -> None:
    usual = load("demo", [f"networks.dtype={dtype}"])
    for name, made in (("brain_diffuser", Painter), ("stable_diffusion", StablePainter)):
        assert made("tiny", dtype=dtype).guess_dtype == painter_kind(usual, name).guess_dtype
    assert Painter("tiny", dtype=dtype, guess_dtype="bfloat16").guess_dtype == "bfloat16"
    assert next(Painter("tiny", dtype=dtype).vdvae.parameters()).dtype == torch.float32


def test_guesses_that_the_autoencoder_decodes_depend_on_its_switches_too() -> None:
    half = load("demo", ["networks.dtype=float16"])
    assert "speed" in painter_kind(half, "stable_diffusion").guess_arithmetic()
    assert (
        "speed" not in painter_kind(load("demo", ["networks.vdvae_dtype=float16"]), "brain_diffuser").guess_arithmetic()
    )


# --- any number of waiting items ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "shapes"), [(8, {1, 2, 4, 8}), (6, {1, 2, 4, 6}), (None, {1, 2, 4, 8, 16})])
def test_batches_of_any_number_come_in_few_shapes(most: int | None, shapes: set[int]) -> None:
    seen: set[int] = set()

    def work(x: Tensor) -> Tensor:
        seen.add(len(x))
        return 2 * x

    batches = Batches("denoising", most, buckets=True)
    for n in range(1, 14):
        x = torch.arange(float(n))
        assert torch.equal(batches.run(work, x), 2 * x)
    assert seen == shapes
    assert [bucket(n, 6) for n in (1, 3, 5, 6)] == [1, 4, 6, 6]


@pytest.mark.parametrize("how", ["default", "cuda_graphs"])
def test_what_is_served_compiled_is_padded_to_few_shapes(how: str) -> None:
    def sizes(settings: list[str], batched: bool) -> list[tuple[int | None, bool, bool]]:
        painter: Any = painter_kind(load("demo", settings), "stable_diffusion").load(batched=batched)
        of = painter.batches
        return [(one.size, one.fixed, one.buckets) for one in (of.guess, of.encode, of.denoise, of.decode)]

    compiled = [f"networks.speed.compile={how}", "painters.stable_diffusion.decode_batch_size=2"]
    assert sizes(compiled, False) == [(8, False, True)] * 3 + [(2, False, True)]
    assert sizes([], False) == [(None, False, False)] * 4
    assert sizes(compiled, True) == [(8, True, False)] * 3 + [(2, True, False)]


def test_pictures_of_padded_batches_are_those_of_others() -> None:
    rng = np.random.default_rng(4)
    latents = rng.standard_normal((3, 1988)).astype(np.float32) * 0.5
    padded, free = Painter("tiny", sizes=BatchSizes(4, 4, 4, 4, buckets=True)), Painter("tiny")
    a, b = (of.guess(latents, "subj01", ["x", "y", "z"]).astype(int) for of in (padded, free))
    assert (np.abs(a - b) > 1).mean() <= 1e-3


def test_an_error_of_memory_in_any_words_halves_a_batch_and_others_are_raised() -> None:
    def work(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return x

    batches = Batches("denoising", 8)
    assert torch.equal(batches.run(work, torch.arange(5.0)), torch.arange(5.0))
    assert batches.size == 2

    def wrong(x: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        Batches("denoising", 8).run(wrong, torch.arange(5.0))
