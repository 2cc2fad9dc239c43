"""What verify asks of a study besides its chunks: all metadata, and what lies in it that is no part of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from bdflow.stores import journal, metadata
from bdflow.stores.entries import PARTIAL, entries, strangers
from bdflow.stores.errors import CorruptMetadata, Unexpected
from bdflow.stores.metadata import FILE, INLINE, Document, damage_of_root
from bdflow.stores.paths import zarr_store
from bdflow.stores.study import Node, Study

log = logging.getLogger(__name__)


Nodes = Mapping[str, Node]
"""`dict(Study.nodes())`: what is in a study, looked at once."""


def damage_before_run(study: Study, nodes: Nodes | None = None) -> list[CorruptMetadata]:
    """Damaged metadata of all that a run reads or writes: root, groups, stores; of the journal its uppermost group."""
    nodes = dict(study.nodes()) if nodes is None else nodes
    found = list(damage_of_root(study.path))
    found += [damage for path in _of(nodes, "group") for damage in metadata.damage_of_bare(study.path, path)]
    if entries(study.path / journal.ROOT):
        found += metadata.damage_of_bare(study.path, journal.ROOT)
    return [*found, *(damage for path in _of(nodes, "store") for damage in study.metadata_damage(path))]


def _of(nodes: Nodes, kind: Node) -> list[str]:
    return sorted(path for path, found in nodes.items() if found == kind)


def metadata_damage(study: Study, nodes: Nodes | None = None) -> list[CorruptMetadata]:
    """Every file of metadata in a study that is not what was written."""
    nodes = dict(study.nodes()) if nodes is None else nodes
    found, kept, whole = damage_before_run(study, nodes), _kept(study), dict[str, Document]()
    runs = {path.rpartition("/")[0] for path in kept} - {journal.ROOT}
    found += [damage for run in sorted(runs) for damage in metadata.damage_of_bare(study.path, run)]
    for path in kept:
        damage, known = metadata.examined_group(study.path, path, required=False)
        found += damage
        whole |= {f"{path}/{name}": document for name, document in known.items()}
    if not any(damage.store == "" for damage in found):
        for path in _of(nodes, "store"):
            whole |= {f"{path}/{name}": document for name, document in study.whole_metadata(path).items()}
        found += damage_of_consolidated(study, {damage.store for damage in found}, nodes, whole)
    return found


def damage_of_consolidated(
    study: Study, damaged: set[str], nodes: Nodes | None = None, whole: Mapping[str, Document] | None = None
) -> Iterator[CorruptMetadata]:
    """Where the metadata that the root lists differs from the files it was collected from; `whole`: those that were
    read already and are what was written.
    """
    nodes, whole = dict(study.nodes()) if nodes is None else nodes, whole or {}
    root = metadata.read_document(study.path / FILE) or {}
    if "consolidated_metadata" not in root:
        return
    listed = root["consolidated_metadata"]["metadata"]
    if not isinstance(listed, dict):
        yield CorruptMetadata("", FILE, "a list of metadata that is none")
        return
    there = set(_every_node(study, nodes))
    for path in sorted({*listed, *there}):
        if any(path == store or path.startswith(f"{store}/") for store in damaged):
            continue
        if path not in listed or path not in there:
            what = "does not list, though it is there" if path in there else "lists, though it is not there"
            yield CorruptMetadata("", FILE, f"metadata of {path}, which it {what}")
            return
        file = f"{path}/{FILE}"
        found = whole[file] if file in whole else metadata.read_document(study.path / file) or {}
        wanted = {**found, "consolidated_metadata": INLINE} if found.get("node_type") == "group" else found
        why = metadata.differs(listed[path], wanted) if isinstance(listed[path], dict) else "no metadata"
        if why is not None:
            yield CorruptMetadata("", FILE, f"other metadata of {path} than it has ({why})")
            return


def _kept(study: Study) -> list[str]:
    """What a study has beside its stores: entries of the journal, and digests of inputs."""
    inputs = [journal.INPUTS] if entries(study.path / journal.INPUTS) else []
    return [*journal.groups(study.path), *inputs]


def _every_node(study: Study, nodes: Nodes) -> Iterator[str]:
    """Path of every group and array."""
    kept = _kept(study)
    yield from _of(nodes, "group")
    yield from {journal.ROOT} if entries(study.path / journal.ROOT) else ()
    yield from {path.rpartition("/")[0] for path in kept} - {journal.ROOT}
    for path in [*_of(nodes, "store"), *kept]:
        yield path
        yield from (f"{path}/{name}" for name, kind in entries(study.path / path).items() if kind == "folder")


def unexpected(study: Study, nodes: Nodes | None = None) -> list[Unexpected]:
    """What lies in a study and is no part of it, or stands where another kind of thing belongs."""
    nodes = dict(study.nodes()) if nodes is None else nodes
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
    for path in _of(nodes, "store"):
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
