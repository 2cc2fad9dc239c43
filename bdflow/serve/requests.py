"""What the service is asked for: bodies read without trust, checked against what this study can answer."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bdflow import npy
from bdflow.errors import InputError, counted, listed
from bdflow.regression import ridge
from bdflow.study import keys

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
NOISE = "serve"


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a truth, not a number")
    return value


Number = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_no_truth)]


class Refusal(InputError):
    """A request that is not answered, and the HTTP status that says so."""

    def __init__(self, status: int, where: str, *, found: str, expected: str, action: str, meaning: str = "") -> None:
        super().__init__(where, found=found, expected=expected, action=action, meaning=meaning)
        self.status = status


class Asked(BaseModel):
    """What both kinds of requests may say."""

    model_config = ConfigDict(extra="forbid")

    subject: str | None = Field(None, description="Whose voxels, statistics or noise; needed for patterns.")
    variant: str = Field("full", description="Which parts of the method are on.")
    seed: Number | list[Number] = Field(
        0, description="Number of the draw of noise, of all items or of each; items with one number share their noise."
    )
    stimulus_id: str | list[str] | None = Field(
        None, description="Instead of a seed: the noise that the study's own pictures of these stimuli have."
    )


class AskedPatterns(Asked):
    pattern: Any = Field(
        ...,
        description="(n, voxels) or (voxels,), percent signal change, in the order of betas/<subject>.",
        json_schema_extra={"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    )
    standardise: str | None = Field(
        None, description="test_set, held_out or none; the study's `ridge.standardise` if not given."
    )


class AskedLatents(Asked):
    latents: dict[str, Any] = Field(
        ...,
        description="By space: (n, shape of the space) or (shape of the space); those that the variant uses.",
        json_schema_extra={"additionalProperties": {"type": "array", "items": {}}},
    )
    standardise: str = Field(
        "none",
        description="none: taken as they are. test_set, held_out: raw predictions, brought to the training targets' "
        "mean and SD by the statistics stored for `subject`.",
    )


@dataclass(frozen=True)
class Capabilities:
    """What this study can answer.

    Attributes
    ----------
    voxels : by subject that has a decoder.
    spaces : shape of each target space.
    variants : what may be painted, and the spaces that it is painted from.
    rules : by subject, the rules whose statistics are stored.
    standardise : the rule for patterns that name none.
    items : the most of one request.
    nbytes : the most of one body, packed or unpacked.
    """

    voxels: Mapping[str, int]
    spaces: Mapping[str, tuple[int, ...]]
    variants: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, tuple[str, ...]]
    standardise: str
    items: int
    nbytes: int


@dataclass(frozen=True)
class CheckedRequest:
    """A checked request of n items.

    Attributes
    ----------
    subject, variant : as asked for.
    values : patterns (n, voxels) in percent signal change, or latents (n, ...) float32 by space.
    rule : re-standardisation of what is decoded or given.
    noise, draws : name of the draws, and of each item's own, as `Painter` takes them.
    """

    subject: str
    variant: str
    values: np.ndarray | dict[str, np.ndarray]
    rule: str
    noise: str
    draws: tuple[str, ...]


def patterns(capabilities: Capabilities, kind: str, query: Sequence[tuple[str, str]], body: bytes) -> CheckedRequest:
    """Read a request for pictures of patterns. Raises Refusal (400, 404, 413, 415, 422)."""
    given = _given(capabilities, kind, query, body, {NPY: lambda: {"pattern": _npy(body, "the body")}})
    asked = _checked(AskedPatterns, given)
    subject = _subject(capabilities, asked.subject)
    values = _numbers(asked.pattern, "pattern")
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != capabilities.voxels[subject]:
        raise Refusal(
            422,
            "pattern",
            found=f"an array of shape {values.shape}",
            expected=f"(n, {capabilities.voxels[subject]}): the voxels of {keys.betas(subject)}, in their order",
            action="take the patterns from the same mask as the study's responses",
        )
    rule = _rule(capabilities, asked.standardise or capabilities.standardise, subject)
    return _request(capabilities, asked, subject, values, len(values), rule)


def latents(capabilities: Capabilities, kind: str, query: Sequence[tuple[str, str]], body: bytes) -> CheckedRequest:
    """Read a request for pictures of latents. Raises Refusal (400, 404, 413, 415, 422)."""
    given = _given(capabilities, kind, query, body, {NPZ: lambda: {"latents": _npz(body, capabilities.nbytes)}})
    asked = _checked(AskedLatents, given)
    unknown = [name for name in asked.latents if name not in capabilities.spaces]
    if unknown:
        raise Refusal(
            422,
            "latents",
            found="latents named " + listed(map(repr, unknown)),
            expected="the spaces of this study: " + ", ".join(capabilities.spaces),
            action="name them as the spaces are named",
        )
    values: dict[str, np.ndarray] = {}
    for space in capabilities.variants[_variant(capabilities, asked)]:
        shape = tuple(capabilities.spaces[space])
        if space not in asked.latents:
            raise Refusal(
                422,
                f"latents.{space}",
                found="nothing",
                expected=f"latents of shape (n, {', '.join(map(str, shape))}): variant {asked.variant} uses them",
                action="add these latents, or choose another variant",
            )
        array = _numbers(asked.latents[space], f"latents.{space}")
        array = array[None] if array.shape == shape else array
        if array.shape[1:] != shape or not len(array):
            raise Refusal(
                422,
                f"latents.{space}",
                found=f"an array of shape {array.shape}",
                expected=f"(n, {', '.join(map(str, shape))}), n at least 1",
                action="send latents of this study's networks",
            )
        values[space] = _single(array, f"latents.{space}")
    lengths = {space: len(array) for space, array in values.items()}
    if len(set(lengths.values())) > 1:
        raise Refusal(
            422,
            "latents",
            found=", ".join(f"{n} of {space}" for space, n in lengths.items()),
            expected="as many in each space",
            action="align them: row i of every space is item i",
        )
    rule = asked.standardise
    named = asked.subject is not None or rule != "none" or asked.stimulus_id is not None
    subject = _subject(capabilities, asked.subject) if named else ""
    _rule(capabilities, rule, subject)
    return _request(capabilities, asked, subject, values, next(iter(lengths.values())), rule)


def _json_kind(content: object) -> str:
    kinds = {list: "a list", str: "text alone", type(None): "null"}
    return kinds.get(type(content), "a single value")


def _given(
    capabilities: Capabilities,
    kind: str,
    query: Sequence[tuple[str, str]],
    body: bytes,
    arrays: Mapping[str, Callable[[], Mapping[str, object]]],
) -> dict:
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return found


Model = TypeVar("Model", bound=BaseModel)


def _checked(model: type[Model], given: dict) -> Model:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        found, actions = [], []
        for problem in error.errors(include_url=False, include_context=False):
            where = ".".join(str(part) for part in problem["loc"])
            unknown = problem["type"] == "extra_forbidden"
            found.append(f"unknown `{where}`" if unknown else f"`{where}`: {problem['msg'].lower()}")
            actions.append(f"remove `{where}`" if unknown else f"correct `{where}`")
        raise Refusal(
            422,
            "request",
            found=listed(found, joint="; "),
            expected="what such a request may say: " + ", ".join(model.model_fields),
            action=listed(dict.fromkeys(actions), joint="; "),
        ) from None


def _numbers(values: object, where: str) -> np.ndarray:
    """An array of real numbers, or a refusal."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu":
        raise Refusal(
            422,
            where,
            found="lists of unequal length, or of something other than numbers",
            expected="numbers in nested lists of equal length",
            action="send real numbers, in rows of one length",
        )
    return array


def _single(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers as float32, or a refusal of those that are not finite in it."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        raise Refusal(
            422,
            where,
            found="values that are not finite in float32",
            expected="numbers",
            action="correct these items, or leave them out",
        )
    return found


def _subject(capabilities: Capabilities, subject: str | None) -> str:
    if subject in capabilities.voxels:
        return str(subject)
    raise Refusal(
        422 if subject is None else 404,
        "subject",
        found="no subject" if subject is None else repr(subject),
        expected="one of " + ", ".join(capabilities.voxels),
        action="name one of these",
    )


def _rule(capabilities: Capabilities, rule: str, subject: str) -> str:
    if rule not in ridge.RULES:
        raise Refusal(
            422,
            "standardise",
            found=repr(rule),
            expected="one of " + ", ".join(ridge.RULES),
            action="choose one of these",
        )
    if rule != "none" and rule not in capabilities.rules[subject]:
        raise Refusal(
            422,
            "standardise",
            found=f"{rule!r}, whose statistics are not stored for {subject}",
            expected=", ".join(capabilities.rules[subject]),
            action="choose one of these, or run `regress` with ridge.standardise=" + rule,
        )
    return rule


def _request(
    capabilities: Capabilities,
    asked: Asked,
    subject: str,
    values: np.ndarray | dict[str, np.ndarray],
    n: int,
    rule: str,
) -> CheckedRequest:
    if n > capabilities.items or n < 1:
        raise Refusal(
            413 if n else 422,
            "items",
            found=f"{n} in this request",
            expected=f"1 to {capabilities.items} in a request",
            action="send them in several requests" if n else "send one at least",
        )
    _variant(capabilities, asked)
    if asked.stimulus_id is not None and asked.model_fields_set >= {"seed"}:
        what = "seed, stimulus_id"
        raise Refusal(422, what, found="both", expected="one of them", action="leave `seed` or `stimulus_id` out")
    name, chosen = ("seed", asked.seed) if asked.stimulus_id is None else ("stimulus_id", asked.stimulus_id)
    names = tuple(chosen) if isinstance(chosen, list) else (chosen,) * n
    if len(names) != n:
        raise Refusal(
            422,
            name,
            found=counted(len(names), "value"),
            expected=f"one, or one for each of the {n} items",
            action=f"send one {name}, or as many as items",
        )
    noise = NOISE if name == "seed" else subject
    return CheckedRequest(subject, asked.variant, values, rule, noise, tuple(map(str, names)))


def _variant(capabilities: Capabilities, asked: Asked) -> str:
    if asked.variant not in capabilities.variants:
        raise Refusal(
            422,
            "variant",
            found=repr(asked.variant),
            expected="one of " + ", ".join(capabilities.variants),
            action="choose one of these",
        )
    return asked.variant


def _npy(content: bytes, where: str) -> np.ndarray:
    """The array of an .npy file in memory: its header is believed only as far as its bytes go."""
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


def _npz(content: bytes, most: int) -> dict[str, np.ndarray]:
    """The arrays of an .npz file in memory; what they unpack to is limited as the body is."""
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
    return {name: _npy(file, f"{name}.npy") for name, file in files.items()}
