"""Colours that a colour-blind reader tells apart, on light and on dark paper, and what each of them means."""

from itertools import combinations

import numpy as np
import pytest

from bdflow.report import palette

SIGHTS = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""What is seen of linear RGB: Machado, Oliveira & Fernandes 2009, severity 1."""
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""Oklab: Ottosson 2020. A just noticeable difference is about 0.02."""
APART = 0.09
PAPERS = [(palette.LIGHT, 0), (palette.DARK, 1)]


def linear(colour: str) -> np.ndarray:
    part = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def seen(colour: str, sight: str) -> np.ndarray:
    return TO_LAB @ np.cbrt(TO_CONES @ np.clip(SIGHTS[sight] @ linear(colour), 0, 1))


def contrast(a: str, b: str) -> float:
    """WCAG's ratio."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(("colours", "paper"), PAPERS, ids=["light", "dark"])
def test_series_are_told_apart(colours: tuple[str, ...], paper: int, sight: str) -> None:
    """From one another, and from what is drawn in the colours of text."""
    drawn = [*colours, palette.INK[paper], palette.QUIET[paper]]
    near = {(a, b): np.linalg.norm(seen(a, sight) - seen(b, sight)) for a, b in combinations(drawn, 2)}
    assert min(near.values()) > APART, min(near, key=near.__getitem__)


@pytest.mark.parametrize("sight", SIGHTS)
def test_regions_of_voxel_maps_are_told_apart(sight: str) -> None:
    near = [np.linalg.norm(seen(a, sight) - seen(b, sight)) for a, b in combinations(palette.REGIONS, 2)]
    assert min(near) > 0.06


@pytest.mark.parametrize(("colours", "paper"), PAPERS, ids=["light", "dark"])
def test_what_is_drawn_stands_out_from_the_paper(colours: tuple[str, ...], paper: int) -> None:
    assert min(contrast(colour, palette.PAPER[paper]) for colour in colours) >= 3
    assert min(contrast(text[paper], palette.PAPER[paper]) for text in (palette.INK, palette.QUIET)) >= 4.5


def test_no_two_rows_of_a_report_look_alike() -> None:
    people = [f"subj{k:02d}" for k in range(1, 13)]
    looks = [palette.subject(row, people) for row in (*people, "average", "mean", "true")]
    assert len(set(looks)) == len(looks)
    assert len({look.colour for look in looks[:8]}) == 8
    assert palette.subject("subj03", people) == palette.subject("subj03", people[:4])
    assert {palette.pictures(kind).colour for kind in range(4)} == {"ink"}, "a colour is whose, never of what"


def test_the_ramp_is_one_of_lightness_alone() -> None:
    """So that more is lighter whoever looks."""
    for sight in SIGHTS:
        shades = palette.ramp(np.linspace(0, 1, 33)).round().astype(int).tolist()
        light = [seen("#{:02x}{:02x}{:02x}".format(*shade), sight)[0] for shade in shades]
        assert np.diff(light).min() > 0
