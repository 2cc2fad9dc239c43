"""The captions of LAION-fMRI: a row for each, people's and a language model's."""

from __future__ import annotations

from collections.abc import Collection

from bdflow.datasets.formats.tables import read_table
from bdflow.errors import InputError
from bdflow.stores.paths import AnyPath

_HUMAN, _AI = "human", "ai"


def read_captions(path: AnyPath, stimuli: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Captions by the name of the stimulus: people's by their rank, the best (1) first, then the language model's.

    Blanks around a caption are taken away; one with nothing else is none. Names beside `stimuli` are left out.

    Raises
    ------
    NotAtHand : no such file.
    InputError : a damaged table; another source than `human` and `ai`; a rank twice; captions of no stimulus at all.
    """
    table = read_table(path, "LAION-fMRI's captions", ("image_name", "caption_idx", "source", "caption"))
    found: dict[str, dict[tuple[bool, int], str]] = {}
    for line, (row, rank) in enumerate(zip(table.rows, table.whole("caption_idx"), strict=True), start=2):
        name, source = row["image_name"], row["source"].strip().lower()
        if source not in (_HUMAN, _AI):
            raise InputError(
                f"{path}, row {line}, column source",
                found=repr(row["source"]),
                expected=f"`{_HUMAN}` or `{_AI}`",
                action="fetch the table again, or correct it",
            )
        of_stimulus = found.setdefault(name, {})
        key = (source == _AI, rank)
        if key in of_stimulus:
            raise InputError(
                f"{path}, row {line}",
                found=f"a second {source} caption with caption_idx {rank} of {name!r}",
                expected="each caption_idx of a stimulus once",
                action="fetch the table again, or correct it",
            )
        of_stimulus[key] = row["caption"].strip()
    captions = {
        name: tuple(text for _, text in sorted(found[name].items()) if text) for name in stimuli if name in found
    }
    if not any(captions.values()):
        raise InputError(
            path,
            found=f"captions of {len(found):,} names, none of them a stimulus of the dataset",
            expected="captions of the stimuli, by their image_name",
            action="take captions and stimulus table from one release of the dataset",
        )
    return captions
