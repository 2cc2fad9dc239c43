"""The metadata of a group of arrays, kept twice: as Zarr's own files, and as text in an array with a checksum.

A group that is finished (a store, an entry of the journal) has one array more, `metadata`: a single string, JSON, the
text of every `zarr.json` in the group by its name. Its chunk carries a crc32c like every chunk, so it is known to be
right without the files it is a copy of; it is read without them, too. It is written once, before the group's
attributes. Whether a store is sealed is the one thing that changes later, and follows from its marks.

Groups that only hold others have no content: their metadata is always `BARE`. The root's attributes carry a digest of
themselves, and its consolidated metadata is compared with the files it was collected from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.group import GroupMetadata
from zarr.core.sync import sync

from bdflow.stores.entries import entries
from bdflow.stores.errors import CorruptMetadata
from bdflow.stores.paths import AnyPath, RemotePath
from bdflow.stores.spec import ArraySpec, create_arrays

if TYPE_CHECKING:
    from zarr.core.common import JSON

    from bdflow.stores.spec import ZarrArray

FILE = "zarr.json"
AT_ONCE = 10
"""Requests to an object store at a time."""
COPY = "metadata"
COPY_CHUNK = f"{COPY}/c/0"
DIGEST = "digest"
COPIED_SINCE = 3
"""The format of studies since which metadata is kept twice; of older ones nothing is known."""
INLINE = {"kind": "inline", "must_understand": False, "metadata": {}}
Document = dict[str, Any]
RECORD = "bdflow"
"""The attribute that holds what bdflow keeps of a group, as JSON: netCDF has no attributes within attributes."""


class Unreadable(ValueError):
    """A file of metadata that is not what it should be; the text says what it is."""


def create_text(backend: ZarrStore, path: str, name: str, doc: str) -> ZarrArray:
    """An array of one string in the group at `path`; `write_string` fills it."""
    return create_arrays(backend, path, [(ArraySpec(name, ("text",), "str", doc), {"text": 1})])[name]


def write_string(array: ZarrArray, content: str) -> None:
    """Write the string of an array of one, at once."""
    array[...] = np.array([content], dtype=np.dtypes.StringDType())


def group_text(attrs: Mapping[str, object]) -> bytes:
    """The file of a group with these attributes, as Zarr writes it."""
    metadata = GroupMetadata(attributes=dict(attrs), zarr_format=3)
    return metadata.to_buffer_dict(default_buffer_prototype())[FILE].to_bytes()


def folded(shown: Mapping[str, object], record: Mapping[str, object]) -> dict[str, Any]:
    """Attributes of a group: what a reader wants to see, and what bdflow keeps, as one text."""
    return {**shown, RECORD: json.dumps(record)}


def unfolded(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """All attributes side by side. Raises Unreadable if the record is not a JSON object."""
    record = attrs.get(RECORD, "{}")
    if not isinstance(record, str):
        raise Unreadable("a record that is not text")
    return {**{name: value for name, value in attrs.items() if name != RECORD}, **parse(record.encode())}


def attributes_of(document: Document | None) -> dict[str, Any]:
    """Attributes of a group's document, side by side; none where they cannot be read."""
    attrs = (document or {}).get("attributes")
    try:
        return unfolded(attrs) if isinstance(attrs, dict) else {}
    except Unreadable:
        return {}


def write_file(backend: ZarrStore, key: str, content: bytes) -> None:
    """Write one file of a hierarchy, at once."""
    sync(backend.set(key, default_buffer_prototype().buffer.from_bytes(content)))


def groups_down_to(backend: ZarrStore, study: AnyPath, path: str) -> list[str]:
    """Make the groups that are not there yet, from the root down to `path`; the paths of all."""
    parts = path.split("/")
    folders = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    for folder in folders:
        if not (study / folder / FILE).is_file():
            write_file(backend, f"{folder}/{FILE}", BARE)
    return folders


def finish(
    backend: ZarrStore, path: str, attrs: Mapping[str, JSON], arrays: Mapping[str, ZarrArray] | None = None
) -> dict[str, Document]:
    """Finish a group whose `arrays`, by name, were just declared: write the copy of its metadata; then, last and at
    once, attributes. Nothing is read. Returns the documents of the group, by file.
    """
    return _finish(backend, path, attrs, {name: array_text(array) for name, array in (arrays or {}).items()})


def _finish(
    backend: ZarrStore, path: str, attrs: Mapping[str, JSON], texts: Mapping[str, bytes]
) -> dict[str, Document]:
    doc = "copy of every zarr.json of this group: JSON, the text of each by its name"
    array = create_text(backend, path, COPY, doc)
    own, texts = group_text(attrs), {**dict(sorted(texts.items())), COPY: array_text(array)}
    files = {FILE: own, **{f"{name}/{FILE}": text for name, text in texts.items()}}
    write_string(array, json.dumps({name: content.decode() for name, content in files.items()}))
    write_file(backend, f"{path}/{FILE}", own)
    return {name: parse(content) for name, content in files.items()}


def array_text(array: ZarrArray) -> bytes:
    """The file of an array, as Zarr writes it."""
    return array.metadata.to_buffer_dict(default_buffer_prototype())[FILE].to_bytes()


def _arrays(where: AnyPath) -> list[str]:
    """Names of a group's arrays, but for the copy."""
    return sorted(name for name, kind in entries(where).items() if kind == "folder" and name != COPY)


# --- reading, without trust -------------------------------------------------------------------------------------------


def read_document(file: AnyPath) -> Document | None:
    """A JSON object; None if there is no file. Raises Unreadable, saying what is there instead; PermissionError."""
    content = _content(file)
    return None if content is None else parse(content)


def _content(file: AnyPath) -> bytes | None:
    try:
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:  # says nothing of the file
        raise
    except OSError as error:
        raise Unreadable(f"something that cannot be read as a file ({error.strerror})") from error


def parse(content: bytes) -> Document:
    """A JSON object. Raises Unreadable."""
    try:
        found = json.loads(content, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise Unreadable("metadata that is not JSON") from error
    if not isinstance(found, dict):
        raise Unreadable("metadata that is not a JSON object")
    return found


def _integer(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)


def read_string(where: AnyPath) -> str | None:
    """The one string of the array at `where`, without its own metadata. None if its chunk is not there.

    Raises
    ------
    Unreadable : its bytes are not those that were written. PermissionError : they may not be read.
    """
    chunk = _content(where / "c/0")
    if chunk is None:
        return None
    body, checksum = chunk[:-4], int.from_bytes(chunk[-4:], "little")
    if len(chunk) < 12 or google_crc32c.value(body) != checksum:
        raise Unreadable("bytes that do not match their checksum")
    return body[8:].decode()


def read_copy(where: AnyPath) -> dict[str, Document] | None:
    """The documents of the copy in a group, by file. None if there is no copy. Raises Unreadable."""
    text = read_string(where / COPY)
    return None if text is None else {name: parse(content.encode()) for name, content in json.loads(text).items()}


def canonical(document: object) -> str:
    """One text for all spellings of a document."""
    return json.dumps(document, sort_keys=True)


def differs(found: Document, expected: Document) -> str | None:
    """Where a document differs from the one that was written, or None. White space and order do not count."""
    if canonical(found) == canonical(expected):
        return None
    where = _first_difference(_spread(found), _spread(expected), "") or _first_difference(found, expected, "")
    return f"other metadata than was written ({where or 'numbers spelt otherwise'})"


def _spread(document: Document) -> Document:
    """A document with its record as an object, so that a difference in it has a name."""
    attrs = document.get("attributes")
    if not isinstance(attrs, dict) or RECORD not in attrs:
        return document
    try:
        return {**document, "attributes": {**attrs, RECORD: parse(str(attrs[RECORD]).encode())}}
    except Unreadable:
        return document


def _first_difference(found: object, expected: object, at: str) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted({*found, *expected}):
            inner = f"{at}.{name}".lstrip(".")
            if name not in found:
                return f"{inner} is missing"
            if name not in expected:
                return f"{inner} is new"
            deeper = _first_difference(found[name], expected[name], inner)
            if deeper:
                return deeper
        return ""
    return "" if canonical(found) == canonical(expected) else at


def unsealed(document: Document) -> Document:
    """A group's document as it was when the group was declared."""
    attrs = document.get("attributes")
    if not isinstance(attrs, dict) or not isinstance(attrs.get("sealed"), int):
        return document
    return {**document, "attributes": {**attrs, "sealed": 0}}


def is_bare(document: Document) -> bool:
    """Whether this is the metadata of a group without content."""
    return canonical(document) == canonical(parse(BARE))


def damage_of_group(study: AnyPath, path: str, *, required: bool) -> list[CorruptMetadata]:
    """Every file of metadata of a finished group that is not what was written.

    Parameters
    ----------
    required : whether a group without a copy is damaged; else nothing is known of it.
    """
    return examined_group(study, path, required=required)[0]


def examined_group(study: AnyPath, path: str, *, required: bool) -> tuple[list[CorruptMetadata], dict[str, Document]]:
    """Damage as `damage_of_group` finds it, and the documents of files that are what was written, by name."""
    where, whole = study / path, {}
    try:
        copy = read_copy(where)
    except Unreadable as error:
        return [CorruptMetadata(path, COPY_CHUNK, str(error))], {}
    if copy is None:
        return [CorruptMetadata(path, COPY_CHUNK, "no file")] if required else [], {}
    damage = []
    for (name, expected), found in zip(copy.items(), _documents([where / name for name in copy]), strict=True):
        if isinstance(found, Unreadable):
            why: str | None = str(found)
        elif found is None:
            why = "no file"
        else:
            why = differs(unsealed(found) if name == FILE else found, expected)
        if why:
            damage.append(CorruptMetadata(path, name, why))
        elif isinstance(found, dict):
            whole[name] = found
    return damage, whole


def _documents(files: Sequence[AnyPath]) -> list[Document | Unreadable | None]:
    """Each file as `read_document` reads it, or why it cannot be read; objects of a bucket several at a time."""

    def read(file: AnyPath) -> Document | Unreadable | None:
        try:
            return read_document(file)
        except Unreadable as error:
            return error

    if len(files) < 2 or not isinstance(files[0], RemotePath):
        return [read(file) for file in files]
    with ThreadPoolExecutor(min(AT_ONCE, len(files))) as threads:
        return list(threads.map(read, files))


def damage_of_bare(study: AnyPath, path: str) -> Iterator[CorruptMetadata]:
    """What is wrong with the metadata of a group that only holds others."""
    try:
        found = read_document(study / path / FILE)
    except Unreadable as error:
        yield CorruptMetadata(path, FILE, str(error))
        return
    if found is None:
        yield CorruptMetadata(path, FILE, "no file")
    elif not is_bare(found):
        yield CorruptMetadata(path, FILE, differs(found, parse(BARE)) or "")


def damage_of_root(study: AnyPath) -> Iterator[CorruptMetadata]:
    """What is wrong with a study's own metadata, but for what it lists of others."""
    try:
        found = read_document(study / FILE)
    except Unreadable as error:
        yield CorruptMetadata("", FILE, str(error))
        return
    if found is None:
        yield CorruptMetadata("", FILE, "no file")
        return
    listed = found.get("consolidated_metadata", INLINE)
    frame = {**found, "attributes": {}, "consolidated_metadata": listed}
    if isinstance(listed, dict) and "metadata" in listed:
        frame["consolidated_metadata"] = {**listed, "metadata": {}}
    why = differs(frame, {**parse(BARE), "consolidated_metadata": INLINE})
    if why is None and not _attributes_whole(attributes_of(found)):
        why = "attributes that do not match their digest"
    if why is not None:
        yield CorruptMetadata("", FILE, why)


def _attributes_whole(attrs: Mapping[str, object]) -> bool:
    content = {name: value for name, value in attrs.items() if name != DIGEST}
    if DIGEST not in attrs:
        recorded = attrs.get("format")
        return isinstance(recorded, int) and recorded < COPIED_SINCE
    return bool(fingerprint_of(content) == attrs[DIGEST])


# --- restoring --------------------------------------------------------------------------------------------------------


def restore_group(backend: ZarrStore, study: AnyPath, path: str) -> bool:
    """Write every damaged file of metadata of a finished group anew: from the copy, or the copy from the files.

    Returns
    -------
    bool : False if neither is whole: the group is lost.
    """
    where = study / path
    try:
        text = read_string(where / COPY)
    except Unreadable:
        text = None
    if text is None:
        return _copy_anew(backend, study, path)
    damaged = [damage.file for damage in damage_of_group(study, path, required=True)]
    files: dict[str, str] = json.loads(text)
    for name in damaged:
        write_file(backend, f"{path}/{name}", files[name].encode())
    return True


def _copy_anew(backend: ZarrStore, study: AnyPath, path: str) -> bool:
    """Make the copy from the files, if they say of themselves that they are whole."""
    where = study / path
    try:
        document = read_document(where / FILE)
        if document is None or not _whole(document):
            return False
        attrs = unsealed(document)["attributes"]
        texts = {name: _content(where / name / FILE) or b"{}" for name in _arrays(where)}
        if any(parse(text).get("node_type") != "array" for text in texts.values()):
            return False
    except (Unreadable, KeyError, TypeError):
        return False
    sync(backend.delete(f"{path}/{COPY_CHUNK}"))
    sync(backend.delete(f"{path}/{COPY}/{FILE}"))
    sealed = document["attributes"].get("sealed")
    _finish(backend, path, attrs, texts)
    if sealed:
        write_file(backend, f"{path}/{FILE}", group_text({**attrs, "sealed": 1}))
    return True


def _whole(document: Document) -> bool:
    attrs = document.get("attributes", {})
    if not isinstance(attrs, dict):
        return False
    try:
        known = unfolded(attrs)
    except Unreadable:
        return False
    return "provenance" not in known or provenance_is_whole(known["provenance"])


UNPROVED = ("fingerprint", "arithmetic", "versions")
"""What of a store's record its fingerprint does not cover."""


def provenance_is_whole(record: object) -> bool:
    """Whether a store's record of what it was made from agrees with its own fingerprint."""
    if not isinstance(record, dict):
        return False
    content = {name: value for name, value in record.items() if name not in UNPROVED}
    return fingerprint_of(content) == record.get("fingerprint")


def fingerprint_of(content: Mapping[str, object]) -> str:
    """Hex digest of a JSON object."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


BARE = group_text({})
