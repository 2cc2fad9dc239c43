"""Names of regions from colour tables, for whichever collections a subject has."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bdflow.datasets.formats.grids import Grid
from bdflow.datasets.nsd import NSD
from bdflow.datasets.nsd.color_tables import Regions, collections, region_labels, region_names, table_path
from bdflow.datasets.nsd.files import ROI_LABELS
from bdflow.errors import InputError, NotAtHand

SAMPLE = Path(__file__).parents[2] / "samples/nsd_quirks"
SUBJECTS = json.loads((SAMPLE / "expected.json").read_text(encoding="utf-8"))["subjects"]
EVERY = [(subject, name) for subject in SUBJECTS for name in SUBJECTS[subject]["regions"]]


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of the volumes and tables, to spoil."""
    for folder in ("freesurfer", "ppdata"):
        shutil.copytree(SAMPLE / "nsddata" / folder, tmp_path / "nsd/nsddata" / folder)
    return tmp_path / "nsd"


def regions(root, subject="subj01") -> Regions:
    volume = NSD(root).roi(subject, "nsdgeneral")
    return Regions(NSD(root), subject, volume.grid)


def volume_path(root, name, subject="subj01") -> Path:
    return root / f"nsddata/ppdata/{subject}/func1pt8mm/roi/{name}.nii.gz"


def write(path: Path, data: np.ndarray) -> None:
    affine = nib.load(volume_path(SAMPLE, "nsdgeneral")).affine
    nib.save(nib.Nifti1Image(data, affine), path)


@pytest.mark.parametrize(("subject", "name"), EVERY)
def test_regions_of_the_sample(subject, name):
    expected, nsd = SUBJECTS[subject]["regions"][name], NSD(SAMPLE)
    labels = region_labels(SAMPLE, subject, name)
    assert len(labels) == expected["labels_in_the_table"]
    assert 0 not in labels
    assert str(nib.load(volume_path(SAMPLE, name, subject)).get_data_dtype()) == expected["dtype"]
    data = nsd.roi(subject, name).data
    assert (data == -1).sum() == expected["not_cortex"]
    assert (data == 0).sum() == expected["unlabelled"]
    named = regions(SAMPLE, subject)
    masks = {region: named[f"{name}/{region}"] for region in labels.values()}
    assert all(mask.dtype == bool and mask.shape == data.shape for mask in masks.values())
    assert sum(mask.any() for mask in masks.values()) == expected["labels_present"]
    assert sum(mask.sum() for mask in masks.values()) == expected["labelled"]
    for region, count in {**expected["first_three"], **expected["last"]}.items():
        assert masks[region].sum() == count, region
    for side in ("left", "right"):
        half = f"{side[0]}h.{name}"
        assert region_labels(SAMPLE, subject, half) == labels
        assert (nsd.roi(subject, half).data > 0).sum() == expected[side]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_collections_of_the_sample(subject):
    nsd = NSD(SAMPLE)
    assert collections(nsd, subject) == sorted(SUBJECTS[subject]["regions"])
    names = region_names(nsd, subject)
    found = regions(SAMPLE, subject)
    assert names == list(found)
    assert len(found) == len(set(names)) == sum(r["labels_in_the_table"] for r in SUBJECTS[subject]["regions"].values())
    assert {"HCP_MMP1/1", "HCP_MMP1/46", "Kastner2015/FEF", "floc-faces/aTL-faces"} <= set(names)
    assert not found["floc-faces/aTL-faces"].any(), "an area that the subject does not have"
    assert "HCP_MMP1/Unknown" not in found
    assert all(path.is_file() for path in found.files().values())
    with pytest.raises(KeyError):
        found["HCP_MMP1/V1v"]


def test_names_that_look_like_numbers_are_names():
    labels = region_labels(SAMPLE, "subj01", "HCP_MMP1")
    number = next(label for label, name in labels.items() if name == "46")
    assert number != 46
    np.testing.assert_array_equal(regions(SAMPLE)["HCP_MMP1/46"], NSD(SAMPLE).roi("subj01", "HCP_MMP1").data == number)


def test_nsds_own_collections_have_names_without_tables(root):
    expected = {name: region_labels(root, "subj01", name) for name in ROI_LABELS}
    shutil.rmtree(root / "nsddata/freesurfer")
    assert {name: region_labels(root, "subj01", name) for name in ROI_LABELS} == expected
    assert collections(NSD(root), "subj01") == sorted(ROI_LABELS)
    with pytest.raises(NotAtHand, match=r"HCP_MMP1\.mgz\.ctab"):
        region_labels(root, "subj01", "HCP_MMP1")


def test_a_mask_of_ones_own_has_no_regions_but_a_table_gives_it_some(root):
    data = np.asarray(nib.load(volume_path(root, "streams")).dataobj)
    write(volume_path(root, "mine"), data)
    assert "mine" not in collections(NSD(root), "subj01")
    table_path(root, "subj01", "mine").write_text(
        "# my own\n  0  Unknown\n\n" + "".join(f"{n}\tarea-{n} {n} 0 10 0\t\n" for n in range(1, 8)), encoding="utf-8"
    )
    assert region_labels(root, "subj01", "mine") == {n: f"area-{n}" for n in range(1, 8)}
    np.testing.assert_array_equal(regions(root)["mine/area-5"], data == 5)


TABLES = {
    "a label twice": ("1 a\n1 b\n", "line 2: found label 1 a second time"),
    "a name twice": ("1 a\n2 a\n", "line 2: found the name 'a' a second time"),
    "no name": ("1 a\n2\n", "line 2: found '2'"),
    "no number": ("1 a\nb 2\n", "line 2: found 'b 2'"),
    "a name with a blank": ("1 a b\n", "a name without blanks"),
    "half a colour": ("1 a 10 10\n", "a colour of four numbers"),
    "no labels": ("0 Unknown\n\n", "no label above 0"),
    "no text": (b"1 \xff\n", "no text"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_tables_that_name_nothing(root, fault):
    content, words = TABLES[fault]
    path = table_path(root, "subj01", "streams")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for ask in (lambda: region_labels(root, "subj01", "streams"), lambda: regions(root)):
        with pytest.raises(InputError, match=words) as error:
            ask()
        assert "streams.mgz.ctab" in str(error.value)


def test_volumes_that_do_not_fit_their_names(root):
    data = np.asarray(nib.load(volume_path(root, "streams")).dataobj).copy()
    data[0, 0, :2] = 8, 12
    write(volume_path(root, "streams"), data)
    found = regions(root)
    with pytest.raises(InputError, match=r"labels without a name: 8, 12; expected the labels of .*, up to 7"):
        found["streams/early"]
    assert found["Kastner2015/V1v"].any()
    write(volume_path(root, "streams"), data / 2)
    with pytest.raises(InputError, match="not whole numbers"):
        regions(root)["streams/early"]
    write(volume_path(root, "streams"), data[1:])
    with pytest.raises(InputError, match="a volume of shape"):
        regions(root)["streams/early"]
    grid = Grid("another", (3, 3, 3), None)
    with pytest.raises(InputError, match=r"\(3, 3, 3\)"):
        Regions(NSD(root), "subj01", grid)["Kastner2015/V1v"]
    with pytest.raises(InputError, match="a name NSD does not use"):
        region_labels(root, "fsaverage", "streams")
