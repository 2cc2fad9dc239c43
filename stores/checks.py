"""What verify asks of a study besides its chunks: all metadata, and what lies in it that is no part of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from bdflow.stores import journal, metadata
from bdflow.stores.entries import PARTIAL, entries, strangers
from bdflow.stores.errors import CorruptMetadata, Unexpected
from bdflow.stores.metadata import FILE, INLINE, damage_of_root
from bdflow.stores.paths import zarr_store
from bdflow.stores.study import Study

log = logging.getLogger(__name__)


def damage_before_run(study: Study) -> list[CorruptMetadata]:
    """Damaged metadata of all that a run reads or writes: root, groups, stores; of the journal its uppermost group."""
    found = list(damage_of_root(study.path))
    groups = [path for path, kind in study.nodes() if kind == "group"]
    found += [damage for path in groups for damage in metadata.damage_of_bare(study.path, path)]
    if entries(study.path / journal.ROOT):
        found += metadata.damage_of_bare(study.path, journal.ROOT)
    return [*found, *(damage for path in study.paths() for damage in study.metadata_damage(path))]


def metadata_damage(study: Study) -> list[CorruptMetadata]:
    """Every file of metadata in a study that is not what was written."""
    found = damage_before_run(study)
    runs = {path.rpartition("/")[0] for path in journal.groups(study.path)}
    found += [damage for run in sorted(runs) for damage in metadata.damage_of_bare(study.path, run)]
    for path in _kept(study):
        found += metadata.damage_of_group(study.path, path, required=False)
    if not any(damage.store == "" for damage in found):
        found += damage_of_consolidated(study, {damage.store for damage in found})
    return found


def damage_of_consolidated(study: Study, damaged: set[str]) -> Iterator[CorruptMetadata]:
    """Where the metadata that the root lists differs from the files it was collected from."""
    root = metadata.read_document(study.path / FILE) or {}
    if "consolidated_metadata" not in root:
        return
    listed = root["consolidated_metadata"]["metadata"]
    if not isinstance(listed, dict):
        yield CorruptMetadata("", FILE, "a list of metadata that is none")
        return
    there = set(_every_node(study))
    for path in sorted({*listed, *there}):
        if any(path == store or path.startswith(f"{store}/") for store in damaged):
            continue
        if path not in listed or path not in there:
            what = "does not list, though it is there" if path in there else "lists, though it is not there"
            yield CorruptMetadata("", FILE, f"metadata of {path}, which it {what}")
            return
        found = metadata.read_document(study.path / path / FILE) or {}
        wanted = {**found, "consolidated_metadata": INLINE} if found.get("node_type") == "group" else found
        why = metadata.differs(listed[path], wanted) if isinstance(listed[path], dict) else "no metadata"
        if why is not None:
            yield CorruptMetadata("", FILE, f"other metadata of {path} than it has ({why})")
            return


def _kept(study: Study) -> list[str]:
    """What a study has beside its stores: entries of the journal, and digests of inputs."""
    inputs = [journal.INPUTS] if entries(study.path / journal.INPUTS) else []
    return [*journal.groups(study.path), *inputs]


def _every_node(study: Study) -> Iterator[str]:
    """Path of every group and array."""
    finished = [*study.paths(), *_kept(study)]
    yield from (path for path, kind in study.nodes() if kind == "group")
    yield from {journal.ROOT} if entries(study.path / journal.ROOT) else ()
    yield from {path.rpartition("/")[0] for path in journal.groups(study.path)}
    for path in finished:
        yield path
        yield from (f"{path}/{name}" for name, kind in entries(study.path / path).items() if kind == "folder")


def unexpected(study: Study) -> list[Unexpected]:
    """What lies in a study and is no part of it, or stands where another kind of thing belongs."""
    nodes = dict(study.nodes())
    found: list[Unexpected] = []
    for group in ["", *(path for path, kind in nodes.items() if kind == "group")]:
        for name, kind in entries(study.path / group).items():
            path = f"{group}/{name}".lstrip("/")
            if name == FILE or path in nodes or (path == journal.ROOT and kind == "folder"):
                if name == FILE and kind != "file":
                    found.append(Unexpected(group, name, "no file where a file belongs"))
            elif not (kind == "file" and name.endswith(PARTIAL)):
                what = {"file": "a file", "folder": "a folder", "other": "neither a file nor a folder"}[kind]
                found.append(Unexpected(group, name, f"{what} that is no part of the study"))
    found += [
        Unexpected(journal.ROOT, name, why) for name, why in strangers(study.path / journal.ROOT, journal.belongs)
    ]
    for path in study.paths():
        if not study.metadata_damage(path) and study.declared(path):
            found += study.store(path).unexpected()
    return found


def restore(study: Study, damages: list[CorruptMetadata]) -> list[str]:
    """Write damaged metadata again, but for the root's, which `Study.create` and `Study.consolidate` write.

    Returns
    -------
    list of str : stores of which neither metadata nor its copy is whole. They are removed, and have to be made again.
    """
    groups = {path for path, kind in study.nodes() if kind == "group"}
    groups |= {journal.ROOT, *(path.rpartition("/")[0] for path in journal.groups(study.path))}
    backend, lost = zarr_store(study.path), []
    for path in dict.fromkeys(damage.store for damage in damages if damage.store):
        if path in groups:
            metadata.write_file(backend, f"{path}/{FILE}", metadata.BARE)
        elif not metadata.restore_group(backend, study.path, path):
            study.remove(path)
            lost.append(path)
        elif not path.startswith(f"{journal.ROOT}/"):
            store = study.store(path)
            if not store.sealed and not store.missing():
                store.seal()
    return lost
