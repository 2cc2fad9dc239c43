"""Arrays of the right form whose values do not fit: refused, named, and all that is wrong at once."""

import numpy as np
import pytest
import xarray as xr

from tests.datasets.arrays.made import changed, in_files, made, placed, refused, stimuli, subject, text

ONES = np.ones((3, 1, 1), bool)

# --- a subject's small arrays ---------------------------------------------------------------------------------

REGION = {"roi": (("region", "voxel"), np.ones((2, 3), bool))}
CONTENT = {
    "stimuli that there are not": (
        subject(shown=["a 1.png", "b+c", "", "A 1.png", "b+c", "x"]),
        "stimulus_id: 2 stimuli that /stimuli does not have ('A 1.png' in trial 3, 'x' in trial 5; trials counted",
    ),
    "a session in two pieces": (
        subject(session=["s1", "s1", "s2", "s1", "s2", "s2"]),
        "session: 's1' in trials 0 to 1 and again from trial 3",
    ),
    "a session without a name": (
        subject(session=["s1", "s1", "", "", "s2", "s2"]),
        "session: no text in trial 2 (counted from 0) and 1 more",
    ),
    "a negative run": (changed("run", ("trial",), [1, 1, -1, 2, 2, 2]), "run: -1 in trial 2 (counted from 0)"),
    "a run that is too large": (changed("run", ("trial",), [1, 1, 1, 2, 2, 2**40]), "run: 1099511627776 in trial 5"),
    "voxels outside": (
        placed(ijk=([0, 1, 2], [0, 0, 1], [0, 0, 0])),
        "i, j, k: 1 voxel outside the volume, the first is voxel 2 at (2, 1, 0)",
    ),
    "places below 0": (placed(ijk=([0, 1, 1], [0, -1, 1], [0, 0, 0])), "the first is voxel 1 at (1, -1, 0)"),
    "two voxels at one place": (
        placed(ijk=([1, 0, 1], [1, 0, 1], [0, 1, 0])),
        "i, j, k: 1 voxel at the place of another, the first is voxel 2 at (1, 1, 0), as voxel 0",
    ),
    "one name of two regions": (
        subject().assign(REGION).assign_coords(region=text(["a/b", "a/b"])),
        "region: 'a/b' more than once",
    ),
    "a region without a collection": (
        subject().assign(REGION).assign_coords(region=text(["a/b", "V1"])),
        "region: 'V1'; expected collection/name",
    ),
    "half a name": (
        subject().assign(REGION).assign_coords(region=text(["a/", "/b"])),
        "region: '/b'; expected collection/name",
    ),
    "sessions that validity lacks": (
        changed("valid", ("session_name", "voxel"), np.ones((2, 3), bool)).assign_coords(
            session_name=text(["s1", "S2"])
        ),
        "session_name: no s2; expected every session that has trials",
    ),
    "a session of two validities": (
        changed("valid", ("session_name", "voxel"), np.ones((3, 3), bool)).assign_coords(
            session_name=text(["s1", "s2", "s1"])
        ),
        "session_name: 's1' more than once",
    ),
    "a fraction above 1": (
        changed("noise_ceiling", ("voxel",), np.array([0.5, 80, 20], "f4"), units="fraction", repeats=2),
        "noise_ceiling: 80 in voxel 1, and 1 more that cannot be fraction; expected 0 to 1",
    ),
    "a percentage below 0": (
        changed("noise_ceiling", ("voxel",), np.array([0.5, 80, -1], "f4"), units="percent", repeats=2),
        "noise_ceiling: -1 in voxel 2",
    ),
    "infinite ncsnr": (
        changed("noise_ceiling", ("voxel",), np.array([0.5, np.inf, 1], "f4"), units="ncsnr"),
        "noise_ceiling: inf in voxel 1",
    ),
}


@pytest.mark.parametrize("name", CONTENT)
def test_what_is_wrong_with_a_subjects_small_arrays(tmp_path, name):
    """The other subject, and the stimuli, can be used."""
    part, said = CONTENT[name]
    data = made(tmp_path, anna=part, ben=subject())
    uses = [
        lambda data: data.trials("anna"),
        lambda data: data.mask("anna", None),
        lambda data: data.regions("anna"),
        lambda data: data.region_names("anna"),
        lambda data: data.betas("anna", "s1", ONES),
        lambda data: data.beta_files("anna", ["s1"]),
    ]
    for use in uses:
        words = refused(data, use)
        assert said in words
        assert "subjects/anna" in words
    assert data.trials("ben").index.tolist() == [0, 1, 2, 3, 0, 1]


def test_everything_that_is_wrong_with_a_subject_is_said_at_once(tmp_path):
    part = subject(shown=["x"] * 6, session=["s1", "s2"] * 3).assign(REGION).assign_coords(region=text(["V1", "V2"]))
    words = refused(made(tmp_path, anna=part), lambda data: data.trials("anna"))
    assert "things wrong" in words
    for said in ("stimulus_id: 1 stimulus", "session: 's1'", "region: 'V1'", "region: 'V2'"):
        assert said in words


def test_regions_that_hold_labels(tmp_path):
    part = subject().assign(roi=(("region", "voxel"), np.array([[0, 1, 2]], "u1")))
    data = made(tmp_path, anna=part.assign_coords(region=text(["a/b"])))
    for use in (lambda data: data.mask("anna", "a/b"), lambda data: data.regions("anna")["a/b"]):
        assert "found the value 2; expected true and false, or 1 and 0" in refused(data, use)


# --- stimuli and splits ---------------------------------------------------------------------------------------


def test_ids_that_are_empty_or_stand_there_twice(tmp_path):
    data = made(tmp_path, stimuli=stimuli(["a", "b", "a", " ", "b", "a"]))
    for use in (lambda data: data.stimuli(), lambda data: data.trials("anna"), lambda data: data.pictures(["a"])):
        words = refused(data, use)
        assert "2 ids more than once ('a' in rows 0 and 2, 'b' in rows 1 and 4)" in words
        assert "no text in row 3" in words


def test_no_stimulus_with_a_picture(tmp_path):
    data = made(tmp_path, stimuli=in_files([""] * 4))
    assert "no stimulus with a picture" in refused(data, lambda data: data.stimuli())


def test_splits_that_do_not_fit(tmp_path):
    part = xr.Dataset(
        {"part": (("split", "stimulus"), text([["test", "train", "Test"], ["train", "", "train"]]))},
        coords={"split": text(["one", "two"]), "stimulus": text(["é", "a", "d.e"])},
    )
    words = refused(made(tmp_path, splits=part), lambda data: data.splits())
    assert "found 3 things wrong" in words
    assert "1 id that /stimuli does not have ('a')" in words
    assert "part: 'Test' of 'd.e' in 'one'; expected train, test or empty text" in words
    assert "part: no stimulus of 'two' is test" in words


def test_splits_and_their_ids_stand_there_once(tmp_path):
    part = xr.Dataset(
        {"part": (("split", "stimulus"), text([["test", "train"], ["train", "test"]]))},
        coords={"split": text(["one", "one"]), "stimulus": text(["é", "é"])},
    )
    words = refused(made(tmp_path, splits=part), lambda data: data.splits())
    assert "split: 'one' more than once" in words
    assert "stimulus: 'é' more than once" in words
