"""Bodies of requests, read without trust: JSON, an .npy file, an .npz file."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bdflow import npy
from bdflow.errors import InputError, counted, listed

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"


class Refusal(InputError):
    """A request that is not answered, and the HTTP status that says so."""

    def __init__(self, status: int, where: str, *, found: str, expected: str, action: str, meaning: str = "") -> None:
        super().__init__(where, found=found, expected=expected, action=action, meaning=meaning)
        self.status = status


def _json_kind(content: object) -> str:
    kinds = {list: "a list", str: "text alone", type(None): "null"}
    return kinds.get(type(content), "a single value")


def contents(
    kind: str,
    query: Sequence[tuple[str, str]],
    body: bytes,
    arrays: Mapping[str, Callable[[], Mapping[str, object]]],
) -> dict[str, object]:
    """What a request says, in its query and its body, by name.

    Parameters
    ----------
    kind : the header Content-Type.
    arrays : by kinds of bodies that are arrays: what reads them.

    Raises
    ------
    Refusal : 400, 415, 422.
    """
    kind = kind.partition(";")[0].strip().lower()
    if kind == JSON:
        if query:
            raise Refusal(
                422,
                "query",
                found="the query " + listed(name for name, _ in query),
                expected="nothing beside a JSON body",
                action="say these in the JSON body",
            )
        try:
            content = json.loads(body, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise Refusal(
                400, "body", found=f"text that is not JSON ({error})", expected="JSON", action="correct the body"
            ) from error
        if not isinstance(content, dict):
            raise Refusal(
                400,
                "body",
                found=f"JSON that is {_json_kind(content)}",
                expected="a JSON object (`{...}`)",
                action="send an object with the names that /openapi.json lists",
            )
        return content
    if kind not in arrays:
        raise Refusal(
            415,
            "Content-Type",
            found=repr(kind),
            expected=f"{JSON} or {', '.join(arrays)}",
            action="say in this header what the body is",
        )
    given: dict[str, Any] = {}
    for name, text in query:
        given[name] = [*given[name], text] if isinstance(given.get(name), list) else text
        if name in ("seed", "stimulus_id"):
            several = [value for key, value in query if key == name]
            given[name] = several if len(several) > 1 else text
    for name, value in arrays[kind]().items():
        if name in given:
            raise Refusal(
                422,
                name,
                found="it in the query and in the body",
                expected="it once",
                action=f"leave `{name}` out of the query, or of the body",
            )
        given[name] = value
    return given


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return found


def npy_array(content: bytes, where: str) -> np.ndarray:
    """The array of an .npy file in memory: its header is believed only as far as its bytes go. Raises Refusal."""
    stream = io.BytesIO(content)
    try:
        shape, fortran, dtype = npy.header(stream)
    except ValueError as error:
        found = f"bytes that are not an .npy file ({error})"
        action = "write it with numpy.save"
        raise Refusal(400, where, found=found, expected="what numpy.save writes", action=action) from error
    data = content[stream.tell() :]
    if dtype.kind not in npy.REAL:
        raise Refusal(422, where, found=f"dtype {dtype}", expected="real numbers", action="save it as float32")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise Refusal(
            400,
            where,
            found=f"{len(data):,} bytes for {dtype} of shape {shape}",
            expected=f"{math.prod(shape) * dtype.itemsize:,} bytes",
            action="send the whole file",
        )
    if not data:
        raise Refusal(
            422, where, found=f"no value (shape {shape})", expected="an item at least", action="send one or more items"
        )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def npz_arrays(content: bytes, most: int) -> dict[str, np.ndarray]:
    """The arrays of an .npz file in memory; what they unpack to is limited as the body is. Raises Refusal."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            size = sum(info.file_size for info in infos)
            if size > most or len(infos) > 16:
                raise Refusal(
                    413,
                    "body",
                    found=f"{counted(len(infos), 'file')} of {size:,} bytes unpacked",
                    expected=f"at most 16 files, of {most:,} bytes",
                    action="send fewer items at a time",
                )
            files = {info.filename.removesuffix(".npy"): archive.read(info) for info in infos}
            if len(files) < len(infos):
                raise ValueError("two arrays of one name")
    except Refusal:
        raise
    except Exception as error:  # zipfile and its decompressors raise what they come upon
        found = f"bytes that are not an .npz file ({error})"
        action = "write it with numpy.savez"
        raise Refusal(400, "body", found=found, expected="what numpy.savez writes", action=action) from error
    return {name: npy_array(file, f"{name}.npy") for name, file in files.items()}
