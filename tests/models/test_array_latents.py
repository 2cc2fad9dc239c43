"""Latents that exist already: files that are no latents are named, nothing is cast or flattened."""

import io
import zipfile

import numpy as np
import pytest

from bdflow.config import load
from bdflow.errors import InputError
from bdflow.models.encoders import encoder_of

IDS, LATENT = np.array(["a b", "b.png", "00003"]), np.ones((3, 4), np.float32)


def saved(**arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def twice() -> bytes:
    out, one = io.BytesIO(), io.BytesIO()
    np.save(one, IDS)
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("stimulus_id", "latent", "stimulus_iD"):
            archive.writestr(f"{name}.npy", one.getvalue())
    return out.getvalue().replace(b"stimulus_iD", b"stimulus_id")


def lone() -> bytes:
    out = io.BytesIO()
    np.save(out, LATENT)
    return out.getvalue()


WRONG = {
    "complex": (lambda: saved(stimulus_id=IDS, latent=LATENT + 1j), "complex"),
    "text": (lambda: saved(stimulus_id=IDS, latent=LATENT.astype(str)), "<U"),
    "truths": (lambda: saved(stimulus_id=IDS, latent=LATENT > 0), "bool"),
    "columns of ids": (lambda: saved(stimulus_id=IDS[:, None], latent=LATENT), "stimulus_id (3, 1)"),
    "ids as numbers": (lambda: saved(stimulus_id=np.arange(3), latent=LATENT), "np.char.zfill"),
    "fewer": (lambda: saved(stimulus_id=IDS, latent=LATENT[:2]), "(2, 4)"),
    "flat": (lambda: saved(stimulus_id=IDS, latent=LATENT[:, 0]), "(3,)"),
    "twice an id": (lambda: saved(stimulus_id=IDS[[0, 0, 1]], latent=LATENT), "the same stimulus_id twice"),
    "twice an array": (twice, "two arrays stimulus_id"),
    "no latent": (lambda: saved(stimulus_id=IDS), "latent.npy"),
    "an array alone": (lone, "cannot be read"),
    "empty": (lambda: b"", "cannot be read"),
    "cut": (lambda: saved(stimulus_id=IDS, latent=LATENT)[:-50], "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_are_no_latents(case, tmp_path):
    content, word = WRONG[case]
    (tmp_path / "a.npz").write_bytes(content())
    with pytest.raises(InputError) as error:
        encoder_of(load("demo", [f"spaces.vdvae.encoder=array:{tmp_path / 'a.npz'}"]), "vdvae").shape
    assert word in str(error.value)
    assert str(tmp_path / "a.npz") in str(error.value)


def test_latents_as_they_are(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", stimulus_id=IDS, latent=LATENT)
    config = load("demo", [f"spaces.vdvae.encoder=array:{tmp_path / 'a.npz'}"])
    assert encoder_of(config, "vdvae").shape == (4,)
    both = load("demo", ["spaces.vdvae.encoder=array:a.npz", "spaces.vdvae.options={path: b.npz}"])
    with pytest.raises(InputError, match=r"`path` beside array:PATH"):
        encoder_of(both, "vdvae")
