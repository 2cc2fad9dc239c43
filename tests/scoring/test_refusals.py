"""What cannot be scored is refused, in words that say what is wrong; nothing is guessed."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import bdflow
from bdflow.scoring.folders import decode
from tests.support.messages import faults
from tests.support.planted_pictures import planted, save

PHOTOS, MADE = planted()
FLOATS = (MADE / 255).astype(np.float32)


def changed(images: np.ndarray, at: object, value: float) -> np.ndarray:
    images = images.copy()
    images[at] = value
    return images


def refused(words: str, photos: object, pictures: object = None, metrics: object = "PixCorr", **options: object) -> str:
    with pytest.raises(bdflow.InputError) as caught:
        bdflow.score(photos, pictures, metrics, **options)
    assert words in str(caught.value), str(caught.value)
    assert faults(caught.value) == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (MADE[:-1], "4 stimuli; expected 5"),
        (changed(FLOATS, (1, 2, 3, 0), np.nan), "not a number or infinite in 1 row (1,"),
        (changed(FLOATS, (1, 2, 3, 0), np.inf), "not a number or infinite"),
        (FLOATS * 2 - 1, "They look like -1 to 1: if they are, say so by --pictures-range -1..1"),
        (FLOATS * 255, "They look like 0 to 255: if they are, say so by --pictures-range 0..255"),
        (FLOATS * 10 - 3, "outside the scale in 5 rows"),
        (changed(FLOATS, 3, 0.5) * np.array([255, 255, 255, 1, 255])[:, None, None, None], "two scales: 1 row (3,"),
        (FLOATS / 255, "divided by 255 twice"),
        (MADE.astype(np.int16) - 9, "outside the scale"),
        (MADE.astype(np.uint16) * 257, "16 bits are divided by 257"),
        (MADE // 255, "lost what is behind the point"),
        (changed(MADE, 2, 1), "two scales: 1 row (2,"),
        (MADE > 100, "values of type bool"),
        (FLOATS.astype(complex), "values of type complex128"),
        (np.full(MADE.shape, "a"), "values of type"),
        (MADE[..., 0], "an array of shape 5 x 24 x 24"),
        (MADE[..., :1], "Pictures in grey"),
        (np.concatenate([MADE, MADE[..., :1]], axis=-1), "Four channels"),
        (MADE[:, :3], "either could be the colours"),
        (MADE[..., :2], "No axis of length 3 is where colours stand"),
        (MADE[:, :, :, None], "pictures of 1 x 24 pixels"),
        (MADE[:0], "0 x 24 x 24 x 3"),
        (MADE[0], "24 x 24 x 3"),
    ],
)
def test_arrays_that_hold_no_pictures(made, words):
    refused(words, PHOTOS, made)


@pytest.mark.parametrize(
    ("made", "scale", "words"),
    [
        (FLOATS, "-1..1", "no value below 0"),
        (FLOATS, "0..255", "no value above 1"),
        (FLOATS * 255, "-1..1", "outside the scale"),
        (FLOATS, "0..100", "0..1, -1..1, 0..255"),
    ],
)
def test_a_scale_that_the_values_do_not_have(made, scale, words):
    refused(words, PHOTOS, made, pictures_range=scale)


def test_options(tmp_path):
    for options, words in (
        ({"metrics": ["FID"]}, "PixCorr"),
        ({"metrics": []}, "at least one"),
        ({"ssim": "3d"}, "paper, 2d"),
        ({"distractors": "both"}, "photos, reconstructions"),
        ({"select": "best"}, "all, first"),
        ({"batch_size": 0}, "1 or more"),
        ({"metrics": ["CLIP (bundle)"]}, "no bundle"),
        ({"weights": tmp_path / "nowhere"}, "no folder"),
        ({"bundle": "tiny", "device": "tpu"}, "a device of this machine: cpu"),
        ({"out": tmp_path}, "something there"),
    ):
        refused(words, PHOTOS, MADE, **options)
    refused("1 stimulus; expected two or more", PHOTOS[:1], MADE[:1], "published")
    assert len(bdflow.score(PHOTOS[:1], MADE[:1], "PixCorr").names) == 1
    refused("above 10 px", PHOTOS[:, :9, :9], MADE[:, :9, :9], "SSIM")


def test_photos_that_are_the_same():
    twice = changed(PHOTOS, 3, 0)
    twice[3] = twice[1]
    refused("1 = 3", twice, MADE)
    found = bdflow.score(twice, MADE, "PixCorr", duplicates=True)
    assert found.notices == ("1 photo more than once: identification counts them against each other",)


def test_names_that_do_not_match(tmp_path):
    shown = save(tmp_path / "photos", PHOTOS)
    few = save(tmp_path / "few", MADE[:3])
    words = refused("2 of 5 photos in ", shown, few)
    assert "face3, face4" in words
    assert "--subset" in words
    other = save(tmp_path / "other", MADE, names=["face0", "face1", "face2", "face3", "dog"])
    assert "1 of 5 names in " in refused("dog", shown, other)
    refused("ids in", shown, MADE)
    uneven = save(tmp_path / "uneven", MADE, names=["face0_0", "face0_1", "face1_0", "face1_1", "face2_0"])
    refused("fewer of face2", save(tmp_path / "three", PHOTOS[:3]), uneven)
    again = save(tmp_path / "again", MADE[:3], names=["face0_0", "face0_00", "face1_0"])
    refused("second picture number 0", save(tmp_path / "two", PHOTOS[:2]), again)


def test_several_photos_of_a_stimulus():
    refused("were PHOTOS and PICTURES exchanged", np.stack([PHOTOS, MADE], axis=1), MADE)


def test_folders_that_hold_something_else(tmp_path):
    shown = save(tmp_path / "photos", PHOTOS)
    (tmp_path / "empty").mkdir()
    refused("no pictures", shown, tmp_path / "empty")
    refused("nothing there", shown, tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("words")
    refused("another kind", shown, tmp_path / "a.txt")
    both = save(tmp_path / "both", MADE)
    save(both / "subj01", MADE)
    refused("pictures, and folders with pictures: subj01", shown, both)
    (save(tmp_path / "others", MADE) / "x.webp").write_bytes(b"RIFF")
    refused("other formats: x.webp", shown, tmp_path / "others")
    twice = save(tmp_path / "twice", MADE)
    Image.fromarray(MADE[0]).save(twice / "face0.jpg")
    refused("several files named face0", shown, twice)
    save(tmp_path / "photos_of" / "subj01", PHOTOS)
    refused("folders of pictures", tmp_path / "photos_of", shown)
    (shown / "face2.png").write_text("no picture")
    refused("neither PNG nor JPEG", shown, shown)
    whole = (shown / "face1.png").read_bytes()
    (shown / "face2.png").write_bytes(whole[: len(whole) // 2])
    refused("cannot be read as a picture", shown, shown)
    refused("unless PHOTOS is the export of a study", shown)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_files_whose_look_depends_on_the_program():
    image, clear = Image.fromarray(MADE[0]), Image.fromarray(MADE[0]).convert("RGBA")
    clear.putalpha(128)
    turned = Image.Exif()
    turned[274] = 6
    palette = image.convert("P")
    for content, words in (
        (encoded(clear), "transparent pixels"),
        (encoded(palette, transparency=int(np.asarray(palette)[0, 0])), "transparent pixels"),
        (encoded(Image.fromarray(MADE[0, :, :, 0].astype(np.uint16) * 257)), "16 bits"),
        (encoded(image.convert("CMYK"), "JPEG"), "the colours CMYK"),
        (encoded(image, "JPEG", exif=turned), "an EXIF tag that turns it"),
        (encoded(image, save_all=True, append_images=[Image.fromarray(MADE[1])]), "2 frames"),
    ):
        with pytest.raises(bdflow.InputError, match=words):
            decode(content, "x.png")


class Code:
    """What a file may hold that runs when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_files_of_arrays_that_are_damaged_or_would_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("object.npy", np.array([Code()], dtype=object), allow_pickle=True)
    refused("Python objects", "object.npy", MADE)
    np.savez("object.npz", a=np.array([Code()], dtype=object))
    refused("Python objects", "object.npz", MADE)
    torch.save({"a": Code()}, "code.pt")
    refused("more than tensors", "code.pt", MADE)
    Path("raw.pt").write_bytes(pickle.dumps(Code()))
    refused("more than tensors", "raw.pt", MADE)
    assert not Path("ran").exists()
    np.save("short.npy", PHOTOS)
    Path("short.npy").write_bytes(Path("short.npy").read_bytes()[:-5])
    refused("bytes for uint8", "short.npy", MADE)
    torch.save(torch.from_numpy(PHOTOS), "short.pt")
    Path("short.pt").write_bytes(Path("short.pt").read_bytes()[:900])
    refused("do not make a whole checkpoint", "short.pt", MADE)
    torch.save([torch.from_numpy(PHOTOS)], "list.pt")
    refused("pickled list", "list.pt", MADE)
    np.savez("two.npz", a=PHOTOS, b=MADE)
    refused("2 arrays: a, b", "two.npz", MADE)
    refused("no array 'c'", "two.npz:c", MADE)
    assert bdflow.score("two.npz:a", "two.npz:b", "PixCorr").values["PixCorr"].shape == (5,)
    np.savez("ids.npz", a=PHOTOS, stimulus_id=["x", "y", "x", "z", "w"])
    refused("stand twice: x", "ids.npz", MADE)
    np.savez("few.npz", a=PHOTOS, ids=["x", "y"])
    refused("2 ids for 5 rows", "few.npz", MADE)
    Path("no.npz").write_text("words")
    refused("cannot be read", "no.npz", MADE)


def test_zarr_that_holds_no_pictures(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    refused("0 arrays of four or five dimensions", tmp_path / "a.zarr", MADE)
    group.create_array("one", data=PHOTOS)
    group.create_array("two", data=PHOTOS)
    refused("one, two", tmp_path / "a.zarr", MADE)
    chunk = next(file for file in (tmp_path / "a.zarr/one/c").rglob("*") if file.is_file())
    chunk.write_bytes(b"damaged")
    refused("Zarr that cannot be read", tmp_path / "a.zarr/one", MADE)
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr/zarr.json").write_text("{")
    refused("Zarr that cannot be read", tmp_path / "b.zarr", MADE)
