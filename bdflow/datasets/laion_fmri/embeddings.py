"""Embeddings of the stimuli that come with LAION-fMRI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bdflow.datasets.formats.hdf5 import OpenFile
from bdflow.datasets.laion_fmri.layout import below
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath, no_answer

_START, _END = "task-images_desc-", "_embeddings.h5"
_FETCH_AGAIN = "fetch the file again"
_BLOCK = 4096  # rows read at once


def embedding_files(folder: AnyPath) -> dict[str, AnyPath]:
    """Files of embeddings by the name of their model, such as CLIP."""
    return {path.name[len(_START) : -len(_END)]: path for path in below(folder, f"{_START}*{_END}")}


def read_embeddings(path: AnyPath, stimuli: Sequence[str]) -> np.ndarray:
    """Embeddings of the stimuli, (stimuli, dimensions) float32, joined by their names in `image_ids`.

    Raises
    ------
    InputError : no such file; datasets that are missing, or of other shapes; a name twice; a stimulus without an
        embedding, or with one that the file itself calls not valid; values that are not finite.
    """
    with OpenFile(path, expected="embeddings of LAION-fMRI", action=_FETCH_AGAIN) as file:
        try:
            return _read(file, path, stimuli)
        except OSError as error:
            no_answer(file.source)
            raise InputError(
                path, found=f"data that cannot be read ({error})", expected="embeddings", action=_FETCH_AGAIN
            ) from error


def _read(file: OpenFile, path: AnyPath, stimuli: Sequence[str]) -> np.ndarray:
    values, ids, flags = (file.dataset(name) for name in ("embedding", "image_ids", "valid"))
    if (
        values is None
        or ids is None
        or flags is None
        or (values.ndim, ids.ndim, flags.ndim) != (2, 1, 1)
        or not len(values) == len(ids) == len(flags)
        or (values.dtype.kind, flags.dtype.kind) != ("f", "b")
        or ids.dtype.kind not in "OS"
    ):
        raise InputError(
            path,
            found="; ".join(file.found(name) for name in ("embedding", "image_ids", "valid")),
            expected="embedding (stimulus, dimension) of floats, image_ids (stimulus,) of text, valid (stimulus,) bool",
            action=_FETCH_AGAIN,
        )
    names = [str(name) for name in ids.asstr()[:]]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{path}, image_ids", found=f"{twice[0]!r} twice", expected="each name once", action=_FETCH_AGAIN
        )
    rows = {name: row for row, name in enumerate(names)}
    absent = sorted(set(stimuli) - rows.keys())
    not_valid = [name for name in dict.fromkeys(stimuli) if name in rows and not flags[rows[name]]]
    if absent or not_valid:
        found = (
            f"no embedding of {counted(len(absent), 'stimulus', 'stimuli')}: {listed(absent)}"
            if absent
            else f"{counted(len(not_valid), 'embedding')} that the file calls not valid: {listed(not_valid)}"
        )
        raise InputError(
            path,
            found=found,
            expected="a valid embedding of each stimulus",
            meaning="What stands in its place is no embedding.",
            action="leave these stimuli out, or compute their embeddings from the pictures",
        )
    wanted = np.array([rows[name] for name in stimuli], np.int64)
    found_values = np.empty((len(wanted), values.shape[1]), np.float32)
    for start in range(0, len(values), _BLOCK):
        here = (wanted >= start) & (wanted < start + _BLOCK)
        if here.any():
            found_values[here] = values[start : start + _BLOCK][wanted[here] - start]
    bad = ~np.isfinite(found_values).all(axis=1)
    if bad.any():
        raise InputError(
            path,
            found=f"values that are not finite, of {listed(dict.fromkeys(np.array(stimuli)[bad].tolist()))}",
            expected="numbers",
            action=_FETCH_AGAIN,
        )
    return found_values
