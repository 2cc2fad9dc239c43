"""One subject of a prepared dataset: trials, voxels, regions, noise ceiling, betas."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bdflow.datasets.arrays.betas import read_into, slow_reading, whole_numbers
from bdflow.datasets.arrays.hierarchy import Group
from bdflow.datasets.arrays.opening import PAGE, refuse
from bdflow.datasets.contract import Encoding, NoiseCeiling, SessionBetas, Trials
from bdflow.datasets.formats.grids import Grid, stated
from bdflow.datasets.formats.values import measured
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath

log = logging.getLogger(__name__)

_ALIGNED = 2  # NIfTI's code of an affine whose millimetres are of some space that nobody names
_ROUNDING = 1e-5  # of a ceiling of 1, stored as float32
_MOST_NAMED = 5


@dataclass(frozen=True)
class _Content:
    """What the small arrays of a subject hold.

    Attributes
    ----------
    trials : in the order of the array.
    sessions : rows of each session, in that order.
    flat : (voxel,) place of each voxel in the volume, in C order of (x, y, z).
    regions : names, in the order of `roi`.
    measured : names of the sessions, in the order of `valid`.
    """

    trials: Trials
    sessions: Mapping[str, slice]
    flat: np.ndarray
    regions: tuple[str, ...]
    measured: tuple[str, ...]


class Subject:
    """A subject. Raises InputError, naming all that is wrong with the subject's small arrays, at the first use of any.

    Parameters
    ----------
    group : of the subject.
    encoding : how its betas are stored.
    known : ids of all stimuli.
    """

    def __init__(self, group: Group, encoding: Encoding, known: frozenset[str]) -> None:
        self.group, self.encoding, self._known = group, encoding, known

    # --- small arrays -----------------------------------------------------------------------------------------

    @cached_property
    def content(self) -> _Content:
        """The small arrays. Raises InputError, naming all that is wrong with them."""
        wrong: list[str] = []
        trials = self._read_trials()
        sessions, flat = self._rows(trials, wrong), self._flat(wrong)
        wrong += self._unfit(trials)
        regions, measured_in = self._names("region", wrong), self._names("session_name", wrong)
        wrong += [f"region: {name!r}; expected collection/name" for name in regions if not _has_collection(name)]
        absent = [name for name in sessions if name not in measured_in] if "valid" in self.group else []
        if absent:
            wrong.append(f"session_name: no {listed(absent, _MOST_NAMED)}; expected every session that has trials")
        wrong += self._unlike_ceiling()
        refuse(self.group.where, wrong)
        whole = replace(trials, run=trials.run.astype(np.int32))
        return _Content(whole, sessions, flat, regions, measured_in)

    def _text(self, name: str, count: int) -> np.ndarray:
        return self.group[name].text() if name in self.group else np.zeros(count, "<U1")

    def _read_trials(self) -> Trials:
        group, count = self.group, self.group["beta"].shape[0]
        run = group["run"].read() if "run" in group else np.zeros(count, np.int32)
        return Trials(
            stimulus=group["stimulus_id"].text(),
            session=group["session"].text(),
            run=run,
            index=np.zeros(count, np.int32),
            condition=self._text("condition", count),
        )

    def _rows(self, trials: Trials, wrong: list[str]) -> dict[str, slice]:
        """Rows of each session; `index` of the trials is filled in."""
        session = trials.session
        starts = [0, *(np.flatnonzero(session[1:] != session[:-1]) + 1).tolist()]
        found: dict[str, slice] = {}
        for start, stop in zip(starts, [*starts[1:], len(session)], strict=True):
            name = str(session[start])
            if name in found:
                wrong.append(
                    f"session: {name!r} in trials {found[name].start} to {found[name].stop - 1} and again from trial "
                    f"{start}; expected the trials of a session one after another, in the order of the scan"
                )
            found[name] = slice(start, stop)
            trials.index[start:stop] = np.arange(stop - start)
        return found

    def _unfit(self, trials: Trials) -> Iterator[str]:
        """Trials without a session, with a run that is none, or with a stimulus that there is not."""
        nameless = np.flatnonzero(np.char.strip(trials.session) == "")
        if nameless.size:
            yield f"session: no text in {_trials(nameless)}; expected the name of a session"
        wrong_run = np.flatnonzero((trials.run < 0) | (trials.run > np.iinfo(np.int32).max))
        if wrong_run.size:
            first = wrong_run[0]
            yield f"run: {trials.run[first]} in {_trials(wrong_run)}; expected 1, 2, ..., or 0 where it is not known"
        shown, places = np.unique(trials.stimulus, return_index=True)
        unknown = [
            (int(place), str(stimulus))
            for place, stimulus in zip(places, shown, strict=True)
            if stimulus and str(stimulus) not in self._known
        ]
        if unknown:
            some = listed((f"{stimulus!r} in trial {place}" for place, stimulus in sorted(unknown)), _MOST_NAMED)
            yield (
                f"stimulus_id: {counted(len(unknown), 'stimulus', 'stimuli')} that /stimuli does not have "
                f"({some}; trials counted from 0); expected ids of /stimuli, or empty text where nothing was shown"
            )

    def _names(self, name: str, wrong: list[str]) -> tuple[str, ...]:
        if name not in self.group:
            return ()
        found = tuple(str(one) for one in self.group[name].text())
        twice = sorted({one for one in found if found.count(one) > 1})
        if twice:
            wrong.append(f"{name}: {listed(map(repr, twice), _MOST_NAMED)} more than once; expected each once")
        if any(not one.strip() for one in found):
            wrong.append(f"{name}: a name without text; expected a name")
        return found

    # --- voxels -----------------------------------------------------------------------------------------------

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(x, y, z) of volumes; without i, j and k a line of voxels."""
        if "i" not in self.group:
            return self.group["beta"].shape[1], 1, 1
        x, y, z = self.group.attrs["shape"]
        return x, y, z

    def grid(self) -> Grid:
        """Shape of volumes; their affine if one is given and is not the identity."""
        given = self.group.attrs.get("affine")
        affine = None if given is None else stated(np.array(given, np.float64), 1)
        return Grid(self.group.where, self.shape, affine)

    def affine_form(self) -> int:
        """NIfTI's code of what the affine's millimetres are of; 0 without an affine."""
        return 0 if self.grid().affine is None else int(self.group.attrs.get("affine_form", _ALIGNED))

    def _flat(self, wrong: list[str]) -> np.ndarray:
        voxels = self.group["beta"].shape[1]
        if "i" not in self.group:
            return np.arange(voxels)
        ijk = [self.group[name].read() for name in "ijk"]
        outside = np.zeros(voxels, bool)
        for values, size in zip(ijk, self.shape, strict=True):
            outside |= (values < 0) | (values >= size)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            wrong.append(
                f"i, j, k: {counted(int(outside.sum()), 'voxel')} outside the volume, the first is voxel {first} at "
                f"{tuple(int(values[first]) for values in ijk)}; expected 0 to below the attribute shape, {self.shape}"
            )
            return np.arange(voxels)
        flat = np.ravel_multi_index([values.astype(np.int64) for values in ijk], self.shape)
        order = np.argsort(flat, kind="stable")
        same = np.flatnonzero(np.diff(flat[order]) == 0)
        if same.size:
            first, second = order[same[0]], order[same[0] + 1]
            wrong.append(
                f"i, j, k: {counted(same.size, 'voxel')} at the place of another, the first is voxel {second} at "
                f"{tuple(int(values[second]) for values in ijk)}, as voxel {first}; expected each place once"
            )
        return flat

    def volume(self, values: np.ndarray, fill: object) -> np.ndarray:
        """(x, y, z) of values (voxel,), `fill` elsewhere."""
        found = np.full(int(np.prod(self.shape)), fill, values.dtype)
        found[self.content.flat] = values
        return found.reshape(self.shape)

    def listed(self) -> np.ndarray:
        """(x, y, z) bool: voxels that there are betas of."""
        return self.volume(np.ones(len(self.content.flat), bool), False)

    # --- regions and noise ceiling ----------------------------------------------------------------------------

    def regions(self) -> Regions:
        """(x, y, z) bool of each region, by `collection/name`."""
        return Regions(self)

    def mask(self, name: str | None) -> np.ndarray:
        """(x, y, z) bool of a region, or of all regions of a collection; None: every voxel that there are betas of.

        Raises InputError for a name that there is not, and for a region without voxels.
        """
        if name is None:
            return self.listed()
        names = self.content.regions
        rows = [row for row, one in enumerate(names) if name in (one, one.partition("/")[0])]
        if not rows:
            raise InputError(
                f"{self.group.where}, mask {name!r}",
                found="no such region",
                expected=f"one of {listed(names, 16)}, or a collection of them"
                if names
                else "no mask: it has no regions",
                action=f'correct `dataset.mask`, or write the region ("roi" and "region" in {PAGE})',
            )
        inside = np.asarray(self.group["roi"].truths(np.array(rows)).any(axis=0))
        if not inside.any():
            raise InputError(
                f"{self.group.where}, mask {name!r}",
                found="no voxel in it",
                expected="one or more",
                meaning="There would be nothing to decode from.",
                action="choose another mask",
            )
        return self.volume(inside, False)

    def _unlike_ceiling(self) -> Iterator[str]:
        if "noise_ceiling" not in self.group:
            return
        values, unit = self.group["noise_ceiling"].read(), self.group["noise_ceiling"].attrs["units"]
        most = {"ncsnr": np.finfo(np.float32).max, "percent": 100 * (1 + _ROUNDING), "fraction": 1 + _ROUNDING}[unit]
        beyond = np.flatnonzero((values < 0) | (values > most))
        if beyond.size:
            bounds = {"ncsnr": "0 or more, and finite", "percent": "0 to 100", "fraction": "0 to 1"}[unit]
            yield (
                f"noise_ceiling: {values[beyond[0]]:g} in voxel {beyond[0]}, and {len(beyond) - 1:,} more that cannot "
                f"be {unit}; expected {bounds}, or NaN where it is not known"
            )

    def noise_ceiling(self) -> NoiseCeiling | None:
        """The noise ceiling, NaN where there is no voxel; None if there is none."""
        if "noise_ceiling" not in self.group:
            return None
        variable = self.group["noise_ceiling"]
        repeats = variable.attrs.get("repeats")
        values = self.volume(variable.read(), np.nan)
        return NoiseCeiling(values, variable.attrs["units"], None if repeats is None else int(repeats))

    # --- betas ------------------------------------------------------------------------------------------------

    def rows(self, session: str) -> slice:
        """Rows of a session. Raises InputError if there is no such session."""
        found = self.content.sessions.get(session)
        if found is None:
            raise InputError(
                f"{self.group.where}, session {session!r}",
                found="no trial of it",
                expected=f"one of {listed(self.content.sessions, 16)}",
                action="correct `dataset.sessions`",
            )
        return found

    def betas(self, session: str, mask: np.ndarray) -> SessionBetas:
        """All betas of a session in the voxels of `mask`, in C order of (x, y, z); of voxels without betas none is
        valid.
        """
        rows = self.rows(session)
        self._check_mask(mask)
        self._say_if_slow()
        inside = np.flatnonzero(mask)
        columns = np.flatnonzero(mask.ravel()[self.content.flat])
        places = np.searchsorted(inside, self.content.flat[columns])
        said = self._said(session, columns, places, inside.size)
        where = f"{self.group['beta'].where}, session {session}"
        if self.encoding.dtype == "float32":
            betas = np.full((rows.stop - rows.start, inside.size), np.nan, np.float32)
            read_into(betas, self.group["beta"], rows, columns, places)
            return measured(betas, where, said)
        stored = np.zeros((rows.stop - rows.start, inside.size), np.int16)
        read_into(stored, self.group["beta"], rows, columns, places)
        there = np.zeros(inside.size, bool)
        there[places] = True
        return whole_numbers(stored, there, said)

    def _said(self, session: str, columns: np.ndarray, places: np.ndarray, voxels: int) -> np.ndarray | None:
        """(voxels of the mask,) bool: which the dataset says that the session measured; None where it says nothing."""
        if "valid" not in self.group:
            return None
        said = np.zeros(voxels, bool)
        row = self.content.measured.index(session)
        said[places] = self.group["valid"].truths(slice(row, row + 1))[0, columns]
        return said

    def _check_mask(self, mask: np.ndarray) -> None:
        if mask.shape != self.shape:
            raise InputError(
                self.group.where,
                found=f"volumes of shape {self.shape}",
                expected=f"the mask's shape {tuple(mask.shape)}",
                meaning="Mask and betas are not of the same subject and space.",
                action="make the mask on the grid that `shape` and i, j, k of the subject are of",
            )
        if mask.dtype != bool:
            raise TypeError(f"mask has dtype {mask.dtype}; pass a boolean mask")

    def _say_if_slow(self) -> None:
        if self._slow is None:
            return
        log.warning(
            "%s: slow to read (%s). Write it in chunks of one session, or a part of it, and some thousand voxels: %s.",
            self.group["beta"].where,
            self._slow,
            PAGE,
        )
        self._slow = None

    @cached_property
    def _slow(self) -> str | None:
        return slow_reading(self.group["beta"], list(self.content.sessions.values()))

    def files(self, sessions: Sequence[str]) -> dict[str, AnyPath]:
        """Every file of the subject but betas that hold no trial of these sessions, by its path below the root."""
        beta, group = self.group["beta"], self.group
        needed = {f"beta/{key}" for session in sessions for key in beta.keys(self.rows(session))}
        return {
            f"{group.name}/{name}": group.folder / name
            for name in group.files()
            if not name.startswith("beta/") or name == "beta/zarr.json" or name in needed
        }


class Regions(Mapping[str, np.ndarray]):
    """(x, y, z) bool of each region of a subject, made when it is asked for."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._names = subject, subject.content.regions

    @cached_property
    def _rows(self) -> np.ndarray:
        return self._subject.group["roi"].truths()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._subject.volume(self._rows[self._names.index(name)], False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _has_collection(name: str) -> bool:
    collection, _, region = name.partition("/")
    return bool(collection.strip() and region.strip())


def _trials(rows: np.ndarray) -> str:
    """Where, in words: `trial 3 (counted from 0) and 7 more`."""
    more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
    return f"trial {rows[0]} (counted from 0){more}"
