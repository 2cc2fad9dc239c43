"""The form of each array in a prepared dataset: its dimensions, the kind of its values, its attributes."""

from __future__ import annotations

import base64
import binascii
import difflib
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bdflow.datasets.arrays.hierarchy import Group, Variable

KINDS = {
    "text": "text",
    "beta": "float32 or int16",
    "byte": "uint8",
    "whole": "whole numbers",
    "truth": "bool, or uint8 of 0 and 1",
    "real": "floating-point numbers",
}


@dataclass(frozen=True)
class Form:
    """What an array has to be.

    Attributes
    ----------
    dims : names of its dimensions, in order.
    kind : one of `KINDS`.
    required : whether the group cannot be without it.
    """

    dims: tuple[str, ...]
    kind: str
    required: bool = False


STIMULI: Mapping[str, Form] = {
    "stimulus": Form(("stimulus",), "text", required=True),
    "image": Form(("stimulus", "y", "x", "rgb"), "byte"),
    "image_file": Form(("stimulus",), "text"),
    "caption": Form(("stimulus", "caption_number"), "text"),
}
SPLITS: Mapping[str, Form] = {
    "split": Form(("split",), "text", required=True),
    "stimulus": Form(("stimulus",), "text", required=True),
    "part": Form(("split", "stimulus"), "text", required=True),
}
SUBJECT: Mapping[str, Form] = {
    "beta": Form(("trial", "voxel"), "beta", required=True),
    "stimulus_id": Form(("trial",), "text", required=True),
    "session": Form(("trial",), "text", required=True),
    "run": Form(("trial",), "whole"),
    "condition": Form(("trial",), "text"),
    "session_name": Form(("session_name",), "text"),
    "valid": Form(("session_name", "voxel"), "truth"),
    "i": Form(("voxel",), "whole"),
    "j": Form(("voxel",), "whole"),
    "k": Form(("voxel",), "whole"),
    "region": Form(("region",), "text"),
    "roi": Form(("region", "voxel"), "truth"),
    "noise_ceiling": Form(("voxel",), "real"),
}
_MAY_BE_NONE = {"region", "caption_number"}
_MASKING = ("_FillValue", "missing_value")
_SCALING = ("scale_factor", "add_offset")


def misfits(group: Group, forms: Mapping[str, Form]) -> Iterator[str]:
    """What is wrong with a group's arrays, each in a line: absent ones, other dimensions or types, lengths that differ,
    values that are packed, names that are nearly one of the format's.
    """
    absent = [name for name in forms if name not in group]
    for name in absent:
        if forms[name].required:
            form = forms[name]
            yield f"{group.name}: no array {name} ({', '.join(form.dims)}) of {KINDS[form.kind]}"
    for name in group.others:
        near = difflib.get_close_matches(name, absent, 1, 0.8)
        if near:
            yield f"{group.name}/{name}: a name that means nothing; did you mean {near[0]}?"
    lengths: dict[str, tuple[int, str]] = {}
    for name, variable in group.arrays.items():
        form = forms[name]
        if variable.dims != form.dims:
            yield f"{variable.name}: dimensions {_named(variable)}; expected ({', '.join(form.dims)})"
            continue
        if 0 not in variable.shape and not _is(form.kind, variable.dtype):
            yield f"{variable.name}: values of type {variable.dtype.name}; expected {KINDS[form.kind]}"
        yield from _packed(variable, form.kind)
        for dim, length in zip(form.dims, variable.shape, strict=True):
            first = lengths.setdefault(dim, (length, name))
            if first[0] != length:
                yield f"{variable.name}: {length:,} along {dim}; {first[1]} has {first[0]:,}"
    for dim, (length, name) in lengths.items():
        if not length and dim not in _MAY_BE_NONE:
            yield f"{group.name}/{name}: nothing along {dim}"


def _named(variable: Variable) -> str:
    if all(dim is None for dim in variable.dims):
        return f"without names, of lengths {variable.shape}"
    return f"({', '.join(dim or 'unnamed' for dim in variable.dims)})"


def _is(kind: str, dtype: np.dtype) -> bool:
    if kind == "beta":
        return (dtype.kind, dtype.itemsize) in (("f", 4), ("i", 2))
    if kind == "byte":
        return dtype == np.uint8
    if kind == "truth":
        return dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize == 1)
    return dtype.kind in {"text": "TU", "whole": "iu", "real": "f"}[kind]


def _packed(variable: Variable, kind: str) -> Iterator[str]:
    """Attributes that make other values of those that are stored: int16 betas may have a scale factor, others none."""
    attrs, whole = variable.attrs, variable.dtype.kind in "iu"
    for name in _MASKING:
        if name in attrs and kind != "text" and (whole or not is_nan(attrs[name])):
            why = (
                "xarray would make each such value NaN, and it may be a measurement"
                if kind == "beta" and whole
                else "no value but NaN stands for a missing one"
            )
            yield f"{variable.name}: an attribute {name}; expected none, since {why}"
    if "_Unsigned" in attrs:
        yield f"{variable.name}: an attribute _Unsigned; expected none: its type says what the values are"
    for name, nothing in zip(_SCALING, (1, 0), strict=True):
        if name in attrs and not (kind == "beta" and whole and name == "scale_factor") and attrs[name] != nothing:
            allowed = "only betas of int16 may have a scale_factor" if name == "scale_factor" else "none has one"
            yield f"{variable.name}: an attribute {name} = {attrs[name]!s:.40}; expected none: {allowed}"


def is_nan(value: object) -> bool:
    """Whether an attribute is NaN: a number, the word, or as xarray writes it in Zarr v3 (a double in base64)."""
    if isinstance(value, (int, float)):
        return math.isnan(value)
    if not isinstance(value, str):
        return False
    if value.lower() == "nan":
        return True
    try:
        (number,) = struct.unpack("<d", base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError, struct.error):
        return False
    return math.isnan(number)


def is_number(value: object) -> bool:
    """A finite number, and no truth."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
