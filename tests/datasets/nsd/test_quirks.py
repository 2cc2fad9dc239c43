"""A small tree with the quirks of NSD's files reads to numbers that were computed from the files alone."""

import json
import logging
import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from sklearn.linear_model import Ridge

from bdflow.config import parse
from bdflow.datasets import nsd
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.datasets.formats.volumes import voxel_mask
from bdflow.datasets.nsd import NSD, clipped, nsd_id_of, stimulus_id
from bdflow.datasets.nsd.dataset import session_name, session_number
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError
from bdflow.pipeline import STAGES, Pipeline
from bdflow.stores import Store
from bdflow.study.graph import Graph
from tests.support import logs

ROOT = Path(__file__).parents[2] / "samples/nsd_quirks"
EXPECTED = json.loads((ROOT / "expected.json").read_text())
SUBJECTS = EXPECTED["subjects"]
SESSIONS = {"subj01": 3, "subj04": 2}
LABELS = ROOT / "nsddata/freesurfer"


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    """No captions: these tests are of betas."""
    path = tmp_path_factory.mktemp("captions") / "captions.npy"
    np.save(path, np.full((EXPECTED["design"]["stimuli"], 5), "a caption"))
    return path


@pytest.fixture
def content(captions, tmp_path):
    spaces = {"text": {"encoder": "clip_text"}, "z": {"encoder": "clip_text", "ridge": {"session_zscore": True}}}
    return {
        "study": str(tmp_path / "study.zarr"),
        "subjects": list(SUBJECTS),
        "dataset": {"root": str(ROOT), "captions": str(captions), "sessions": SESSIONS},
        "spaces": spaces,
        "report": {"path": str(tmp_path / "report")},
        "chunks": {"voxels": 64, "stimuli": 64},
    }


def everywhere(subject: str) -> np.ndarray:
    return np.ones(SUBJECTS[subject]["shape"], bool)


def all_betas(content, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Stored values and validity (session, trial, x, y, z) of every voxel, as the reader gives them."""
    reader, mask = Reader(parse(content)), everywhere(subject)
    sessions = [reader.dataset.betas(subject, name, mask) for name in reader.sessions(subject)]
    return tuple(
        np.stack([getattr(of, name).reshape(-1, *mask.shape) for of in sessions]) for name in ("values", "valid")
    )


@pytest.mark.parametrize("subject", SUBJECTS)
def test_sizes_design_and_split(content, subject):
    expected, reader = SUBJECTS[subject], Reader(parse(content))
    assert [*reader.sessions(subject)] == [f"session{n:02d}" for n in range(1, expected["sessions"] + 1)]
    assert reader.most_trials(subject) == expected["trials_by_session"][0]
    trials = reader.trials(subject)
    shown = np.array([nsd_id_of(stimulus) for stimulus in trials.stimulus])
    assert len(shown) == expected["trials"]
    assert trials.index[:40].tolist() == [*range(38), 0, 1]
    assert shown[:5].tolist() == expected["first_nsd_ids"]
    ids, repeats = np.unique(shown, return_counts=True)
    assert len(ids) == expected["stimuli_shown"]
    found = dict(zip(*(of.tolist() for of in np.unique(repeats, return_counts=True)), strict=True))
    assert found == {int(n): count for n, count in expected["stimuli_by_repeats"].items()}
    shared = np.array(sorted(nsd_id_of(stimulus) for stimulus in reader.shared))
    assert shared.tolist() == EXPECTED["design"]["shared_nsd_ids"]
    assert len(reader.split[subject].test) == expected["shared_shown"]
    assert (repeats[np.isin(ids, shared)] == 3).sum() == expected["shared_shown_3_times"]
    assert reader.mask(subject).sum() == expected["nsdgeneral_voxels"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_betas_and_what_is_no_measurement(content, subject):
    expected, quirks = SUBJECTS[subject], SUBJECTS[subject]["quirks"]
    values, valid = all_betas(content, subject)
    assert valid.all(axis=1).sum(axis=(1, 2, 3)).tolist() == expected["valid_voxels_by_session"]
    assert (valid.any(axis=1) == valid.all(axis=1)).all(), "whole sessions"
    assert valid.all(axis=(0, 1)).sum() == expected["valid_in_every_session"]
    general = voxel_mask(NSD(ROOT).roi(subject, "nsdgeneral"))
    lost = valid.any(axis=1).sum(axis=0)
    some = [[s + 1, list(at)] for s, *at in np.argwhere(~valid.any(axis=1) & (lost > 0)).tolist()]
    assert some == quirks["zero_in_a_whole_session_but_not_in_all"]
    assert np.argwhere((lost == 0) & general).tolist() == quirks["zero_in_every_session"]
    for value in (-32768, 32767):
        found = np.argwhere((values == value) & valid).tolist()
        assert [[s + 1, t, at] for s, t, *at in found] == quirks[f"value_{value}"]
    assert clipped(values).sum() == len(quirks["value_-32768"]) + len(quirks["value_32767"])
    single = (values == 0) & valid & general
    assert single.sum() == quirks["single_zero_betas_of_valid_voxels_in_nsdgeneral"]
    for voxel in expected["voxels_to_check"]:
        at = (voxel["session"] - 1, slice(None), *voxel["ijk"])
        percent = values[at] / nsd.BETA_SCALE
        assert percent.mean() == pytest.approx(voxel["mean"], abs=1e-4)
        assert percent.std() == pytest.approx(voxel["std"], abs=1e-4)
        assert values[at][:3].tolist() == voxel["first3_stored"]
        assert valid[at].all() == valid[at].any() == bool(voxel["valid"])


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_a_session_did_not_measure_needs_no_file_of_it(content, subject, tmp_path):
    """A voxel that is 0 in every trial is found without valid_sessionNN.nii.gz; inside the brain both say the same."""
    root = shutil.copytree(ROOT, tmp_path / "nsd")
    for file in root.glob("nsddata/ppdata/*/*/valid*"):
        file.unlink()
    _, with_files = all_betas(content, subject)
    _, without = all_betas({**content, "dataset": content["dataset"] | {"root": str(root)}}, subject)
    np.testing.assert_array_equal(with_files, without)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_noise_ceilings(subject):
    expected, quirks = SUBJECTS[subject]["noise_ceiling"], SUBJECTS[subject]["quirks"]
    ncsnr, general = NSD(ROOT).ncsnr(subject), voxel_mask(NSD(ROOT).roi(subject, "nsdgeneral"))
    assert (np.isnan(ncsnr).sum(), (ncsnr == 0).sum()) == (quirks["ncsnr_nan"], quirks["ncsnr_zero"])
    assert np.argwhere(np.isnan(ncsnr) & general).tolist() == quirks["ncsnr_nan_in_nsdgeneral"]
    assert np.argwhere((ncsnr == 0) & general).tolist() == quirks["ncsnr_zero_in_nsdgeneral"]
    best = tuple(expected["best"])
    assert ncsnr[best] == pytest.approx(expected["ncsnr"], abs=1e-4)
    assert noise_ceiling(ncsnr[best], 3) == pytest.approx(expected["percent_for_3_repeats"], abs=1e-3)
    assert noise_ceiling(ncsnr[best], 1) == pytest.approx(expected["percent_for_1"], abs=1e-3)
    found = np.nanmedian(ncsnr[general])
    assert found == pytest.approx(expected["median_ncsnr_in_nsdgeneral_ignoring_nan"], abs=1e-4)


@pytest.mark.parametrize(
    ("subject", "name"), [(subject, name) for subject in SUBJECTS for name in SUBJECTS[subject]["regions"]]
)
def test_regions(subject, name):
    expected, volume = SUBJECTS[subject]["regions"][name], NSD(ROOT).roi(subject, name)
    lines = (LABELS / subject / f"label/{name}.mgz.ctab").read_text().splitlines()
    names = {text: int(number) for number, text in (line.split()[:2] for line in lines if line.strip())}
    labels = volume.data
    assert (labels == -1).sum() == expected["not_cortex"]
    assert (labels == 0).sum() == expected["unlabelled"]
    assert (labels > 0).sum() == voxel_mask(volume).sum() == expected["labelled"]
    assert np.unique(labels[labels > 0]).size == expected["labels_present"]
    for region, count in {**expected["first_three"], **expected["last"]}.items():
        assert (labels == names[region]).sum() == count
    assert np.diag(volume.affine)[:3].tolist() == pytest.approx(SUBJECTS[subject]["affine_diagonal"])
    assert volume.affine[:3, 3].tolist() == pytest.approx(SUBJECTS[subject]["affine_offset"])


def test_responses_are_means_over_what_was_measured(content, caplog):
    """The whole of `ingest`: right means, nothing of a session that did not measure, and all of it said."""
    with caplog.at_level(logging.WARNING, "bdflow"):
        Pipeline(parse(content)).run(("ingest",))
    for subject, expected in SUBJECTS.items():
        betas = Store(content["study"], f"betas/{subject}")
        rows = Store(content["study"], f"responses/{subject}/averaged")
        z_scored = Store(content["study"], f"responses/{subject}/averaged_zscored")
        at = np.stack([betas.read(axis) for axis in "ijk"], axis=1)

        def value(store, of, ijk, at=at):
            voxel = int(np.flatnonzero((at == ijk).all(axis=1))[0])
            return store.read("response")[store.rows("stimulus_id", np.array([stimulus_id(of["nsd_id"])]))[0], voxel]

        of = expected["response"]
        assert np.flatnonzero(betas.read("stimulus_id") == stimulus_id(of["nsd_id"])).tolist() == of["trials"]
        assert value(rows, of, of["ijk"]) == pytest.approx(of["mean_percent"], abs=1e-4)
        assert value(z_scored, of, of["ijk"]) == pytest.approx(of["mean_after_z_within_session"], abs=1e-4)
        never = (at[:, None] == np.array(expected["quirks"]["zero_in_every_session"])).all(axis=2).any(axis=1)
        valid = rows.read("valid") == 1
        assert not valid[never].any()
        # a voxel that misses a session is used where each stimulus was shown in another one
        ids, session = betas.read("stimulus_id"), betas.read("session")
        lost = expected["lost_session"]
        missed = int(np.flatnonzero((at == lost["ijk"]).all(axis=1))[0])
        alone = set(ids.tolist()) - set(ids[session != session_name(lost["session"])].tolist())
        assert valid[missed] == (not alone)
        assert valid.sum() == expected["decoding"]["voxels"] + valid[missed]
        assert rows.read("missing_trials")[missed] == expected["trials_by_session"][0]
        assert rows.read("missing_trials").sum() == (~(betas.read("valid") == 1)).sum()
        if not alone:
            assert value(rows, lost, lost["ijk"]) == pytest.approx(lost["mean_over_trials_of_valid_sessions"], abs=1e-4)
        quirks = [at for key in ("value_-32768", "value_32767") for _, _, at in expected["quirks"][key]]
        inside = [ijk for ijk in quirks if (at == ijk).all(axis=1).any()]
        assert rows.read("clipped_trials").sum() == len(inside)
        assert f"{len(inside)} betas of" in logs.text(caplog)
        ceiling = betas.read("ncsnr")
        assert np.isnan(ceiling).sum() == len(expected["quirks"]["ncsnr_nan_in_nsdgeneral"])
    assert "have no measurement in some trials" in logs.text(caplog)
    assert "have no measurement of some stimulus" in logs.text(caplog)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_mean_of_a_stimulus_at_a_voxel_that_misses_a_session(content, subject):
    """Also where the voxel is not decoded from in the end."""
    lost, (values, valid) = SUBJECTS[subject]["lost_session"], all_betas(content, subject)
    shown = Reader(parse(content)).trials(subject).stimulus == stimulus_id(lost["nsd_id"])
    found, known = (of.reshape(-1, *of.shape[2:])[(shown, *lost["ijk"])] for of in (values, valid))
    assert (known.size, known.sum()) == (lost["repeats"], lost["usable_repeats"])
    assert found[known].mean() / 300 == pytest.approx(lost["mean_over_trials_of_valid_sessions"], abs=1e-4)
    assert found.mean() / 300 == pytest.approx(lost["mean_over_all_trials_which_is_wrong"], abs=1e-4)


@pytest.mark.parametrize("sessions", [{"subj01": [1, 3], "subj04": 2}, {"subj01": [3], "subj04": [2]}, 2])
def test_sessions_by_list_and_by_subject(content, sessions):
    config = parse(content | {"dataset": content["dataset"] | {"sessions": sessions}})
    Pipeline(config).run(("ingest",))
    for subject in SUBJECTS:
        chosen = [session_number(name) for name in Reader(config).sessions(subject)]
        trials = np.concatenate([np.arange(38) + 38 * (n - 1) for n in chosen])
        store, design = Store(content["study"], f"betas/{subject}"), NSD(ROOT).design()
        assert store.read("session").tolist() == [f"session{n:02d}" for n in np.repeat(chosen, 38)]
        assert [*map(nsd_id_of, store.read("stimulus_id"))] == design.nsd_ids(subject, 114)[trials].tolist()
        mask = voxel_mask(NSD(ROOT).roi(subject, "nsdgeneral"))
        found = np.concatenate([NSD(ROOT).open_session(subject, n).read_masked(mask) for n in chosen])
        np.testing.assert_array_equal(store.read("beta"), found)


def test_another_subjects_sessions_make_nothing_stale(content):
    keys = ("betas/subj01", "betas/subj04")
    made = {}
    for sessions in (SESSIONS, {"subj01": [1, 2, 3], "subj04": 1}):
        graph = Graph(parse(content | {"dataset": content["dataset"] | {"sessions": sessions}}), STAGES.values())
        made[str(sessions)] = [graph.provenance(key).fingerprint for key in keys]
    (a, b), (c, d) = made.values()
    assert a == c
    assert b != d


@pytest.mark.parametrize(
    ("sessions", "words"),
    [
        ({"subj01": 3}, ["`dataset.sessions` of subj01 alone", "add subj04"]),
        ([1, 1], ["listed twice"]),
        ([], ["a list of their names or numbers"]),
        (True, ["a list of their names or numbers"]),
        ({"subj01": [0], "subj04": 2}, ["a list of their names or numbers"]),
    ],
)
def test_sessions_that_are_none(content, sessions, words):
    with pytest.raises(InputError) as error:
        parse(content | {"dataset": content["dataset"] | {"sessions": sessions}})
    for word in words:
        assert word in str(error.value)


def test_a_session_that_is_not_there_is_named_with_the_way_on(content):
    config = parse(content | {"dataset": content["dataset"] | {"sessions": 3}})
    with pytest.raises(InputError) as error:
        Reader(config).beta_inputs("subj04")
    for word in ("betas_session03", "sessions 1-3 of subj04", "`dataset.sessions`", "(1-2)", "[1, 2]"):
        assert word in str(error.value)


# --- nsd_expdesign.mat of version 7.3 ---------------------------------------------------------------------------------


def write_73(path: Path, content: dict[str, np.ndarray], title: bool = True) -> None:
    """As MATLAB writes it: HDF5 behind 512 bytes, axes reversed."""
    with h5py.File(path, "w", userblock_size=512 if title else 0) as file:
        for key, value in content.items():
            file.create_dataset(key, data=value.T).attrs["MATLAB_class"] = np.bytes_("double")
    if title:
        with path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("title", [True, False])
def test_a_design_of_version_7_3_is_the_same_design(tmp_path, title):
    content = {k: v for k, v in scipy.io.loadmat(ROOT / nsd.DESIGN).items() if k[0] != "_"}
    write_73(tmp_path / "design.mat", content, title)
    found, expected = nsd.Design.read(tmp_path / "design.mat"), NSD(ROOT).design()
    for key in ("masterordering", "subjectim", "sharedix"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))


@pytest.mark.parametrize(
    ("key", "spoil", "word"),
    [
        ("subjectim", lambda a: a.T, "masterordering"),
        ("masterordering", lambda a: a - 1, "numbers from 0"),
        ("sharedix", lambda a: None, "no sharedix"),
        ("masterordering", lambda a: a * 1e300, "e+30"),
        ("subjectim", lambda a: np.full_like(a, np.inf), "inf"),
    ],
)
@pytest.mark.parametrize("version", ["5", "7.3"])
def test_bad_designs_of_both_versions(tmp_path, version, key, spoil, word):
    content = {k: v.astype(float) for k, v in scipy.io.loadmat(ROOT / nsd.DESIGN).items() if k[0] != "_"}
    content[key] = spoil(content[key])
    content = {k: v for k, v in content.items() if v is not None}
    if version == "5":
        scipy.io.savemat(tmp_path / "design.mat", content)
    else:
        write_73(tmp_path / "design.mat", content)
    with pytest.raises(InputError, match=r"design\.mat") as error:
        nsd.Design.read(tmp_path / "design.mat")
    assert word in str(error.value)


def test_a_truncated_design_of_version_7_3(tmp_path):
    write_73(tmp_path / "whole.mat", {k: v for k, v in scipy.io.loadmat(ROOT / nsd.DESIGN).items() if k[0] != "_"})
    (tmp_path / "design.mat").write_bytes((tmp_path / "whole.mat").read_bytes()[:700])
    with pytest.raises(InputError, match=r"design\.mat"):
        nsd.Design.read(tmp_path / "design.mat")


# --- what the responses hold ------------------------------------------------------------------------------------------


def features(images: np.ndarray) -> np.ndarray:
    """Mean R, G, B, and luminance of a 3 x 3 grid: what the betas were made from. (n, 12)"""
    edges = np.rint(np.linspace(0, images.shape[1], 4)).astype(int)
    luminance = images @ np.array([0.299, 0.587, 0.114])
    cells = [
        luminance[:, top:bottom, left:right].mean(axis=(1, 2))
        for top, bottom in pairwise(edges)
        for left, right in pairwise(edges)
    ]
    return np.stack([*images.mean(axis=(1, 2)).T, *cells], axis=1)


def test_pictures_are_decoded_as_well_as_they_should_be(content):
    """Ridge on single trials that are z-scored within sessions: without the voxels that a session did not measure, and
    with saturated betas as they are.
    """
    spaces = {"text": {"encoder": "clip_text", "ridge": {"session_zscore": True, "rows": "trials"}}}
    Pipeline(parse(content | {"spaces": spaces})).run(("ingest",))
    for subject, of in SUBJECTS.items():
        rows, expected = Store(content["study"], f"responses/{subject}/trials_zscored"), of["decoding"]
        valid, train, ids = rows.read("valid") == 1, rows.read("split") == "train", rows.read("stimulus_id")
        assert (valid.sum(), train.sum()) == (expected["voxels"], expected["train_trials"])
        x = rows.read("response")[:, valid].astype(float)
        x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
        with NSD(ROOT).stimuli() as stimuli:
            y = features(stimuli.read([nsd_id_of(one) for one in ids.tolist()]).astype(float))
        found = Ridge(alpha=expected["ridge_alpha"]).fit(x[train], y[train]).predict(x[~train])
        assert (~train).sum() == expected["test_stimuli_shared"]
        r = [np.corrcoef(found[:, k], y[~train, k])[0, 1] for k in range(12)]
        assert np.mean(r) == pytest.approx(expected["mean_correlation_of_12_features"], abs=expected["tolerance"])
