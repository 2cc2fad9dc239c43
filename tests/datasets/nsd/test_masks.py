"""A mask file with labels means every label above 0: in the mask, in the language of regions, in maps. A name has one
meaning, or is refused."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdflow.config import parse
from bdflow.datasets.formats.volumes import voxel_mask
from bdflow.datasets.nsd import NSD, ROI_FILES, ROI_LABELS
from bdflow.datasets.nsd.color_tables import region_labels
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.regions.language import AGGREGATES, Atlas, Vocabulary
from bdflow.study import region_patterns
from bdflow.study.voxel_maps import voxel_maps

QUIRKS = Path(__file__).parents[2] / "samples/nsd_quirks"
ROIS = "nsddata/ppdata/subj01/func1pt8mm/roi"
FILES = {name: ROI_LABELS[name] for name in ROI_FILES}
REGIONS = [f"{name}/{label}" for name, labels in FILES.items() for label in labels]


def config(root: Path, where: Path, mask: str, **more):
    np.save(where / "captions.npy", np.full((225, 5), "a caption"))
    return parse(
        {
            "study": str(where / "study.zarr"),
            "subjects": ["subj01"],
            "dataset": {"root": str(root), "captions": str(where / "captions.npy"), "sessions": 3, "mask": mask},
            "spaces": {"text": {"encoder": "clip_text"}},
            "report": {"path": str(where / "report")},
            "chunks": {"voxels": 1024},
            **more,
        }
    )


@pytest.mark.parametrize("mask", ["HCP_MMP1", "Kastner2015", "streams", "prf-visualrois", "nsdgeneral", "corticalsulc"])
def test_the_mask_the_region_of_its_name_and_its_map_are_the_same_voxels(tmp_path, mask):
    """`dataset.mask: HCP_MMP1` made a region of that name of its label 1 alone."""
    settings = config(QUIRKS, tmp_path, mask)
    pipeline = Pipeline(settings)
    pipeline.run(("ingest",))
    context = pipeline.context()
    atlas = region_patterns.atlas(context, "subj01", {})
    volume = NSD(QUIRKS).roi("subj01", mask)
    inside = voxel_mask(volume)
    assert inside.sum() == atlas.valid.size
    np.testing.assert_array_equal(atlas.pattern(mask) > 0, atlas.valid)
    for number in np.unique(volume.data[inside]):
        if number <= 0:
            continue
        name = region_labels(QUIRKS, "subj01", mask)[int(number)]
        np.testing.assert_array_equal(atlas.regions[f"{mask}/{name}"], volume.data[inside] == number)
    assert atlas.counts()[mask] == atlas.valid.sum()
    maps = voxel_maps(context, "subj01")
    np.testing.assert_array_equal(maps[f"region_{mask}"], atlas.valid)
    # other files' regions are what they are in the whole volume, within the mask
    for name, (file, labels) in {"V1": ("prf-visualrois", (1, 2)), "faces": ("floc-faces", (1, 2, 3, 4, 5))}.items():
        expected = np.isin(NSD(QUIRKS).roi("subj01", file).data[inside], labels) & atlas.valid
        np.testing.assert_array_equal(atlas.pattern(name) > 0 if expected.any() else expected, expected)


def test_labels_of_the_mask_have_their_names_where_they_are_known(tmp_path):
    pipeline = Pipeline(config(QUIRKS, tmp_path, "streams"))
    pipeline.run(("ingest",))
    atlas, volume = region_patterns.atlas(pipeline.context(), "subj01", {}), NSD(QUIRKS).roi("subj01", "streams")
    inside = voxel_mask(volume)
    for number, name in enumerate(ROI_LABELS["streams"], start=1):
        expected = (volume.data[inside] == number) & atlas.valid
        np.testing.assert_array_equal(atlas.pattern(name) > 0, expected)


@pytest.mark.parametrize("name", ["V1", "v1", "faces", "FFA-1", "hV4"])
def test_a_mask_file_with_the_name_of_a_region_is_refused_where_regions_are_named(tmp_path, name):
    root = Path(shutil.copytree(QUIRKS, tmp_path / "nsd"))
    shutil.copy(root / ROIS / "nsdgeneral.nii.gz", root / ROIS / f"{name}.nii.gz")
    more = {"roi": {"sets": {"one": ["hV4 | V1"]}}}
    with pytest.raises(InputError) as error:
        region_patterns.vocabulary(config(root, tmp_path, name, **more))
    for word in ("two meanings", f"every voxel of the mask {name}", "dataset.mask"):
        assert word in str(error.value)


NAMES = [*FILES, *AGGREGATES, *(label for labels in FILES.values() for label in labels), "nsdgeneral"]


@given(st.sampled_from(NAMES), st.sampled_from([str, str.upper, str.lower, str.swapcase]), st.booleans())
def test_no_name_of_a_mask_or_file_may_be_another_ones(name, spelt, as_mask):
    """In whatever case."""
    taken = spelt(name)
    regions = ["nsdgeneral/nsdgeneral", *REGIONS]
    if as_mask:
        with pytest.raises(InputError, match="one that is none of the dataset's"):
            Vocabulary(regions, "nsdgeneral", (taken,))
    elif taken in ("nsdgeneral", *FILES):
        assert Vocabulary(regions, taken).names()[taken] == ()
    elif name in ("nsdgeneral", *FILES):
        assert Vocabulary(regions, taken).names()[taken] == (), "in another case it is the same name"
    else:
        with pytest.raises(InputError, match="two meanings"):
            Vocabulary(regions, taken)


def test_two_masks_of_ones_own_need_two_names():
    Vocabulary(REGIONS, None, ("mine", "yours"))
    with pytest.raises(InputError, match=r"two meanings: .*the mask Mine"):
        Vocabulary(REGIONS, None, ("mine", "Mine"))


@given(st.lists(st.sampled_from([-1, 0, 1, 2, 7, 180, 32767]), min_size=1, max_size=30))
def test_a_collections_name_is_any_of_its_regions(labels):
    values = np.array(labels)
    regions = {f"atlas/{number}": values == number for number in (1, 2, 7, 180, 32767)}
    atlas = Atlas(Vocabulary([*regions, *REGIONS]), regions, np.ones(values.size, bool))
    if (values > 0).any():
        np.testing.assert_array_equal(atlas.pattern("atlas") > 0, values > 0)
    else:
        with pytest.raises(InputError, match="which has no voxel here"):
            atlas.pattern("atlas")


@pytest.mark.parametrize("value", [32768, 40_000, -32769, 2**40, 1e300, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("name", ["nsdgeneral", "floc-faces"])
def test_a_label_that_would_be_stored_as_another_is_refused(tmp_path, name, value):
    """Label 40,000 became -25,536: not cortex."""
    root = Path(shutil.copytree(QUIRKS, tmp_path / "nsd"))
    path = root / ROIS / f"{name}.nii.gz"
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[2, 3, 4] = value
    nib.save(nib.Nifti1Image(data, image.affine, dtype=np.float64), path)
    with pytest.raises(InputError) as error:
        Pipeline(config(root, tmp_path, "nsdgeneral")).run(("ingest",))
    for word in (str(path), f"{value:.10g} at (2, 3, 4)", "whole numbers from -32768 to 32767"):
        assert word in str(error.value)
    assert not (tmp_path / "study.zarr/betas").exists()


@pytest.mark.parametrize("value", [-0.1, np.inf, 1e39])
def test_noise_ceilings_that_are_none(tmp_path, value):
    root = Path(shutil.copytree(QUIRKS, tmp_path / "nsd"))
    path = next(root.glob("nsddata_betas/ppdata/subj01/*/*/ncsnr.nii.gz"))
    image = nib.load(path)
    data = np.asarray(image.dataobj, np.float64).copy()
    data[2, 3, 4] = value
    nib.save(nib.Nifti1Image(data, image.affine, dtype=np.float64), path)
    with pytest.raises(InputError, match=r"ncsnr\.nii\.gz.* at \(2, 3, 4\)"):
        Reader(config(root, tmp_path, "nsdgeneral")).ncsnr("subj01")


@pytest.mark.parametrize("value", [2, 0.5, np.nan])
def test_files_of_validity_say_yes_or_no(tmp_path, value):
    root = Path(shutil.copytree(QUIRKS, tmp_path / "nsd"))
    path = root / "nsddata/ppdata/subj01/func1pt8mm/valid_session02.nii.gz"
    image = nib.load(path)
    data = np.asarray(image.dataobj, np.float64).copy()
    data[2, 3, 4] = value
    nib.save(nib.Nifti1Image(data, image.affine, dtype=np.float64), path)
    with pytest.raises(InputError, match=r"valid_session02\.nii\.gz"):
        Reader(config(root, tmp_path, "nsdgeneral")).mask("subj01")
