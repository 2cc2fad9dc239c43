"""Captions of NSD's stimuli from COCO's own files: joined by cocoId, in the order of annotations, parsed once."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bdflow.datasets.nsd import coco
from bdflow.datasets.nsd.coco import CocoCaptions, caption_files, open_captions, places
from bdflow.datasets.nsd.stimuli import Captions
from bdflow.errors import InputError, NotAtHand
from bdflow.stores.paths import RemotePath

SAMPLE = Path(__file__).parents[2] / "samples/nsd_quirks"
EXPECTED = json.loads((SAMPLE / "expected.json").read_text(encoding="utf-8"))
CAPTIONS, COUNT = EXPECTED["captions"], EXPECTED["stim_info"]["rows"]
ANNOTATIONS = "nsddata_stimuli/stimuli/nsd/annotations"
TABLE = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of the files that captions come from, to spoil."""
    for folder in (ANNOTATIONS, "nsddata/experiments"):
        shutil.copytree(SAMPLE / folder, tmp_path / "nsd" / folder)
    return tmp_path / "nsd"


def change(path: Path, what) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    what(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_captions_of_the_sample():
    captions = CocoCaptions(SAMPLE, count=COUNT)
    assert captions.count == COUNT
    every = captions.read(range(COUNT))
    assert Counter(len(one) for one in every) == {int(n): count for n, count in CAPTIONS["by_number"].items()}
    assert captions.per_stimulus == max(int(n) for n in CAPTIONS["by_number"])
    example = CAPTIONS["example"]
    assert every[example["nsd_id"]] == example["captions_by_annotation_id_stripped"]
    assert all(text == text.strip() and text for one in every for text in one)
    assert captions.read(np.array([3, 0, 3])) == [every[3], every[0], every[3]]


def test_every_caption_is_of_its_own_image():
    """Against a plain join of the files, image by image."""
    table = [line.split(",") for line in (SAMPLE / TABLE).read_text(encoding="utf-8").splitlines()[1:]]
    ids = {int(cells[0]): int(cells[1]) for cells in table}
    assert ids[CAPTIONS["example"]["nsd_id"]] == CAPTIONS["example"]["cocoId"]
    assert Counter(cells[2] for cells in table)["val2017"] == EXPECTED["stim_info"]["val2017"]
    notes = []
    for name in coco.FILES:
        notes += json.loads((SAMPLE / ANNOTATIONS / name).read_text(encoding="utf-8"))["annotations"]
    surplus = {note["image_id"] for note in notes} - set(ids.values())
    assert len(surplus) == CAPTIONS["images_in_the_json_files_that_are_not_stimuli"]
    blank = [note for note in notes if note["caption"] != note["caption"].strip()]
    assert len(blank) == CAPTIONS["with_surrounding_space"]
    found = CocoCaptions(SAMPLE).read(range(COUNT))
    for nsd_id, image in ids.items():
        own = sorted((note["id"], note["caption"].strip()) for note in notes if note["image_id"] == image)
        assert found[nsd_id] == [text for _, text in own]


@pytest.mark.parametrize("folder", coco.FOLDERS)
def test_captions_lie_where_nsd_access_keeps_them_or_at_the_root(root, folder):
    expected = CocoCaptions(SAMPLE).read(range(COUNT))
    target = root / folder if folder else root
    assert target in places(root)
    target.mkdir(exist_ok=True)
    for name in coco.FILES:
        (root / ANNOTATIONS / name).rename(target / name)
    assert caption_files(root) == [target / name for name in coco.FILES]
    assert CocoCaptions(root).read(range(COUNT)) == expected


def test_each_file_is_parsed_once_in_a_process_and_again_when_it_changes(root, monkeypatch):
    parsed = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: parsed.append(self.name) or read(self))
    for _ in range(3):
        CocoCaptions(root)
    assert Counter(parsed) == dict.fromkeys((*coco.FILES, Path(TABLE).name), 1)
    note = {"image_id": CAPTIONS["example"]["cocoId"], "id": 1, "caption": " another\n"}
    change(root / ANNOTATIONS / coco.FILES[0], lambda content: content.update(annotations=[note]))
    assert CocoCaptions(root).read([CAPTIONS["example"]["nsd_id"], 1]) == [["another"], []]


def test_which_captions_are_taken(root):
    """A file or folder that is given; else the curated file; else COCO's."""
    assert isinstance(open_captions(root), CocoCaptions)
    curated = np.full((COUNT, 2), "curated")
    np.save(root / coco.CURATED, curated)
    assert isinstance(open_captions(root, count=COUNT), Captions)
    given = open_captions(root, root / ANNOTATIONS)
    assert isinstance(given, CocoCaptions)
    assert given.read([0]) == [CAPTIONS["example"]["captions_by_annotation_id_stripped"]]
    assert open_captions(root, root / coco.CURATED).read([0]) == [["curated", "curated"]]


def test_captions_in_an_object_store(root):
    place = RemotePath("memory://coco-captions/nsd")
    for path in root.rglob("*"):
        if path.is_file():
            target = place
            for part in path.relative_to(root).parts:
                target = target / part
            target.write_bytes(path.read_bytes())
    assert open_captions(str(place.url)).read([0, 5]) == CocoCaptions(root).read([0, 5])


def duplicate(content) -> None:
    first, second = [note for note in content["annotations"] if note["image_id"] == CAPTIONS["example"]["cocoId"]][:2]
    second["id"] = first["id"]


CONTENTS = {
    "no JSON": (lambda path: path.write_text("{", encoding="utf-8"), "no readable JSON"),
    "no text": (lambda path: path.write_bytes(b'{"annotations": "\xff"}'), "no readable JSON"),
    "a list": (lambda path: path.write_text("[1]", encoding="utf-8"), "no list `annotations`"),
    "instances": (
        lambda path: path.write_text('{"annotations": [{"image_id": 1, "id": 2}]}', encoding="utf-8"),
        "not its instances or keypoints",
    ),
    "no annotations": (lambda path: path.write_text('{"annotations": []}', encoding="utf-8"), "no list"),
    "an image as text": (
        lambda path: change(path, lambda c: c["annotations"][3].update(image_id="110216")), 'image_id "110216"',
    ),
    "a caption that is none": (lambda path: change(path, lambda c: c["annotations"][3].update(caption=None)), "null"),
    "an annotation twice": (lambda path: change(path, duplicate), "a second caption of image 110216"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CONTENTS)
def test_files_that_are_no_captions(root, fault):
    spoil, words = CONTENTS[fault]
    spoil(root / ANNOTATIONS / coco.FILES[0])
    with pytest.raises(InputError, match=words) as error:
        CocoCaptions(root)
    assert coco.FILES[0] in str(error.value)


def test_both_files_the_same_is_refused(root):
    shutil.copy(root / ANNOTATIONS / coco.FILES[0], root / ANNOTATIONS / coco.FILES[1])
    with pytest.raises(InputError, match="each annotation once, over both files"):
        CocoCaptions(root)


def rows(path: Path, what) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(what(lines)) + "\n", encoding="utf-8")


TABLES = {
    "a column too few": (lambda lines: [line.replace("cocoId", "coco") for line in lines], "a column cocoId"),
    "a stimulus twice": (lambda lines: [*lines, lines[1]], "0 twice"),
    "a stimulus too few": (lambda lines: [*lines[:5], *lines[6:]], "no 4"),
    "no stimuli": (lambda lines: lines[:1], "no rows"),
    "no number": (lambda lines: [*lines[:5], lines[5].replace(",", ",x", 1), *lines[6:]], "a whole number"),
    "unquoted commas": (lambda lines: [line.replace('"', "") for line in lines], "stands in quotes"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_tables_that_do_not_say_which_image_is_which(root, fault):
    spoil, words = TABLES[fault]
    rows(root / TABLE, spoil)
    with pytest.raises(InputError, match=words) as error:
        CocoCaptions(root)
    assert "nsd_stim_info_merged.csv" in str(error.value)


def test_missing_files_and_ids(root):
    captions = CocoCaptions(root)
    for ids in ([COUNT], [-1], [0, COUNT + 7]):
        with pytest.raises(InputError, match=f"0 to {COUNT - 1}"):
            captions.read(ids)
    with pytest.raises(InputError, match="whole numbers"):
        captions.read([0.5])
    assert captions.read([]) == []
    with pytest.raises(InputError, match="as many as there are pictures"):
        CocoCaptions(root, count=COUNT + 1)
    (root / ANNOTATIONS / coco.FILES[1]).unlink()
    with pytest.raises(NotAtHand, match=r"captions_val2017\.json"):
        open_captions(root)
    (root / ANNOTATIONS / coco.FILES[0]).unlink()
    with pytest.raises(NotAtHand, match="no captions: neither this file, nor captions_train2017"):
        open_captions(root)
    (root / TABLE).unlink()
    with pytest.raises(NotAtHand, match="nsd_stim_info_merged"):
        CocoCaptions(root)
