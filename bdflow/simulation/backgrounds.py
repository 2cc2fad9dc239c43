"""Backgrounds of scenes: sky, field, sea, room, night; each returns the heights things can stand at."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from bdflow.simulation.drawing import RGB, shade


def _gradient(image: Image.Image, top: float, bottom: float, above: RGB, below: RGB) -> None:
    """Fill the rows from `top` to `bottom` (fractions of the height) with a vertical gradient."""
    width, height = image.size
    first, last = round(top * height), round(bottom * height)
    if last <= first:
        return
    mix = np.linspace(0, 1, last - first)[:, None]
    column = np.rint(np.asarray(above) * (1 - mix) + np.asarray(below) * mix).astype(np.uint8)
    strip = Image.fromarray(column[:, None, :]).resize((width, last - first), Image.Resampling.NEAREST)
    image.paste(strip, (0, first))


def _clouds(draw: ImageDraw.ImageDraw, size: int, count: int, below: float, rng: np.random.Generator) -> None:
    for _ in range(count):
        x, y, r = rng.uniform(0, 1), rng.uniform(0.05, below), rng.uniform(0.035, 0.07)
        for dx, dy, scale in (
            (-1.3, 0.25, 0.75),
            (1.3, 0.25, 0.75),
            (0, 0, 1.15),
            (-0.6, 0.3, 0.9),
            (0.7, 0.3, 0.9),
        ):
            cx, cy, rr = (x + dx * r) * size, (y + dy * r) * size, scale * r * size
            draw.ellipse((cx - rr, cy - rr * 0.72, cx + rr, cy + rr * 0.72), fill=(250, 250, 252))


def sky(image: Image.Image, rng: np.random.Generator) -> tuple[float, float]:
    """Mostly sky, with clouds and perhaps the sun over a low hill."""
    draw, size = ImageDraw.Draw(image), image.width
    blue = ((84, 156, 226), (112, 182, 236), (66, 132, 206))[rng.integers(3)]
    _gradient(image, 0, 1, blue, (214, 234, 248))
    if rng.random() < 0.5:
        x, r = rng.uniform(0.1, 0.9) * size, 0.07 * size
        draw.ellipse((x - r, 0.12 * size - r, x + r, 0.12 * size + r), fill=(255, 236, 150))
    _clouds(draw, size, int(rng.integers(3, 6)), 0.55, rng)
    x = rng.uniform(0.2, 0.8) * size
    draw.ellipse((x - 1.3 * size, 0.87 * size, x + 1.3 * size, 1.5 * size), fill=(118, 170, 92))
    return 0.9, 0.96


def field(image: Image.Image, rng: np.random.Generator) -> tuple[float, float]:
    """A meadow with hills and tufts of grass."""
    draw, size = ImageDraw.Draw(image), image.width
    horizon = float(rng.uniform(0.42, 0.56))
    _gradient(image, 0, horizon, (132, 190, 238), (222, 238, 246))
    _clouds(draw, size, int(rng.integers(0, 3)), 0.25, rng)
    for hill in range(3):
        x, w = rng.uniform(0, 1) * size, rng.uniform(0.3, 0.6) * size
        h = rng.uniform(0.06, 0.16) * size
        top = horizon * size
        draw.ellipse((x - w, top - h, x + w, top + h), fill=shade((96, 148, 96), 0.1 * hill))
    _gradient(image, horizon, 1, (134, 184, 84), (70, 132, 50))
    for x, y in rng.uniform((0, horizon + 0.02), (1, 1), (70, 2)):
        h = 0.012 + 0.03 * (y - horizon)
        blade = (84, 146, 58) if y > 0.75 else (112, 166, 72)
        for lean in (-0.5, 0.0, 0.5):
            line = (x * size, y * size, (x + lean * h) * size, (y - h) * size)
            draw.line(line, fill=blade, width=max(1, size // 280))
    return horizon + 0.16, 0.95


def sea(image: Image.Image, rng: np.random.Generator) -> tuple[float, float]:
    """The sea behind a beach."""
    draw, size = ImageDraw.Draw(image), image.width
    horizon, shore = float(rng.uniform(0.34, 0.46)), float(rng.uniform(0.7, 0.78))
    evening = rng.random() < 0.35
    above, below = ((246, 166, 112), (254, 222, 168)) if evening else ((120, 184, 236), (226, 240, 248))
    _gradient(image, 0, horizon, above, below)
    if evening:
        x, r = rng.uniform(0.15, 0.85) * size, 0.075 * size
        y = (horizon - 0.05) * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 190))
    _gradient(image, horizon, shore, (30, 96, 156), (72, 166, 192))
    for x, y in rng.uniform((0, horizon + 0.02), (1, shore - 0.02), (46, 2)):
        w = (0.02 + 0.12 * (y - horizon)) * size
        box = (x * size - w, y * size, x * size + w, y * size + max(2.0, 0.25 * w))
        draw.arc(box, 190, 350, fill=(196, 226, 238), width=max(1, size // 300))
    _gradient(image, shore, 1, (238, 218, 170), (222, 192, 136))
    draw.ellipse((-0.3 * size, (shore - 0.03) * size, 1.3 * size, (shore + 0.035) * size), fill=(246, 250, 250))
    draw.ellipse((-0.3 * size, (shore - 0.01) * size, 1.3 * size, (shore + 0.07) * size), fill=(236, 214, 164))
    return shore + 0.07, 0.95


def room(image: Image.Image, rng: np.random.Generator) -> tuple[float, float]:
    """A room with a wooden floor, a window and a picture."""
    draw, size = ImageDraw.Draw(image), image.width
    floor = float(rng.uniform(0.66, 0.76))
    wall: RGB = ((232, 218, 190), (206, 220, 212), (226, 204, 204), (208, 212, 226))[rng.integers(4)]
    _gradient(image, 0, floor, shade(wall, 0.15), shade(wall, -0.06))
    _gradient(image, floor, 1, (152, 108, 70), (186, 138, 92))
    vanishing = float(rng.uniform(0.3, 0.7)) * size
    for board in np.linspace(-1.2, 2.2, 18):
        top_x = vanishing + (board * size - vanishing) * 0.55
        draw.line((top_x, floor * size, board * size, size), fill=(130, 90, 58), width=max(1, size // 240))
    draw.rectangle((0, (floor - 0.025) * size, size, floor * size), fill=(248, 246, 240))
    left = bool(rng.random() < 0.5)
    x = (0.07 if left else 0.65) * size
    draw.rectangle((x, 0.1 * size, x + 0.28 * size, 0.42 * size), fill=(250, 250, 248))
    panes = ((x + 0.02 * size, x + 0.13 * size), (x + 0.15 * size, x + 0.26 * size))
    for x0, x1 in panes:
        draw.rectangle((x0, 0.12 * size, x1, 0.4 * size), fill=(160, 208, 238))
    x = (0.68 if left else 0.1) * size
    draw.rectangle((x, 0.16 * size, x + 0.2 * size, 0.34 * size), fill=(116, 80, 50))
    inner = (x + 0.015 * size, 0.175 * size, x + 0.185 * size, 0.325 * size)
    draw.rectangle(inner, fill=((120, 150, 120), (196, 150, 110), (110, 130, 170))[rng.integers(3)])
    return floor + 0.06, 0.95


def night(image: Image.Image, rng: np.random.Generator) -> tuple[float, float]:
    """A street at night, with stars, the moon and lit windows far away."""
    draw, size = ImageDraw.Draw(image), image.width
    street = float(rng.uniform(0.72, 0.8))
    _gradient(image, 0, street, (10, 14, 40), (46, 50, 96))
    for x, y in rng.uniform((0, 0), (1, 0.5), (60, 2)):
        r = rng.uniform(0.6, 1.8) * size / 850
        draw.ellipse((x * size - r, y * size - r, x * size + r, y * size + r), fill=(236, 236, 250))
    x, y, r = rng.uniform(0.12, 0.88) * size, rng.uniform(0.1, 0.22) * size, 0.055 * size
    draw.ellipse((x - r, y - r, x + r, y + r), fill=(246, 242, 212))
    if rng.random() < 0.5:
        draw.ellipse((x - 0.45 * r, y - 1.1 * r, x + 1.5 * r, y + 0.9 * r), fill=(18, 22, 52))
    x = -0.02
    while x < 1:
        w, h = rng.uniform(0.07, 0.14), rng.uniform(0.08, 0.24)
        draw.rectangle((x * size, (street - h) * size, (x + w) * size, street * size), fill=(20, 22, 46))
        for wx, wy in rng.uniform((x + 0.01, street - h + 0.02), (x + w - 0.02, street - 0.02), (4, 2)):
            box = (wx * size, wy * size, (wx + 0.011) * size, (wy + 0.015) * size)
            draw.rectangle(box, fill=(236, 200, 104))
        x += w + 0.01
    _gradient(image, street, 1, (52, 52, 62), (34, 34, 42))
    for dash in np.arange(0.02, 1, 0.22):
        box = (dash * size, 0.972 * size, (dash + 0.12) * size, 0.982 * size)
        draw.rectangle(box, fill=(206, 200, 150))
    return street + 0.05, 0.95


BACKGROUNDS: dict[str, Callable[[Image.Image, np.random.Generator], tuple[float, float]]] = {
    "sky": sky,
    "field": field,
    "sea": sea,
    "room": room,
    "night": night,
}
