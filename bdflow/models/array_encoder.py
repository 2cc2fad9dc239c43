"""Latents that exist already, from a file."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from bdflow import npy
from bdflow.config import NetworkSettings
from bdflow.errors import InputError, NotAtHand
from bdflow.models.encoders import Encoder, Setup, Stimuli


class ArrayEncoder(Encoder):
    """Latents that exist already: an `.npz` file of `stimulus_id` (stimulus,), text, and `latent` (stimulus, [token,]
    feature).
    """

    takes = ()

    def __init__(self, setup: Setup, path: str) -> None:
        super().__init__(setup)
        self.path = Path(path)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        key = f"spaces.{self.setup.space}.encoder"
        try:
            with zipfile.ZipFile(self.path) as archive:
                ids, latent = (npy.member(archive, name) for name in ("stimulus_id", "latent"))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            kind = NotAtHand if isinstance(error, OSError) else InputError
            raise kind(
                f"{key}, {self.path}",
                found=f"a file that cannot be read ({error})",
                expected="an .npz file with the arrays stimulus_id (stimulus,) and latent (stimulus, [token,] feature)",
                action="correct the path, or write the file with numpy.savez",
            ) from error
        npy.real(f"{key}, {self.path}, latent", latent, "real numbers")
        if ids.ndim != 1 or ids.dtype.kind != "U" or latent.ndim not in (2, 3) or len(latent) != len(ids):
            raise InputError(
                f"{key}, {self.path}",
                found=f"stimulus_id {ids.shape} {ids.dtype} and latent {latent.shape} {latent.dtype}",
                expected="text (stimulus,), the dataset's ids, and a latent for each: (stimulus, [token,] feature)",
                action="write both arrays with the same stimuli in the same order; of NSD the id is the nsd_id, from "
                "0, in five digits: np.char.zfill(nsd_id.astype(str), 5)",
            )
        if len(np.unique(ids)) < len(ids):
            raise InputError(
                f"{key}, {self.path}",
                found="the same stimulus_id twice",
                expected="each stimulus_id once",
                action="leave out one of the two rows in both arrays",
            )
        return ids, latent

    @classmethod
    def arithmetic(cls, networks: NetworkSettings, batch_size: int) -> Mapping[str, object]:
        return {}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._arrays[1].shape[1:])

    def inputs(self) -> Mapping[str, str]:
        ids, latent = self._arrays
        digest = hashlib.blake2b(digest_size=16)
        for values in (ids, latent):
            digest.update(f"{values.shape} {values.dtype.str}".encode())
            digest.update(np.ascontiguousarray(values).data)
        return {"latents": digest.hexdigest()}

    def work(self, prepared: Stimuli) -> np.ndarray:
        ids, latent = self._arrays
        order = np.argsort(ids, kind="stable")
        at = np.minimum(np.searchsorted(ids, prepared.ids, sorter=order), len(ids) - 1)
        found = order[at]
        absent = prepared.ids[ids[found] != prepared.ids]
        if absent.size:
            raise InputError(
                f"spaces.{self.setup.space}.encoder, {self.path}",
                found=f"no latent of stimulus {absent[0]} ({absent.size} of {len(prepared)} in this block are absent)",
                expected="a latent for every stimulus of the study",
                action="add the missing stimuli to that file",
            )
        return latent[found].astype(np.float32)
