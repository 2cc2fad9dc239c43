"""The best that a linear decoder of a simulated dataset can do, from what was planted (truth.npz)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def decoding_ceiling(
    root: Path, subject: str, latents: np.ndarray, nsd_ids: Sequence[int] | np.ndarray, repeats: float
) -> np.ndarray:
    """Correlation, per latent dimension, of E[latent | responses] with the latent: (dims,).

    `latents` (n, dims) of the stimuli `nsd_ids` give the covariances: use many, all that were shown at best.
    Responses are x = s + e: the planted signal s = components @ weights, and noise of variance noise_sd^2 / repeats.
    The best linear prediction is C_fs (C_ss + N)^-1 x with C the covariances of latents f and signals; its
    correlation with f is the square root of C_fs (C_ss + N)^-1 C_sf / C_ff. Never above 1; 0 for a constant latent.
    """
    truth = np.load(Path(root) / "truth.npz")
    rows = np.searchsorted(truth["nsd_id"], nsd_ids)
    assert (truth["nsd_id"][rows] == nsd_ids).all(), "latents of stimuli that no simulated subject was shown"
    signal = truth["components"][rows].astype(np.float64) @ truth[f"{subject}/weights"]
    signal -= signal.mean(axis=0)
    wanted = np.asarray(latents, np.float64).reshape(len(rows), -1)
    wanted = wanted - wanted.mean(axis=0)
    total = signal.T @ signal / len(rows) + np.diag(truth[f"{subject}/noise_sd"] ** 2 / repeats)
    shared = signal.T @ wanted / len(rows)
    explained = np.einsum("vd,vd->d", shared, np.linalg.solve(total, shared))
    variance = wanted.var(axis=0)
    return np.sqrt(np.divide(explained, variance, out=np.zeros_like(variance), where=variance > 0))
