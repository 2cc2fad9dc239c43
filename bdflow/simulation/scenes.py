"""Procedural photos-to-be with captions, for simulated datasets: any thing, anywhere, before any background.

What a scene shows (kind, background) and how it is laid out (position, size, number, colour) are drawn
independently. The kinds include what NSD's localisers know: faces, words, places, bodies.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from bdflow import random
from bdflow.simulation.backgrounds import BACKGROUNDS
from bdflow.simulation.drawing import COLOURS, THINGS, Pen, shade

LOCALISER_KINDS = ("face", "words", "place", "body")
POSITIONS = ("left", "centre", "right")
SIZES = {"small": (0.24, 0.29), "medium": (0.36, 0.43), "large": (0.54, 0.64)}

_WIDTHS = {"body": 0.52, "balloon": 0.6, "tree": 0.82, "cat": 0.72, "flower": 0.56}
_FLOATING = {"balloon"}
_LOCALISER_SHARE = 0.6
_NUMBERS = {1: "a", 2: "two", 3: "three"}
_SURROUNDINGS = {
    "sky": ("under a blue sky", "under a bright sky", "on a hill under the clouds"),
    "field": ("in a green field", "on a meadow", "on the grass"),
    "sea": ("by the sea", "at the beach", "on the sand near the water"),
    "room": ("in a room", "inside a house", "on a wooden floor"),
    "night": ("at night", "in a street at night", "under the stars"),
}
_VIEWS = {
    "sky": ("a bright sky", "a sky with clouds"),
    "field": ("a green field", "a meadow with hills"),
    "sea": ("a beach", "the sea and the sand"),
    "room": ("a room", "a room with a window"),
    "night": ("a dark street", "a night with stars"),
}


@dataclass(frozen=True)
class Scene:
    """One stimulus.

    Attributes
    ----------
    image : (size, size, 3) uint8, RGB.
    captions : five sentences.
    attributes : kind, background, number, colour, position, size; x and y, the centre of all things as
        fractions of the picture from its upper left corner; what is particular to a kind (text, pose, ...).
    """

    image: np.ndarray
    captions: list[str]
    attributes: dict[str, str | int | float]


def scene(nsd_id: int, seed: int = 0, size: int = 425, *, kind: str | None = None) -> Scene:
    """The scene of a stimulus: the same for the same `nsd_id` and `seed`, whatever else is drawn.

    `kind` : the thing that it shows, instead of one that is drawn. Drawn at twice `size` and averaged down.
    """
    rng = random.generator(seed, "scene", nsd_id)
    localiser = rng.random() < _LOCALISER_SHARE
    kinds = [kind for kind in THINGS if (kind in LOCALISER_KINDS) == localiser]
    drawn = kinds[rng.integers(len(kinds))]
    kind = drawn if kind is None else kind
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    number = (1, 1, 2, 3)[rng.integers(4)]
    fitting = list(SIZES)[: 4 - number]
    size_name = fitting[rng.integers(len(fitting))]
    position = POSITIONS[rng.integers(len(POSITIONS))]

    canvas = Image.new("RGB", (2 * size, 2 * size))
    highest, lowest = BACKGROUNDS[background](canvas, rng)
    unit = float(rng.uniform(*SIZES[size_name]))
    width = unit * _WIDTHS.get(kind, 1.0)
    step = min(1.08 * width, 0.96 / number)
    margin = 0.02 + number * step / 2
    middle = {"left": margin, "centre": 0.5, "right": 1 - margin}[position] + float(rng.uniform(-0.015, 0.015))
    foot = float(rng.uniform(highest, lowest))
    floating = kind in _FLOATING
    if floating:
        foot -= float(rng.uniform(0.1, max(0.12, foot - unit - 0.04)))

    draw = ImageDraw.Draw(canvas)
    detail: dict[str, str] = {}
    look = int(rng.integers(2**31))
    for place in range(number):
        x = (middle + (place - (number - 1) / 2) * step) * 2 * size
        y = (foot + 0.012 * (place % 2) * (not floating)) * 2 * size
        if not floating:
            _shadow(canvas, draw, x, y, 0.5 * width * 2 * size)
        detail = THINGS[kind](
            Pen(draw, x, y, unit * 2 * size), COLOURS[colour], np.random.Generator(np.random.Philox(look))
        )
    attributes: dict[str, str | int | float] = {
        "kind": kind,
        "background": background,
        "number": number,
        "colour": colour,
        "position": position,
        "size": size_name,
        "x": middle,
        "y": foot - unit / 2,
        **detail,
    }
    return Scene(np.asarray(canvas.reduce(2)), captions(attributes, rng), attributes)


def captions(attributes: dict[str, str | int | float], rng: np.random.Generator) -> list[str]:
    """Five differently worded sentences on a scene with these `attributes`."""
    number = int(attributes["number"])
    things = [_things(attributes, rng) for _ in range(5)]
    is_are = "is" if number == 1 else "are"
    where = {
        "left": ("on the left", "on the left side", "to the left"),
        "centre": ("in the middle", "in the center", "near the center"),
        "right": ("on the right", "on the right side", "to the right"),
    }[str(attributes["position"])]
    background = str(attributes["background"])

    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    around = [pick(_SURROUNDINGS[background]) for _ in range(4)]
    sentences = [
        f"{pick(('a photo of', 'a picture of', 'an image of'))} {things[0]} {around[0]}",
        f"{things[1]} {pick(where)} {around[1]}",
        f"{pick(_VIEWS[background])} with {things[2]}",
        f"{pick(where)} there {is_are} {things[3]} {around[2]}",
        f"{_detailed(attributes, things[4])} {around[3]}",
    ]
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]


def _shadow(canvas: Image.Image, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    inside = (min(max(round(x), 0), canvas.width - 1), min(max(round(y), 0), canvas.height - 1))
    r, g, b = canvas.getpixel(inside)  # type: ignore[misc]
    box = (x - 0.95 * radius, y - 0.09 * radius, x + 0.95 * radius, y + 0.12 * radius)
    draw.ellipse(box, fill=shade((int(r), int(g), int(b)), -0.3))


def _things(attributes: dict[str, str | int | float], rng: np.random.Generator) -> str:
    """The things of a scene with number, colour and sometimes size: "two small red cars"."""
    kind, colour, number = str(attributes["kind"]), str(attributes["colour"]), int(attributes["number"])
    many = number > 1
    size = str(attributes["size"])
    sized = "" if size == "medium" or rng.random() < 0.5 else f"{size} "
    if kind in ("face", "body"):
        people = (("face", "faces") if kind == "face" else ("person", "people"))[many]
        mood = "smiling " if attributes.get("mood") == "smiling" and rng.random() < 0.5 else ""
        dress = f"{colour} shirts" if many else f"{_article(colour)} {colour} shirt"
        joined = "with" if kind == "face" else "in"
        return f"{_counted(number, sized + mood + people)} {joined} {dress}"
    if kind == "words":
        noun = str(attributes["carrier"])
        written = f"with the word {str(attributes['text']).lower()}"
        return f"{_counted(number, f'{sized}{colour} {noun}' + 's' * many)} {written}"
    noun = str(attributes["building"]) if kind == "place" and rng.random() < 0.7 else kind
    noun = "building" if noun == "place" else noun
    plural = {"church": "churches"}.get(noun, noun + "s")
    return _counted(number, f"{sized}{colour} {plural if many else noun}")


def _detailed(attributes: dict[str, str | int | float], things: str) -> str:
    if attributes["kind"] == "face":
        return f"{things} and {attributes['hair']} hair"
    if attributes["kind"] == "body":
        return f"{things} {attributes['pose']}"
    if attributes["kind"] == "words":
        return f"the word {str(attributes['text']).lower()} on {things.split(' with')[0]}"
    return things


def _counted(number: int, noun: str) -> str:
    return f"{_article(noun) if number == 1 else _NUMBERS[number]} {noun}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
