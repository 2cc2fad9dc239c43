"""Tables, pictures and floating-point betas, whichever dataset they are of."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bdflow.datasets.formats.pictures import BACKGROUND, decode, fitted
from bdflow.datasets.formats.tables import read_table
from bdflow.datasets.formats.values import measured
from bdflow.errors import InputError, NotAtHand


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# --- pictures -------------------------------------------------------------------------------------------------


def test_alpha_shows_grey_behind_it():
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[..., 0], rgba[0, :, 3], rgba[1, :, 3] = 200, 255, 0
    found = decode(saved(Image.fromarray(rgba)), "a.png")
    assert found.shape == (2, 3, 3)
    assert found[0].tolist() == [[200, 0, 0]] * 3
    assert found[1].tolist() == [[BACKGROUND] * 3] * 3
    half = np.full((1, 1, 4), 128, np.uint8)
    half[..., :3] = 255
    assert np.abs(decode(saved(Image.fromarray(half)), "a.png").astype(int) - 192).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode) if mode != "L" else Image.fromarray(grey)
    found = decode(saved(image, "TIFF" if mode == "CMYK" else "PNG"), "a")
    assert found.dtype == np.uint8
    assert found.shape == (3, 4, 3)
    if mode not in ("1", "P"):  # which have fewer colours
        assert np.abs(found.astype(int) - grey[..., None]).max() <= 2


@pytest.mark.parametrize(
    ("values", "form", "words"),
    [
        (np.full((3, 4), 200, np.uint16), "PNG", "16 bits a channel, and no value above 200"),
        (np.full((3, 4), 200, np.int32), "TIFF", "whole numbers of 32 bits"),
        (np.full((3, 4), 0.5, np.float32), "TIFF", "floating-point values of 32 bits"),
    ],
)
def test_values_on_an_unknown_scale_are_no_black_picture(values, form, words):
    with pytest.raises(InputError, match=rf"that one: found a picture with {words}; expected 8 bits a channel"):
        decode(saved(Image.fromarray(values), form), "that one")
    assert not decode(saved(Image.fromarray(np.zeros((3, 4), np.uint16))), "black").any()


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90),
        (0, lambda a: a),  # none that the standard knows
        (9, lambda a: a),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_turned_as_its_camera_says(tag, shown, kind):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8, 0], stored[:8, 24:, 1], stored[8:, :8, 2] = 255, 255, 255
    how = Image.Exif()
    how[274] = tag
    found = decode(saved(Image.fromarray(stored), kind, quality=100, exif=how), "a")
    expected = shown(stored)
    assert found.shape == expected.shape
    assert np.abs(found[4::8, 4::8].astype(int) - expected[4::8, 4::8]).max() < 20


def test_a_grey_picture_with_a_tag_that_turns_it():
    how = Image.Exif()
    how[274] = 6
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert decode(saved(Image.fromarray(stored), exif=how), "a")[..., 0].tolist() == np.rot90(stored, -1).tolist()


def test_a_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert decode(saved(image, transparency=1), "a").tolist() == [[[255, 0, 0], [BACKGROUND] * 3]]


@pytest.mark.parametrize("content", [b"", b"no picture", saved(Image.new("RGB", (9, 9)))[:40]])
def test_what_is_no_picture_is_named(content):
    with pytest.raises(InputError, match=r"that one\.png: found no picture"):
        decode(content, "that one.png")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24), st.sampled_from(["crop", "pad"]))
def test_proportions_are_kept_by_cropping_and_padding(y, x, height, width, fit):
    flat = np.full((y, x, 3), 60, np.uint8)
    found = fitted(flat, height, width, fit)
    assert found.shape == (height, width, 3)
    own = (found == 60).all(axis=2)
    if fit == "crop" or (y, x) == (height, width):
        assert own.all()
    else:
        rows, columns = own.any(axis=1).sum(), own.any(axis=0).sum()
        ratio = min(height / y, width / x)
        assert abs(rows - y * ratio) <= 1
        assert abs(columns - x * ratio) <= 1
        assert (found[~own] == BACKGROUND).all()


def test_a_picture_of_that_size_is_as_it_was_and_stretching_takes_all_of_it():
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    for fit in ("crop", "pad", "stretch"):
        np.testing.assert_array_equal(fitted(picture, 6, 9, fit), picture)
    halves = np.zeros((8, 16, 3), np.uint8)
    halves[:, 8:] = 255
    found = fitted(halves, 8, 8, "stretch")
    assert found[:, :2].max() < 5
    assert found[:, -2:].min() > 250


# --- tables ---------------------------------------------------------------------------------------------------


def table(tmp_path: Path, content: str | bytes, name: str = "a.tsv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_cells_are_text_as_it_stands(tmp_path):
    found = read_table(table(tmp_path, "\ufeffid\tn\r\n007\t3.0\r\na b\t4\r\n\r\n"), "a table", ["id"])
    assert found.columns == ("id", "n")
    assert found.column("id") == ["007", "a b"]
    assert found.whole("n") == [3, 4]
    quoted = read_table(table(tmp_path, 'id,text\n1,"a, ""b"""\n', "a.csv"), "a table")
    assert quoted.rows == [{"id": "1", "text": 'a, "b"'}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "an empty file"),
        ("id\tid\n1\t2\n", "two columns 'id'"),
        ("id\tn\n1\n", "row 2: found 1 cells"),
        ("n\n1\n", "a column id"),
        ("id\n1\n".encode("utf-16"), "no readable table"),
    ],
)
def test_tables_that_are_none(tmp_path, content, words):
    path = table(tmp_path, content)
    with pytest.raises(InputError, match=words) as error:
        read_table(path, "a table", ["id"])
    assert str(path) in str(error.value)


@pytest.mark.parametrize("cell", ["", "x", "1.5", "nan", "inf", "1e30"])
def test_cells_that_are_no_whole_numbers(tmp_path, cell):
    found = read_table(table(tmp_path, f"id\tn\na\t1\nb\t{cell}\n"), "a table")
    with pytest.raises(InputError, match="line 3, column n"):
        found.whole("n")


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(NotAtHand, match="the table of trials"):
        read_table(tmp_path / "none.tsv", "the table of trials")


# --- betas ----------------------------------------------------------------------------------------------------


def test_what_is_a_measurement():
    betas = np.array([[1.0, 0, np.nan, 2, np.nan], [2.0, 0, 3, 2, np.nan], [1.5, 0, 4, np.nan, np.nan]])
    found = measured(betas, "a file")
    assert found.values.dtype == np.float32
    assert found.valid.all(axis=0).tolist() == [True, False, False, False, False]
    assert found.valid[:, 2].tolist() == [False, True, True]
    assert not found.valid[:, [1, 3, 4]].any(), "the same in every trial"
    assert (found.values[~found.valid] == 0).all()
    said = measured(betas, "a file", np.array([True, True, True, False, True]))
    assert said.valid[:, 1].all(), "the dataset says so"
    assert measured(betas[:1], "a file").valid.tolist() == [[True, True, False, True, False]], (
        "one trial varies in nothing"
    )


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_betas_that_float32_does_not_hold(value):
    betas = np.ones((2, 3))
    betas[1] = [2, 3, value]
    with pytest.raises(
        InputError, match=r"a file: found 1 beta that is not finite in float32, the first in trial 1 .* 2 "
    ):
        measured(betas, "a file")
