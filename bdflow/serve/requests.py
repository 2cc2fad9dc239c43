"""What the service is asked for, checked against what this study can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bdflow.errors import counted, listed
from bdflow.regression import ridge
from bdflow.serve.bodies import NPY, NPZ, Refusal, contents, npy_array, npz_arrays
from bdflow.study import keys

NOISE = "serve"


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a truth, not a number")
    return value


Number = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_no_truth)]


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
        description="(n, voxels) or (voxels,), in the order of betas/<subject> and the unit that /v1/study names.",
        json_schema_extra={"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
    )
    units: str | None = Field(
        None, description="The unit of the pattern; another one than the study's is refused. If not given: the study's."
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
    units : of the rows that each space is decoded from: the unit of patterns (`bdflow.datasets.contract.Units`).
    variants : what may be painted, and the spaces that it is painted from.
    rules : by subject, the rules whose statistics are stored.
    standardise : the rule for patterns that name none.
    items : the most of one request.
    nbytes : the most of one body, packed or unpacked.
    """

    voxels: Mapping[str, int]
    spaces: Mapping[str, tuple[int, ...]]
    units: Mapping[str, str]
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
    values : patterns (n, voxels) in the unit of the study's rows, or latents (n, ...) float32 by space.
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
    given = contents(kind, query, body, {NPY: lambda: {"pattern": npy_array(body, "the body")}})
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
    _check_units(capabilities, asked)
    rule = _rule(capabilities, asked.standardise or capabilities.standardise, subject)
    return _request(capabilities, asked, subject, values, len(values), rule)


def latents(capabilities: Capabilities, kind: str, query: Sequence[tuple[str, str]], body: bytes) -> CheckedRequest:
    """Read a request for pictures of latents. Raises Refusal (400, 404, 413, 415, 422)."""
    given = contents(kind, query, body, {NPZ: lambda: {"latents": npz_arrays(body, capabilities.nbytes)}})
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


def _check_units(capabilities: Capabilities, asked: AskedPatterns) -> None:
    """Refuse patterns in another unit than the rows, and variants whose spaces are decoded from rows of two units."""
    spaces = capabilities.variants[_variant(capabilities, asked)]
    units = {space: capabilities.units[space] for space in spaces}
    if len(set(units.values())) > 1:
        raise Refusal(
            422,
            "variant",
            found=f"{asked.variant!r}, painted from spaces that are decoded from rows in different units: "
            + listed(f"{space} {unit}" for space, unit in units.items()),
            expected="a variant whose spaces have rows in one unit, since a pattern is in one",
            action="choose another variant, or decode each space in its unit (`decode --units`) and send latents",
        )
    if asked.units is not None and asked.units not in units.values():
        raise Refusal(
            422,
            "units",
            found=repr(asked.units),
            expected=f"{next(iter(units.values()))!r}, the unit of the rows that this study decodes from",
            action="send patterns in this unit",
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
