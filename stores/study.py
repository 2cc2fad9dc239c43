"""A study: one Zarr hierarchy that holds every store of one configuration. Only the driver declares and removes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.core.sync import sync

from bdflow.errors import lines
from bdflow.stores import inputs, journal, metadata
from bdflow.stores.casts import narrowed
from bdflow.stores.entries import entries
from bdflow.stores.errors import CorruptMetadata, NotReady, StoreError, disk_full_as_error
from bdflow.stores.metadata import COPIED_SINCE, COPY_CHUNK, FILE, Document, Unreadable, damage_of_root
from bdflow.stores.paths import AnyPath, RemotePath, place, remove_leftovers, remove_tree, zarr_store
from bdflow.stores.provenance import FORMAT, Provenance, differences, other_arithmetic
from bdflow.stores.spec import PROGRESS, Sizes, StoreSpec, create_arrays, progress_spec
from bdflow.stores.store import Store, digest

if TYPE_CHECKING:
    from bdflow.stores.spec import ZarrArray

log = logging.getLogger(__name__)
Node = Literal["store", "group", "array"]


@dataclass(frozen=True)
class State:
    """How far a store is: `absent`, `partial`, `sealed`, `stale` (made from something else; `why` says what), or
    `damaged` (its metadata is not what was written; `why` says which).
    """

    kind: Literal["absent", "partial", "sealed", "stale", "damaged"]
    done: int = 0
    total: int = 0
    why: list[str] = field(default_factory=list)


class Study:
    """A study at `location`: a directory, or a URL (s3://, gs://, memory://) of an object store; created by `create`,
    found by everything else.

    Raises
    ------
    StoreError : the location is a URL of another kind, or holds something that is not a study.
    """

    def __init__(self, location: str | Path | RemotePath) -> None:
        self.path: AnyPath = place(location)
        self._whole: dict[str, dict[str, Document]] | None = None
        if isinstance(self.path, RemotePath) and not self.path.name:
            raise StoreError(
                self.path,
                found="a whole bucket",
                expected=f"a place in it, such as {self.path}/study.zarr",
                meaning="The lock of a study lies beside it, in the same bucket.",
                action="correct `study` in the configuration",
            )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path,)

    @property
    def _backend(self) -> ZarrStore:
        return zarr_store(self.path)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Meanwhile, the metadata of a store that was found whole is not read again, but for the group's own, which is
        compared each time. For who holds the study's lock: it changes only where a store is declared or removed.
        """
        before, self._whole = self._whole, self._whole or {}
        try:
            yield
        finally:
            self._whole = before

    def _remembered(self, path: str) -> dict[str, Document] | None:
        """All metadata of a store that was found whole and whose group is as it was then; else None."""
        whole = (self._whole or {}).get(path)
        if whole is None:
            return None
        with suppress(Unreadable):
            document = metadata.read_document(self.path / path / FILE)
            if document is not None and metadata.unsealed(document) == metadata.unsealed(whole[FILE]):
                return {**whole, FILE: document}
        return None

    @property
    def exists(self) -> bool:
        """Raises StoreError if the bucket is not there."""
        found = (self.path / FILE).is_file() or self._lost_its_root()
        if not found and isinstance(self.path, RemotePath):
            self.path.bucket.require()
        return found

    def _lost_its_root(self) -> bool:
        """Whether this is a study, though the root's metadata may be gone."""
        return (self.path / journal.INPUTS / COPY_CHUNK).is_file()

    def create(self, title: str, attrs: Mapping[str, object]) -> None:
        """Make the root group, or renew its attributes; forget consolidated metadata until `consolidate`."""
        if not self.exists and self._occupied():
            raise StoreError(
                self.path,
                found="a directory with other files",
                expected="a study, an empty directory, or nothing",
                meaning="bdflow deletes nothing that it did not write; nothing was changed.",
                action="choose another `study` in the configuration, or empty that directory",
            )
        with disk_full_as_error(self.path):
            if isinstance(self.path, Path):
                self.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path, below=False)
            remove_leftovers(self.path / journal.ROOT)
            record: dict[str, object] = {"format": FORMAT, **attrs}
            record[metadata.DIGEST] = metadata.fingerprint_of({"title": title, **record})
            metadata.write_file(self._backend, FILE, metadata.group_text(metadata.folded({"title": title}, record)))
            if not (self.path / journal.ROOT / FILE).is_file():
                metadata.write_file(self._backend, f"{journal.ROOT}/{FILE}", metadata.BARE)
            inputs.create(self.path)

    def _occupied(self) -> bool:
        if isinstance(self.path, RemotePath):
            return self.path.is_dir()
        return self.path.exists() and any(self.path.iterdir())

    def root(self) -> zarr.Group:
        if not self.exists:
            raise NotReady(
                self.path,
                found="no study there",
                expected="a study",
                action="run the pipeline, which makes it; if it exists elsewhere, correct `study` in the configuration",
                remedy="run",
            )
        for damage in damage_of_root(self.path):
            raise damage
        return zarr.open_group(self._backend, mode="r", use_consolidated=False, zarr_format=3)

    def consolidate(self) -> None:
        """Collect all metadata at the root, so that xarray opens the study with one read."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component of a Zarr")
            zarr.consolidate_metadata(self._backend)

    def _document(self, path: str) -> Document | None:
        """A group's metadata. Raises CorruptMetadata if it cannot be read."""
        try:
            return metadata.read_document(self.path / path / FILE)
        except Unreadable as error:
            raise CorruptMetadata(path, FILE, str(error)) from error

    def paths(self) -> list[str]:
        """Every declared store, in alphabetical order, also those whose metadata is damaged."""
        return sorted(path for path, kind in self.nodes() if kind == "store")

    def nodes(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """What is below a group: stores, groups that hold others, and the arrays of a declaration that was killed."""
        for name, kind in entries(self.path / path).items():
            child = f"{path}/{name}".lstrip("/")
            if kind != "folder" or child == journal.ROOT:
                continue
            node = self._node(child)
            if node is not None:
                yield child, node
            if node == "group":
                yield from self.nodes(child)

    def _node(self, path: str) -> Node | None:
        where = self.path / path
        try:
            document = metadata.read_document(where / FILE)
        except Unreadable:
            document = {}
        copied = (where / COPY_CHUNK).is_file()
        if document is None:
            below = any(next(iter(where.glob(f"{far}/{COPY_CHUNK}")), None) for far in ("*", "*/*", "*/*/*"))
            return "store" if copied or self._has_marks(path) else "group" if below else None
        if metadata.is_bare(document):
            return "group"
        if copied or "provenance" in metadata.attributes_of(document) or self._has_marks(path):
            return "store"
        return "array" if document.get("node_type") == "array" else "group"

    def _has_marks(self, path: str) -> bool:
        return (self.path / path / PROGRESS / FILE).is_file()

    def declared(self, path: str) -> bool:
        """Whether there is a store. Raises CorruptMetadata if its metadata cannot be read."""
        document = self._document(path)
        if document is None or metadata.is_bare(document):
            return False
        if "provenance" not in metadata.attributes_of(document):
            raise CorruptMetadata(path, FILE, "metadata that is not that of a store")
        return True

    def metadata_damage(self, path: str) -> list[CorruptMetadata]:
        """Every file of metadata of a store that is not what was written; none where there is no store. Cheap."""
        return self._examined(path)[0]

    def whole_metadata(self, path: str) -> dict[str, Document]:
        """The documents of a store that are what was written, by file."""
        return self._examined(path)[1]

    def _examined(self, path: str) -> tuple[list[CorruptMetadata], dict[str, Document]]:
        """Damage as `metadata_damage` finds it, and metadata that is what was written, by file."""
        remembered = self._remembered(path)
        damage, known = ([], remembered) if remembered else self._compared(path)
        if self._whole is not None and FILE in known and not damage:
            self._whole[path] = known
        return damage, known

    def _compared(self, path: str) -> tuple[list[CorruptMetadata], dict[str, Document]]:
        where, recorded = self.path / path, None
        try:
            document = metadata.read_document(where / FILE)
            if document is None and not (where / COPY_CHUNK).is_file():
                return [CorruptMetadata(path, FILE, "no file")] if self._has_marks(path) else [], {}
            if document is not None and metadata.is_bare(document):
                return [], {}
            if document is not None:
                recorded = metadata.attributes_of(document)["provenance"]["format"]
        except (Unreadable, KeyError, TypeError):
            pass
        old = isinstance(recorded, int) and recorded < COPIED_SINCE
        damage, known = metadata.examined_group(self.path, path, required=not old)
        if not damage and old:
            self._document(path)
        return damage, known

    def store(self, path: str) -> Store:
        """A declared store. Raises NotReady if there is none."""
        remembered = self._remembered(path)
        if remembered is None and not self.declared(path):
            raise NotReady(
                path,
                found=f"no such store in the study {self.path}",
                expected="a store that was made before",
                action="run the pipeline, which makes it",
                remedy="run",
            )
        return Store(self.path, path, remembered)

    def state(self, path: str, expected: Provenance) -> State:
        """How far the store is, against what it should be made from."""
        return self.looked_at(path, expected)[0]

    def looked_at(self, path: str, expected: Provenance | None) -> tuple[State, Store]:
        """Its state (without `expected`, whatever it was made from), and the store, with the metadata that was read."""
        damage, known = self._examined(path)
        store = Store(self.path, path, known)
        if damage:
            return State("damaged", why=[f"{one.file}: {one.why}" for one in damage]), store
        if FILE not in known and not self.declared(path):
            return State("absent"), store
        total = store.n_partitions
        done = total - len(store.missing())
        why = differences(store.provenance, expected) if expected else []
        if expected and not why and 0 < done < total:
            why = other_arithmetic(store.provenance, expected)
        if why:
            return State("stale", done, total, why), store
        sealed = known[FILE]["attributes"].get("sealed", False) if FILE in known else store.sealed
        return State("sealed" if sealed and done == total else "partial", done, total), store

    def sealed(self, path: str, expected: Provenance) -> Store:
        """The store, ready to be read. Raises NotReady, saying what is missing and the stage that makes it."""
        state, store = self.looked_at(path, expected)
        if state.kind == "sealed":
            return store
        if state.kind == "damaged":
            raise self.metadata_damage(path)[0]
        found = {
            "absent": "no such store",
            "partial": f"{state.done} of {state.total} partitions",
            "stale": "a store made from something else:\n  " + "\n  ".join(state.why),
        }[state.kind]
        stale = state.kind == "stale"
        raise NotReady(
            path,
            found=found,
            expected="a finished store (sealed: every partition is written)",
            action=f"replace the stale store: run the stage `{expected.stage}` again and let it remake what is stale "
            "(or choose another `study` to keep both)"
            if stale
            else f"run the stage `{expected.stage}`, which makes it",
            remedy=f"{'remake' if stale else 'run'}:{expected.stage}",
        )

    def declare(
        self,
        path: str,
        spec: StoreSpec,
        sizes: Sizes,
        given: Mapping[str, np.ndarray],
        provenance: Provenance,
    ) -> Store:
        """Write a store's metadata, coordinates and other given arrays; or take up the one that is there.

        Raises StoreError if the store there was made from something else, or differs from the declaration, and, before
        anything is written, for a given value that its array's dtype cannot hold.
        """
        problems, given = spec.problems(sizes), spec.given(sizes, given)
        if problems:
            raise StoreError(
                path,
                found="a declaration that contradicts itself:" + lines(problems),
                expected="dimensions with a size above 0, and partitions that own whole chunks",
                meaning="It is about the sizes of the data, or about `chunks` in the configuration.",
                action="correct `chunks` in the configuration; look whether its inputs are empty",
            )
        with disk_full_as_error(self.path / path):
            if self.declared(path):
                damage, known = self._examined(path)
                if damage:
                    raise damage[0]
                store = Store(self.path, path, known)
                missing = store.missing()
                if not _begun_otherwise(store, missing, provenance):
                    return self._take_up(store, missing, spec, sizes, given, provenance)
            for array in spec.arrays:
                if array.role != "data" and array.dtype != "str":  # before anything is written
                    narrowed(given[array.name], array.dtype, f"{path}/{array.name}")
            self.remove(path)
            for folder in metadata.groups_down_to(self._backend, self.path, path):
                remove_leftovers(self.path / folder, below=False)
            progress = (progress_spec(spec, sizes), {"partition": spec.n_partitions(sizes)})
            arrays = create_arrays(self._backend, path, [*((array, sizes) for array in spec.arrays), progress])
            digests = {}
            for array in spec.arrays:
                if array.role != "data":
                    digests[array.name] = _write_given(arrays[array.name], given[array.name], path)
            shown: dict[str, Any] = {
                "title": spec.title,
                "coordinates": " ".join(a.name for a in spec.arrays if a.role == "coordinate"),
                "sealed": 0,
            }
            record = {
                "partition": dict(spec.partition),
                "data": [a.name for a in spec.data],
                "given": digests,
                "provenance": provenance.attrs(),
            }
            written = metadata.finish(self._backend, path, metadata.folded(shown, record), arrays)
        if self._whole is not None:
            self._whole[path] = written
        return Store(self.path, path, written)

    def refuse_to_mix(self, path: str, expected: Provenance) -> None:
        """Raise StoreError if partitions of a store, were they filled now, would round otherwise than its others."""
        store = self.store(path)
        why = other_arithmetic(store.provenance, expected)
        if why and store.n_partitions > 1:
            raise StoreError(
                path,
                found="a store whose other values would be computed in another way now:" + lines(why),
                expected="the arithmetic that it was begun with",
                meaning="Values computed in both ways differ by rounding; one store never holds both.",
                action="set that back to finish this store as it was begun, or replace the store (remake)",
                remedy="remake",
            )

    def _take_up(
        self,
        store: Store,
        missing: Sequence[int],
        spec: StoreSpec,
        sizes: Sizes,
        given: Mapping[str, np.ndarray],
        provenance: Provenance,
    ) -> Store:
        path = store.path
        remove_leftovers(self.path / path)
        why = differences(store.provenance, provenance)
        if why:
            raise StoreError(
                path,
                found="a store made from something else:" + lines(why),
                expected="a store made from what this configuration says",
                meaning="Old and new results are never mixed.",
                action="replace what is stale, or choose another `study` in the configuration to keep both",
                remedy="remake",
            )
        if missing:
            self.refuse_to_mix(path, provenance)
        problems = [
            line
            for array in spec.arrays
            for line in (
                array.check(store.arrays[array.name], sizes) if array.name in store.arrays else [f"{array.name}: gone"]
            )
        ]
        if problems:
            raise StoreError(
                path,
                found="arrays that differ from the declaration:" + lines(problems),
                expected="the arrays that were declared",
                meaning="The store was changed after it was declared, or written by another version of bdflow.",
                action=f"delete the directory {path} in the study and run the pipeline again, or restore a copy",
                remedy="run",
            )
        for array in spec.arrays:
            if array.role == "data":
                continue
            for damage in store.given_damage(array.name):
                log.warning("%s Writing it again.", damage.headline)
                _write_given(store.arrays[array.name], given[array.name], path)
        return store

    def remove(self, path: str) -> None:
        """Delete a store, its metadata first, so that a half-deleted store is never taken for one."""
        (self._whole or {}).pop(path, None)
        for name in (FILE, COPY_CHUNK):
            with disk_full_as_error(self.path / path / name):
                sync(self._backend.delete(f"{path}/{name}"))
        remove_tree(self.path / path)


def _begun_otherwise(store: Store, missing: Sequence[int], provenance: Provenance) -> bool:
    """Whether a store without a partition says of its arithmetic what would not be true: it is declared anew."""
    empty = len(missing) == store.n_partitions > 0
    same_content = not differences(store.provenance, provenance)
    return empty and same_content and bool(other_arithmetic(store.provenance, provenance))


def _write_given(array: ZarrArray, value: np.ndarray, path: str) -> int:
    value = np.asarray(value)
    if value.shape != array.shape:
        raise StoreError(
            f"{path}/{array.basename}",
            found=f"values of shape {value.shape}",
            expected=f"the declared shape {array.shape}",
            meaning="It is a mistake in the code that declares this store.",
            action="report it, with this message, to those who maintain that code",
        )
    value = np.ascontiguousarray(narrowed(value, array.dtype, f"{path}/{array.basename}"))
    array[...] = value
    return digest([value])
