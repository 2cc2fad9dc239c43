"""What scenes are drawn with: backgrounds and things, as plain shapes on a pillow canvas."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import ImageDraw, ImageFont

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (206, 44, 44),
    "orange": (238, 132, 32),
    "yellow": (246, 208, 52),
    "green": (42, 146, 72),
    "blue": (44, 92, 200),
    "purple": (132, 66, 170),
    "pink": (240, 132, 170),
    "white": (242, 240, 234),
}
SKIN: tuple[RGB, ...] = ((246, 208, 176), (226, 174, 134), (176, 118, 78), (112, 72, 48))
HAIR: dict[str, RGB] = {
    "black": (38, 32, 32),
    "brown": (104, 64, 36),
    "blond": (222, 184, 96),
    "grey": (168, 166, 164),
}
TEXTS = ("STOP", "HOME", "OPEN", "EXIT", "LOVE", "HELLO", "PARK", "CITY", "FOOD", "BREAD")


def shade(colour: RGB, by: float) -> RGB:
    """Towards white for 0 < `by` <= 1, towards black for -1 <= `by` < 0."""
    goal = 255 if by > 0 else 0
    r, g, b = (round(c + (goal - c) * abs(by)) for c in colour)
    return r, g, b


class Pen:
    """Draws in a thing's own units: (0, 0) is the middle of its foot, y upwards, 1 its longest side."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, unit: float) -> None:
        self.draw, self.x, self.y, self.unit = draw, x, y, unit

    def at(self, points: Sequence[Point]) -> list[Point]:
        """Points in canvas pixels."""
        return [(self.x + px * self.unit, self.y - py * self.unit) for px, py in points]

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: RGB) -> None:
        """A filled ellipse of centre and radii."""
        (left, top), (right, bottom) = self.at([(cx - rx, cy + ry), (cx + rx, cy - ry)])
        self.draw.ellipse((left, top, right, bottom), fill=fill)

    def rectangle(self, left: float, bottom: float, right: float, top: float, fill: RGB) -> None:
        """A filled rectangle."""
        (x0, y0), (x1, y1) = self.at([(left, top), (right, bottom)])
        self.draw.rectangle((x0, y0, x1, y1), fill=fill)

    def rounded(self, left: float, bottom: float, right: float, top: float, radius: float, fill: RGB) -> None:
        """A filled rectangle with round corners."""
        (x0, y0), (x1, y1) = self.at([(left, top), (right, bottom)])
        self.draw.rounded_rectangle((x0, y0, x1, y1), radius=radius * self.unit, fill=fill)

    def polygon(self, points: Sequence[Point], fill: RGB) -> None:
        """A filled polygon."""
        self.draw.polygon(self.at(points), fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: RGB) -> None:
        """A line with round joints and ends."""
        pixels, radius = self.at(points), width * self.unit / 2
        self.draw.line(pixels, fill=fill, width=max(1, round(2 * radius)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def arc(self, cx: float, cy: float, rx: float, ry: float, start: float, end: float, fill: RGB) -> None:
        """A slice of a filled ellipse, degrees clockwise from three o'clock."""
        (left, top), (right, bottom) = self.at([(cx - rx, cy + ry), (cx + rx, cy - ry)])
        self.draw.pieslice((left, top, right, bottom), start, end, fill=fill)

    def text(self, cx: float, cy: float, height: float, text: str, fill: RGB) -> None:
        """Centred text."""
        (x, y), *_ = self.at([(cx, cy)])
        font = _font(max(8, round(height * self.unit / 4) * 4))
        self.draw.text((x, y), text, font=font, anchor="mm", fill=fill)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def face(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """Head and shoulders, seen from the front."""
    skin = SKIN[rng.integers(len(SKIN))]
    hair_name = list(HAIR)[rng.integers(len(HAIR))]
    hair, dark = HAIR[hair_name], shade(skin, -0.3)
    long_hair, smiling = bool(rng.random() < 0.5), bool(rng.random() < 0.7)
    if long_hair:
        pen.rounded(-0.34, 0.16, 0.34, 0.86, 0.26, shade(hair, -0.15))
    pen.arc(0, 0.0, 0.48, 0.28, 180, 360, colour)
    pen.rectangle(-0.11, 0.14, 0.11, 0.4, shade(skin, -0.12))
    pen.ellipse(0, 0.22, 0.13, 0.07, shade(skin, -0.12))
    pen.ellipse(0, 0.73, 0.33, 0.27, hair)
    for side in (-1, 1):
        pen.ellipse(side * 0.29, 0.57, 0.05, 0.08, shade(skin, -0.08))
    pen.ellipse(0, 0.58, 0.28, 0.34, skin)
    pen.arc(0, 0.71, 0.3, 0.25, 185, 355, hair)
    for side in (-1, 1):
        pen.ellipse(side * 0.115, 0.6, 0.062, 0.042, (252, 252, 252))
        pen.ellipse(side * 0.115, 0.6, 0.034, 0.038, (58, 76, 96))
        pen.ellipse(side * 0.115, 0.6, 0.016, 0.018, (12, 12, 12))
        pen.line([(side * 0.175, 0.675), (side * 0.06, 0.685)], 0.025, shade(hair, -0.2))
    pen.polygon([(-0.045, 0.47), (0.045, 0.47), (0.012, 0.58), (-0.012, 0.58)], dark)
    if smiling:
        pen.arc(0, 0.42, 0.13, 0.1, 5, 175, (170, 50, 56))
        pen.arc(0, 0.42, 0.11, 0.045, 5, 175, (250, 246, 240))
    else:
        pen.line([(-0.09, 0.38), (0.09, 0.38)], 0.035, (170, 66, 66))
    return {"hair": hair_name, "mood": "smiling" if smiling else "serious"}


def body(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A whole figure without facial detail, in one of four poses."""
    skin, hair = SKIN[rng.integers(len(SKIN))], list(HAIR.values())[rng.integers(len(HAIR))]
    trousers = ((46, 52, 74), (92, 78, 66), (60, 60, 62))[rng.integers(3)]
    pose = ("standing", "walking", "waving", "jumping")[rng.integers(4)]
    legs: dict[str, tuple[list[Point], list[Point]]] = {
        "standing": ([(-0.06, 0.44), (-0.075, 0.03)], [(0.06, 0.44), (0.075, 0.03)]),
        "walking": ([(-0.04, 0.44), (-0.11, 0.24), (-0.2, 0.04)], [(0.04, 0.44), (0.13, 0.25), (0.15, 0.03)]),
        "waving": ([(-0.06, 0.44), (-0.08, 0.03)], [(0.06, 0.44), (0.08, 0.03)]),
        "jumping": ([(-0.05, 0.44), (-0.2, 0.3), (-0.22, 0.1)], [(0.05, 0.44), (0.2, 0.3), (0.22, 0.1)]),
    }
    arms: dict[str, tuple[list[Point], list[Point]]] = {
        "standing": (
            [(-0.12, 0.73), (-0.17, 0.58), (-0.16, 0.42)],
            [(0.12, 0.73), (0.17, 0.58), (0.16, 0.42)],
        ),
        "walking": ([(-0.12, 0.73), (-0.2, 0.6), (-0.13, 0.47)], [(0.12, 0.73), (0.19, 0.59), (0.26, 0.5)]),
        "waving": ([(-0.12, 0.73), (-0.17, 0.58), (-0.16, 0.42)], [(0.12, 0.73), (0.24, 0.82), (0.24, 0.98)]),
        "jumping": (
            [(-0.12, 0.73), (-0.25, 0.84), (-0.25, 0.99)],
            [(0.12, 0.73), (0.25, 0.84), (0.25, 0.99)],
        ),
    }
    for leg in legs[pose]:
        pen.line(leg, 0.1, trousers)
        end_x, end_y = leg[-1]
        pen.ellipse(end_x + (0.02 if end_x > 0 else -0.02), end_y - 0.005, 0.07, 0.032, (36, 30, 30))
    for arm in arms[pose]:
        pen.line(arm, 0.07, shade(colour, -0.18))
        pen.ellipse(*arm[-1], 0.038, 0.038, skin)
    pen.rounded(-0.145, 0.4, 0.145, 0.78, 0.07, colour)
    pen.rectangle(-0.035, 0.75, 0.035, 0.84, shade(skin, -0.1))
    pen.ellipse(0, 0.9, 0.082, 0.1, hair)
    pen.ellipse(0, 0.885, 0.072, 0.085, skin)
    return {"pose": pose}


def place(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A building: a house, a tower or a church."""
    building = ("house", "tower", "church")[rng.integers(3)]
    glass, wood = (156, 202, 226), (108, 70, 44)
    side = shade(colour, -0.25)
    if building == "house":
        pen.rectangle(-0.42, 0, 0.42, 0.5, colour)
        pen.rectangle(0.24, 0.62, 0.34, 0.9, (128, 84, 72))
        pen.polygon([(-0.5, 0.48), (0.5, 0.48), (0.0, 0.88)], (130, 58, 46))
        pen.rectangle(-0.08, 0, 0.1, 0.3, wood)
        pen.ellipse(0.07, 0.15, 0.014, 0.014, (240, 210, 120))
        for x in (-0.3, 0.23):
            pen.rectangle(x - 0.02, 0.17, x + 0.16, 0.37, (250, 250, 246))
            pen.rectangle(x, 0.19, x + 0.14, 0.35, glass)
            pen.line([(x + 0.07, 0.19), (x + 0.07, 0.35)], 0.014, (250, 250, 246))
        pen.ellipse(0, 0.62, 0.07, 0.07, glass)
    elif building == "tower":
        pen.rectangle(-0.22, 0, 0.14, 0.97, colour)
        pen.polygon([(0.14, 0), (0.26, 0.03), (0.26, 0.93), (0.14, 0.97)], side)
        lit = rng.random((8, 3)) < 0.3
        for row in range(8):
            for column in range(3):
                x, y = -0.18 + column * 0.105, 0.14 + row * 0.1
                pen.rectangle(x, y, x + 0.07, y + 0.06, (252, 226, 130) if lit[row, column] else glass)
        pen.rectangle(-0.08, 0, 0.0, 0.09, wood)
        pen.line([(-0.04, 0.97), (-0.04, 1.0)], 0.02, side)
    else:
        pen.rectangle(-0.1, 0, 0.48, 0.38, colour)
        pen.polygon([(-0.12, 0.37), (0.5, 0.37), (0.42, 0.56), (-0.04, 0.56)], (96, 74, 78))
        pen.rectangle(-0.4, 0, -0.08, 0.6, shade(colour, -0.1))
        pen.polygon([(-0.44, 0.59), (-0.04, 0.59), (-0.24, 0.92)], (96, 74, 78))
        pen.line([(-0.24, 0.9), (-0.24, 1.0)], 0.02, (60, 52, 48))
        pen.line([(-0.28, 0.96), (-0.2, 0.96)], 0.02, (60, 52, 48))
        pen.ellipse(-0.24, 0.48, 0.06, 0.06, (252, 250, 240))
        pen.line([(-0.24, 0.52), (-0.24, 0.48), (-0.21, 0.48)], 0.012, (40, 40, 40))
        pen.rectangle(-0.3, 0, -0.18, 0.2, wood)
        pen.ellipse(-0.24, 0.2, 0.06, 0.06, wood)
        for x in (0.03, 0.19, 0.35):
            pen.rectangle(x, 0.1, x + 0.07, 0.25, glass)
            pen.ellipse(x + 0.035, 0.25, 0.035, 0.035, glass)
    return {"building": building}


def words(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A sign with a word, on posts, on a pole, or an open book."""
    text = TEXTS[rng.integers(len(TEXTS))]
    carrier = ("sign", "board", "book")[rng.integers(3)]
    ink = (30, 28, 40) if sum(colour) > 480 else (255, 255, 250)
    height = 1.0 / (len(text) + 0.6)
    if carrier == "sign":
        pen.rectangle(-0.03, 0, 0.03, 0.5, (112, 112, 118))
        pen.rounded(-0.46, 0.44, 0.46, 0.9, 0.08, ink)
        pen.rounded(-0.43, 0.47, 0.43, 0.87, 0.06, colour)
        pen.text(0, 0.67, 1.15 * height, text, ink)
    elif carrier == "board":
        for x in (-0.36, 0.36):
            pen.rectangle(x - 0.03, 0, x + 0.03, 0.4, (106, 74, 48))
        pen.rectangle(-0.5, 0.3, 0.5, 0.82, shade(colour, -0.35))
        pen.rectangle(-0.46, 0.34, 0.46, 0.78, colour)
        pen.text(0, 0.62, 1.1 * height, text, ink)
        for y in (0.46, 0.4):
            pen.line([(-0.3, y), (0.3, y)], 0.016, ink)
    else:
        pen.polygon([(-0.5, 0.06), (0, 0), (0.5, 0.06), (0.5, 0.7), (0, 0.64), (-0.5, 0.7)], colour)
        for side in (-1, 1):
            corners = [(0.0, 0.05), (side * 0.46, 0.11), (side * 0.46, 0.72), (0.0, 0.67)]
            pen.polygon(corners, (250, 247, 236) if side < 0 else (240, 236, 224))
            for row in range(4):
                y = 0.18 + row * 0.07
                pen.line([(side * 0.06, y), (side * 0.4, y + 0.045)], 0.014, (130, 128, 130))
        pen.text(-0.22, 0.57, 0.55 * height, text, (30, 28, 40))
        pen.line([(0, 0.03), (0, 0.67)], 0.014, (150, 140, 130))
    return {"text": text, "carrier": carrier}


def ball(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A beach ball."""
    turn = float(rng.uniform(0, 60))
    pen.ellipse(0, 0.5, 0.5, 0.5, shade(colour, -0.3))
    pen.ellipse(-0.01, 0.51, 0.485, 0.485, (250, 248, 240))
    for slice_ in range(3):
        pen.arc(-0.01, 0.51, 0.485, 0.485, turn + 120 * slice_, turn + 120 * slice_ + 62, colour)
    pen.ellipse(-0.01, 0.51, 0.09, 0.09, shade(colour, -0.2))
    pen.ellipse(-0.2, 0.74, 0.08, 0.06, (255, 255, 255))
    return {}


def balloon(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A balloon on a string."""
    sway = float(rng.uniform(-0.06, 0.06))
    pen.line([(sway, 0), (-sway, 0.15), (0, 0.34)], 0.012, (90, 88, 90))
    pen.ellipse(0, 0.68, 0.29, 0.32, shade(colour, -0.14))
    pen.ellipse(-0.015, 0.69, 0.27, 0.3, colour)
    pen.polygon([(-0.045, 0.33), (0.045, 0.33), (0, 0.39)], shade(colour, -0.25))
    pen.ellipse(-0.11, 0.82, 0.05, 0.075, shade(colour, 0.7))
    return {}


def boat(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A sailing boat."""
    way = 1 if rng.random() < 0.5 else -1
    pen.polygon([(-0.5, 0.2), (0.5, 0.2), (0.34, 0.0), (-0.36, 0.0)], (112, 66, 42))
    pen.polygon([(-0.5, 0.2), (0.5, 0.2), (0.47, 0.16), (-0.47, 0.16)], (240, 232, 214))
    pen.rectangle(-0.015, 0.2, 0.015, 0.98, (84, 62, 48))
    pen.polygon([(way * 0.03, 0.26), (way * 0.42, 0.26), (way * 0.03, 0.95)], colour)
    pen.polygon([(way * -0.03, 0.3), (way * -0.3, 0.3), (way * -0.03, 0.82)], shade(colour, 0.45))
    return {}


def car(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A car from the side."""
    way = 1 if rng.random() < 0.5 else -1
    roof = [(-0.3, 0.28), (-0.2, 0.46), (0.12, 0.46), (0.28, 0.28)]
    pen.polygon([(way * x, y) for x, y in roof], shade(colour, -0.12))
    pen.rounded(-0.5, 0.09, 0.5, 0.31, 0.07, colour)
    for window in (
        [(-0.24, 0.3), (-0.17, 0.42), (-0.05, 0.42), (-0.05, 0.3)],
        [(-0.02, 0.3), (-0.02, 0.42), (0.1, 0.42), (0.21, 0.3)],
    ):
        pen.polygon([(way * x, y) for x, y in window], (176, 214, 232))
    for x in (-0.28, 0.28):
        pen.ellipse(x, 0.1, 0.105, 0.105, (30, 30, 34))
        pen.ellipse(x, 0.1, 0.05, 0.05, (190, 190, 196))
    pen.ellipse(way * 0.46, 0.23, 0.03, 0.03, (255, 240, 170))
    return {}


def tree(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A tree with a crown and fruit."""
    pen.polygon([(-0.07, 0), (0.07, 0), (0.045, 0.5), (-0.045, 0.5)], (104, 70, 44))
    for cx, cy, r in ((-0.2, 0.56, 0.2), (0.2, 0.56, 0.2), (0.0, 0.76, 0.235), (0.0, 0.56, 0.22)):
        pen.ellipse(cx, cy, r, r, (44, 112, 56))
    for cx, cy, r in ((-0.17, 0.62, 0.13), (0.05, 0.82, 0.13)):
        pen.ellipse(cx, cy, r, r, (72, 146, 74))
    for cx, cy in rng.uniform((-0.27, 0.48), (0.27, 0.88), (9, 2)):
        pen.ellipse(float(cx), float(cy), 0.045, 0.045, colour)
    return {}


def cat(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A sitting cat."""
    way = 1 if rng.random() < 0.5 else -1
    dark = shade(colour, -0.3)
    pen.line([(way * 0.2, 0.08), (way * 0.38, 0.14), (way * 0.36, 0.38)], 0.07, dark)
    pen.ellipse(0, 0.27, 0.25, 0.29, colour)
    pen.ellipse(0, 0.2, 0.13, 0.18, shade(colour, 0.4))
    for side in (-1, 1):
        pen.ellipse(side * 0.1, 0.03, 0.08, 0.045, dark)
        pen.polygon([(side * 0.24, 0.97), (side * 0.06, 0.84), (side * 0.24, 0.7)], colour)
        pen.polygon([(side * 0.21, 0.91), (side * 0.12, 0.83), (side * 0.21, 0.76)], (238, 160, 160))
    pen.ellipse(0, 0.68, 0.25, 0.2, colour)
    for side in (-1, 1):
        pen.ellipse(side * 0.1, 0.71, 0.05, 0.05, (240, 246, 150))
        pen.ellipse(side * 0.1, 0.71, 0.018, 0.045, (16, 16, 16))
        for y in (0.6, 0.65):
            pen.line([(side * 0.08, 0.62), (side * 0.34, y)], 0.008, (60, 56, 56))
    pen.polygon([(-0.03, 0.65), (0.03, 0.65), (0, 0.61)], (216, 96, 110))
    return {}


def flower(pen: Pen, colour: RGB, rng: np.random.Generator) -> dict[str, str]:
    """A flower on a stem."""
    lean, turn = float(rng.uniform(-0.06, 0.06)), float(rng.uniform(0, 1))
    pen.line([(lean, 0), (0, 0.3), (0, 0.66)], 0.035, (52, 122, 56))
    pen.ellipse(-0.12, 0.22, 0.12, 0.05, (66, 146, 66))
    pen.ellipse(0.12, 0.32, 0.12, 0.05, (66, 146, 66))
    for petal in range(8):
        angle = 2 * np.pi * (petal + turn) / 8
        x, y = 0.17 * float(np.cos(angle)), 0.72 + 0.17 * float(np.sin(angle))
        pen.ellipse(x, y, 0.1, 0.1, shade(colour, -0.12 if petal % 2 else 0.0))
    centre = (120, 72, 36) if sum(colour) > 480 else (250, 206, 60)
    pen.ellipse(0, 0.72, 0.105, 0.105, centre)
    return {}


THINGS: dict[str, Callable[[Pen, RGB, np.random.Generator], dict[str, str]]] = {
    "face": face,
    "words": words,
    "place": place,
    "body": body,
    "ball": ball,
    "balloon": balloon,
    "boat": boat,
    "car": car,
    "tree": tree,
    "cat": cat,
    "flower": flower,
}
