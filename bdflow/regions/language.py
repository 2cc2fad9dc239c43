"""The language of regions: names of a dataset's regions and what can be made of them, as patterns over voxels.

A name stands for a set of voxels of the subject's mask: a region (`V1v`, `FFA-1`, `OPA`), also with its collection
(`floc-faces/FFA-1`), which it needs where two collections have a region of that name; a collection as a whole
(`floc-faces`: any of its regions); the mask of the dataset (`nsdgeneral`: all voxels); or, where NSD's collections are
there, an aggregate of the paper (section 5.2: `V1`, `faces`, `ecc 1-2`).
`random 100` is a set of 100 voxels drawn at random, `random 100 seed 1` another. Upper and lower case are the same.

    a | b      union            a & b      intersection            a \\ b     difference: in a and not in b
    a + b      sum of patterns  a - b      difference of patterns  (a)       a first

A set is the pattern 1 in its voxels and 0 elsewhere. `+` and `-` mix patterns: `faces - bodies` is 1 in face voxels,
-1 in body voxels and 0 where both overlap. `|`, `&` and `\\` take sets alone. `&` and `\\` come before `|`, and that
before `+` and `-`; equals from left to right. A name may stand in quotes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bdflow import random
from bdflow.errors import InputError, listed

AGGREGATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "V1": ("prf-visualrois", ("V1v", "V1d")),
    "V2": ("prf-visualrois", ("V2v", "V2d")),
    "V3": ("prf-visualrois", ("V3v", "V3d")),
    "faces": ("floc-faces", ()),
    "words": ("floc-words", ()),
    "places": ("floc-places", ()),
    "bodies": ("floc-bodies", ()),
    "ecc 0-0.5": ("prf-eccrois", ("ecc0pt5",)),
    "ecc 0.5-1": ("prf-eccrois", ("ecc1",)),
    "ecc 1-2": ("prf-eccrois", ("ecc2",)),
    "ecc 2-4": ("prf-eccrois", ("ecc4",)),
    "ecc >4": ("prf-eccrois", ("ecc4+",)),
}
"""NSD's collection and regions of each aggregate of the paper; no regions: all of the collection."""

OPERATORS = "()|&\\+-"
RANDOM = re.compile(r"random\s+([0-9]{1,9})(?:\s+seed\s+([0-9]{1,9}))?(?![0-9])", re.IGNORECASE)
DEEPEST = 100  # parentheses within parentheses
WORD = re.compile(r"[^()|&\\+]+")


@dataclass(frozen=True)
class Vocabulary:
    """The names that exist.

    Parameters
    ----------
    regions : names of regions, `collection/name`.
    mask : the dataset's mask, whose name stands for every voxel.
    more : further names, of the configuration's masks.

    A plain name means, in this order, an aggregate, the mask, a collection, or the one region of that name.

    Raises InputError for one of `more` that has another meaning, and for a mask with the name of an aggregate or of a
    region that is not all of it (case and blanks aside).
    """

    regions: Sequence[str]
    mask: str | None = None
    more: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.mask is not None:
            mask = _folded(self.mask)
            others = [region for region in self._by_label.get(mask, ()) if _folded(region) != f"{mask}/{mask}"]
            others += [name for name, (collection, _) in AGGREGATES.items() if _folded(name) == mask]
            if others:
                raise InputError(
                    f"the name {self.mask!r} of a region",
                    found=f"two meanings: every voxel of the mask {self.mask}, and {others[0]}",
                    expected="one for each name",
                    meaning="An expression with this name could be of either.",
                    action="give the file of the mask another name, in `dataset.mask` too",
                )
        known = {_folded(name): name for name in self.names()}
        for name in self.more:
            other = known.setdefault(_folded(name), name)
            if other != name or name in self.names():
                raise InputError(
                    f"the name {name!r} of a region",
                    found=f"two meanings: a region of the dataset, and the mask {name} of `roi.masks`",
                    expected="one for each name: one that is none of the dataset's",
                    meaning="An expression with this name could be of either.",
                    action="give the mask another name in `roi.masks`",
                )

    @cached_property
    def _collections(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for region in self.regions:
            found.setdefault(region.partition("/")[0], []).append(region)
        return found

    @cached_property
    def _by_label(self) -> dict[str, list[str]]:
        """Regions by their names without the collection, in one case."""
        found: dict[str, list[str]] = {}
        for region in self.regions:
            found.setdefault(_folded(region.partition("/")[2]), []).append(region)
        return found

    def names(self) -> dict[str, tuple[str, ...]]:
        """The regions of every name of the dataset; of the mask none, for it is every voxel."""
        return self._names

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name, (collection, labels) in AGGREGATES.items():
            if collection in self._collections:
                wanted = [f"{collection}/{label}" for label in labels] or self._collections[collection]
                found[name] = tuple(region for region in wanted if region in self._collections[collection])
        if self.mask is not None:
            found.setdefault(self.mask, ())
        taken = {_folded(name) for name in found}
        for collection, regions in self._collections.items():
            if _folded(collection) not in taken:
                found[collection] = tuple(regions)
        taken = {_folded(name) for name in found}
        for region in self.regions:
            label = region.partition("/")[2]
            if len(self._by_label[_folded(label)]) == 1 and _folded(label) not in taken:
                found[label] = (region,)
        return found | {region: (region,) for region in self.regions}

    def tokens(self, expression: str) -> list[tuple[str, str]]:
        """(kind, text) of each part: an operator, or a `name` as it is known. The longest name that fits is taken.

        Raises InputError for a name that does not exist.
        """
        known = {_folded(name): name for name in [*self.names(), *self.more]}
        spelt = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in sorted(known, key=len, reverse=True))
        name = re.compile(rf"(?:{spelt})(?![\w.>/])", re.IGNORECASE)
        found, at = [], 0
        while at < len(expression):
            if expression[at].isspace():
                at += 1
            elif drawn := RANDOM.match(expression, at):
                found.append(("name", f"random {drawn[1]}" + (f" seed {drawn[2]}" if drawn[2] else "")))
                at = drawn.end()
            elif (match := name.match(expression, at)) and _folded(match[0]) in known:
                found.append(("name", known[_folded(match[0])]))
                at = match.end()
            elif expression[at] in OPERATORS:
                found.append((expression[at], expression[at]))
                at += 1
            elif expression[at] in "\"'" and (end := expression.find(expression[at], at + 1)) > 0:
                quoted = expression[at + 1 : end]
                if RANDOM.fullmatch(quoted.strip()):
                    found.append(("name", quoted.strip()))
                elif _folded(quoted) in known:
                    found.append(("name", known[_folded(quoted)]))
                else:
                    raise self._unknown(expression, quoted)
                at = end + 1
            else:
                word = WORD.match(expression, at)
                raise self._unknown(expression, (word[0] if word else expression[at]).strip())
        return found

    def check(self, expression: str) -> set[str]:
        """The names in an expression. Raises InputError for an unknown one, and for what cannot be read."""
        tokens = self.tokens(expression)
        _Parser(lambda name: np.zeros(1, np.float32), expression, tokens).whole()
        return {text for kind, text in tokens if kind == "name"}

    def _unknown(self, expression: str, name: str) -> InputError:
        several = self._by_label.get(_folded(name), [])
        plain = [known for known in self.names() if "/" not in known]
        near = difflib.get_close_matches(name, [*self.names(), *self.more], n=1)
        return InputError(
            f"region {expression!r}",
            found=f"{name!r}, which is " + ("several regions" if several else "no region"),
            expected=f"one of {listed(several)}"
            if several
            else "names of these: " + listed([*plain, *self.more], 48) + ", or random N",
            action="name the collection too"
            if several
            else f"did you mean {near[0]!r}?"
            if near
            else "use one of these names",
        )


@dataclass(frozen=True)
class Atlas:
    """The regions of one subject, over the voxels of its mask.

    Parameters
    ----------
    vocabulary : the names that exist.
    regions : (voxels,) bool of each region that the subject has.
    valid : (voxels,) bool: voxels that are decoded from; all others are left out of every region.
    subject, seed : whose voxels they are; what random voxels are drawn with.
    more : (voxels,) patterns of the vocabulary's further names.
    """

    vocabulary: Vocabulary
    regions: Mapping[str, np.ndarray]
    valid: np.ndarray
    subject: str = ""
    seed: int = 0
    more: Mapping[str, np.ndarray] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Number of voxels of every name that the subject has; of a region by its shortest name."""
        names = self.vocabulary.names()
        shorter = {regions[0] for name, regions in names.items() if "/" not in name and len(regions) == 1}
        found = {
            name: self._named(name)
            for name, regions in names.items()
            if self._there(name) and not ("/" in name and regions[0] in shorter)
        }
        return {name: int(np.count_nonzero(pattern)) for name, pattern in (found | dict(self.more)).items()}

    def pattern(self, expression: str) -> np.ndarray:
        """(voxels,) float32 of an expression: 1 and 0 for a set, whole numbers for a mixture of sets.

        Raises InputError for what cannot be read, for an unknown name, for one that the subject has no file or no
        voxel of, for a set operator between mixtures, and if nothing is left.
        """
        tokens = self.vocabulary.tokens(expression)
        value = _Parser(lambda name: self.leaf(expression, name), expression, tokens).whole()
        if not value.any():
            raise self._empty(expression, "no voxel is left")
        return value

    def leaf(self, expression: str, name: str) -> np.ndarray:
        """The pattern of one name of an expression. Raises InputError if the subject has none of its voxels."""
        if drawn := RANDOM.fullmatch(name):
            return self._random(expression, int(drawn[1]), int(drawn[2] or 0))
        if name not in self.more and not self._there(name):
            raise self._empty(expression, f"{name}, which the subject does not have")
        value = self._named(name)
        if not value.any():
            raise self._empty(expression, f"{name}, which has no voxel here")
        return value

    def _named(self, name: str) -> np.ndarray:
        if name in self.more:
            return np.where(self.valid, self.more[name], 0).astype(np.float32)
        regions = self.vocabulary.names()[name]
        if not regions:
            return self.valid.astype(np.float32)
        inside = np.logical_or.reduce([self.regions[region] for region in regions if region in self.regions])
        return (inside & self.valid).astype(np.float32)

    def _there(self, name: str) -> bool:
        """Whether the subject has any of a name's regions."""
        regions = self.vocabulary.names()[name]
        return not regions or any(region in self.regions for region in regions)

    def _random(self, expression: str, count: int, number: int) -> np.ndarray:
        usable = np.flatnonzero(self.valid)
        if not 0 < count <= usable.size:
            raise InputError(
                f"region {expression!r} of {self.subject}",
                found=f"random {count}",
                expected=f"1 to {usable.size} voxels",
                action="ask for a number of voxels that the subject has",
            )
        chosen = random.generator(self.seed, "random region", self.subject, count, number).permutation(usable)[:count]
        found = np.zeros(self.valid.size, np.float32)
        found[chosen] = 1
        return found

    def _empty(self, expression: str, found: str) -> InputError:
        there = listed((f"{name} ({count})" for name, count in self.counts().items() if count), 48)
        return InputError(
            f"region {expression!r} of {self.subject}",
            found=found,
            expected="at least one voxel; there are, with their voxels within the mask: " + there,
            action="choose among these, or leave this region or this subject out",
        )


class _Parser:
    """Recursive descent over the tokens of one expression; `leaf` gives the pattern of a name."""

    def __init__(self, leaf: Callable[[str], np.ndarray], expression: str, tokens: list[tuple[str, str]]) -> None:
        self.leaf, self.expression, self.tokens, self.at, self.depth = leaf, expression, tokens, 0, 0

    def whole(self) -> np.ndarray:
        value = self._mixture()
        if self.at < len(self.tokens):
            raise self._wrong(repr(self.tokens[self.at][1]), "an operator or the end")
        return value

    def _next(self, kinds: str) -> str:
        """The kind of the next token, taken, if it is among these."""
        if self.at < len(self.tokens) and self.tokens[self.at][0] in tuple(kinds):
            self.at += 1
            return self.tokens[self.at - 1][0]
        return ""

    def _mixture(self) -> np.ndarray:
        value = -self._union() if self._next("-") else self._union()
        while sign := self._next("+-"):
            value = value + self._union() if sign == "+" else value - self._union()
        return value

    def _union(self) -> np.ndarray:
        value = self._intersection()
        while self._next("|"):
            value = np.maximum(self._set(value), self._set(self._intersection()))
        return value

    def _intersection(self) -> np.ndarray:
        value = self._one()
        while operator := self._next("&\\"):
            other = self._set(self._one())
            value = self._set(value) * (other if operator == "&" else 1 - other)
        return value

    def _one(self) -> np.ndarray:
        if self._next("("):
            self.depth += 1
            if self.depth > DEEPEST:
                raise self._wrong(f"more than {DEEPEST} parentheses within each other", "fewer")
            value = self._mixture()
            self.depth -= 1
            if not self._next(")"):
                raise self._wrong("no closing parenthesis", "`)`")
            return value
        if self.at == len(self.tokens):
            raise self._wrong("its end", "a region")
        kind, text = self.tokens[self.at]
        if kind != "name":
            raise self._wrong(repr(text), "a region")
        self.at += 1
        return self.leaf(text)

    def _set(self, value: np.ndarray) -> np.ndarray:
        if not np.isin(value, (0, 1)).all():
            raise self._wrong("a mixture beside `|`, `&` or `\\`", "a set of voxels there")
        return value

    def _wrong(self, found: str, expected: str) -> InputError:
        return InputError(
            f"region {self.expression!r}",
            found=found,
            expected=expected,
            action="| & \\ make sets, + - mix patterns; put parentheses around what comes first",
        )


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()
