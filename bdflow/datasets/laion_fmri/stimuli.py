"""The stimulus table and the pictures of LAION-fMRI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import h5py
import numpy as np

from bdflow.datasets.formats.hdf5 import OpenFile
from bdflow.datasets.formats.identity import missing
from bdflow.datasets.formats.pictures import decode
from bdflow.datasets.formats.tables import Table, read_table
from bdflow.errors import InputError, counted, listed
from bdflow.stores.paths import AnyPath, no_answer

_FETCH_AGAIN = "fetch the file again"


class Stimuli:
    """The rows of `task-images_metadata.csv`, each with a picture in the same row of `task-images_stimuli.h5`.

    Parameters
    ----------
    folder : that holds both.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.table_path = folder / "task-images_metadata.csv"
        self.pictures_path = folder / "task-images_stimuli.h5"

    # --- table --------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row (from 0) of each stimulus, in the order of the table.

        Raises
        ------
        InputError : a table that is missing or damaged, without stimuli, with an empty name or one twice.
        """
        names = self._table.column("image_name")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if not names or not all(name.strip() for name in names) or twice:
            found = "no row" if not names else f"{twice[0]!r} in two rows" if twice else "a row without a name"
            raise InputError(
                f"{self.table_path}, column image_name",
                found=found,
                expected="a name in each row, each name once",
                meaning="Pictures, trials and captions are joined by this name.",
                action="fetch the table again, or correct it",
            )
        return {name: row for row, name in enumerate(names)}

    @cached_property
    def shared(self) -> frozenset[str]:
        """Stimuli that every subject was to see, as the column `unique_or_shared` says.

        Raises
        ------
        InputError : as `rows`; a cell that is neither `unique` nor `shared`, in any case.
        """
        said = [cell.strip().lower() for cell in self._table.column("unique_or_shared")]
        odd = sorted(set(said) - {"unique", "shared"})
        if odd:
            raise InputError(
                f"{self.table_path}, column unique_or_shared",
                found=listed(repr(cell) for cell in odd),
                expected="`unique` or `shared` in each row",
                meaning="Which stimuli the subjects share cannot be told.",
                action="fetch the table again, or correct it",
            )
        return frozenset(name for name, cell in zip(self.rows, said, strict=True) if cell == "shared")

    @cached_property
    def _table(self) -> Table:
        return read_table(self.table_path, "LAION-fMRI's table of stimuli", ("image_name", "unique_or_shared"))

    def row(self, name: str) -> int:
        """The row of a stimulus, from 0. Raises InputError for one that is not in the table."""
        self.check([name], f"stimulus {name!r}")
        return self.rows[name]

    def check(self, names: Sequence[str], where: object) -> None:
        """Raise InputError for names that are not in the table, saying `where` they stand."""
        absent = sorted(set(names) - self.rows.keys())
        if absent:
            raise InputError(
                where,
                found=f"{counted(len(absent), 'name')} that {'is' if len(absent) == 1 else 'are'} in no row of "
                f"{self.table_path}: {listed(repr(name) for name in absent)}",
                expected=f"names of the {counted(len(self.rows), 'stimulus', 'stimuli')} there, letter for letter",
                meaning="What was shown is not known without the stimulus.",
                action="take the stimulus table and the trials from one release of the dataset",
            )

    # --- pictures -----------------------------------------------------------------------------------------------

    def pictures(self, names: Sequence[str]) -> list[np.ndarray]:
        """The picture of each stimulus: (y, x, 3) uint8, alpha composited on grey 128, what was around the pictures.

        Only the rows asked for are read. Raises InputError naming the stimulus and its row.
        """
        self.check(names, "the stimuli asked for")
        if not self.pictures_path.is_file():
            raise missing(self.pictures_path, "LAION-fMRI's pictures, which its access service hands out")
        with OpenFile(self.pictures_path, expected="LAION-fMRI's pictures", action=_FETCH_AGAIN) as file:
            images = self._images(file)
            return [self._picture(file, images, name) for name in names]

    def _images(self, file: OpenFile) -> h5py.Dataset:
        images = file.dataset("images")
        if images is None or images.ndim != 1 or h5py.check_vlen_dtype(images.dtype) != np.dtype(np.uint8):
            raise InputError(
                self.pictures_path,
                found=file.found("images"),
                expected="a dataset `images` (stimulus,), each the bytes of a picture (uint8 of any length)",
                action=_FETCH_AGAIN,
            )
        if len(images) != len(self.rows):
            raise InputError(
                self.pictures_path,
                found=counted(len(images), "picture"),
                expected=f"{len(self.rows):,}, one for each row of {self.table_path}",
                meaning="A picture has no name but its row's: none can be told from another.",
                action="take both files from one release of the dataset",
            )
        return images

    def _picture(self, file: OpenFile, images: h5py.Dataset, name: str) -> np.ndarray:
        row = self.rows[name]
        where = f"{self.pictures_path}, images[{row}], {name!r}"
        try:
            content = images[row]
        except OSError as error:
            no_answer(file.source)
            raise InputError(
                where,
                found=f"data that cannot be read ({error})",
                expected="the bytes of a picture",
                action=_FETCH_AGAIN,
            ) from error
        return decode(np.asarray(content, np.uint8).tobytes(), where)
