"""Betas that are no measurement enter no mean, no z-score and no voxel: against the files, by numpy's nan-functions."""

import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.config import parse
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.simulation.files import write_nifti
from bdflow.stores import Store
from bdflow.study.trials import session_z_scored
from tests.conftest import SUBJECTS, small_settings
from tests.support import logs

SUBJECT = SUBJECTS[0]
KINDS = {
    "averaged": {},
    "trials": {"rows": "trials"},
    "averaged_zscored": {"session_zscore": True},
    "trials_zscored": {"rows": "trials", "session_zscore": True},
}
BETAS = f"nsddata_betas/ppdata/{SUBJECT}/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session{{:02d}}.nii.gz"
VALID = f"nsddata/ppdata/{SUBJECT}/func1pt8mm/valid_session{{:02d}}.nii.gz"


def config(root: Path, where: Path, **dataset):
    spaces = {name: {"encoder": "clip_text", "ridge": of} for name, of in KINDS.items()}
    more = {"spaces": spaces, "painters": {}, "subjects": [SUBJECT]}
    dataset = {"root": str(root), "sessions": 3, "not_a_number": "invalid", **dataset}
    return parse(small_settings(root, where, **more, dataset=dataset))


def spoilt(nsd: Path, where: Path, seed: int) -> tuple[Path, np.ndarray]:
    """A copy of which much is missing or cut off; and its betas (trial, voxel) in percent, NaN where it is."""
    root = Path(shutil.copytree(nsd, where / "nsd"))
    rng = np.random.default_rng(seed)
    mask = np.asarray(nib.load(root / f"nsddata/ppdata/{SUBJECT}/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj) > 0
    at, truth = np.argwhere(mask), []
    lost = rng.permutation(len(at))[:12]
    for session in (1, 2, 3):
        image = nib.load(root / BETAS.format(session))
        data = np.asarray(image.dataobj).astype(np.int16)
        expected = data[mask].T / 300.0
        valid = mask.copy()
        for number, voxel in enumerate(lost):
            place = tuple(at[voxel])
            if number % 4 == session:  # 0 in the whole session
                data[place] = 0
                expected[:, voxel] = np.nan
            if number % 4 == 0 and session == 1 + number % 3:  # what the dataset says, whatever the betas
                valid[place] = False
                expected[:, voxel] = np.nan
        data[tuple(at[0])][:3], expected[:3, 0] = (-32768, 32767, 0), (-32768 / 300, 32767 / 300, 0)
        if session == 2:  # of floating-point numbers, with NaN here and there, and one trial without anything
            data = (data / 300).astype(np.float32)
            for t, voxel in zip(rng.integers(0, 26, 40), rng.integers(0, len(at), 40), strict=True):
                data[(*at[voxel], t)] = expected[t, voxel] = np.nan
            data[..., 7] = expected[7] = np.nan
        nib.save(nib.Nifti1Image(data, image.affine, dtype=data.dtype), root / BETAS.format(session))
        write_nifti(root / VALID.format(session), mask.shape, np.dtype(np.uint8), [valid])
        truth.append(expected)
    return root, np.concatenate(truth)


@pytest.fixture(scope="module")
def made(nsd, tmp_path_factory):
    where = tmp_path_factory.mktemp("validity")
    root, truth = spoilt(nsd, where, 0)
    pipeline = Pipeline(config(root, where))
    pipeline.run(("ingest",))
    return Path(pipeline.config.study), truth


def test_betas_and_their_validity_are_those_of_the_files(made):
    study, truth = made
    store = Store(study, f"betas/{SUBJECT}")
    valid = store.read("valid") == 1
    np.testing.assert_array_equal(valid, np.isfinite(truth))
    np.testing.assert_allclose(store.read("beta")[valid] / 300, truth[valid], atol=0.5 / 300)
    assert (store.read("beta")[~valid] == 0).all()
    assert store.read("valid_voxels").tolist() == valid.sum(axis=1).tolist()
    assert np.flatnonzero(store.read("valid_voxels") == 0).tolist() == [26 + 7]
    assert "_FillValue" not in store.arrays["beta"].attrs


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_means_over_measurements(made, kind):
    study, _ = made
    betas, rows, of = Store(study, f"betas/{SUBJECT}"), Store(study, f"responses/{SUBJECT}/{kind}"), KINDS[kind]
    beta = np.where(betas.read("valid") == 1, betas.read("beta") / 300.0, np.nan)
    shown, session = betas.read("stimulus_id"), betas.read("session")
    if of.get("session_zscore"):
        for number in np.unique(session):
            part = beta[session == number]
            with np.errstate(invalid="ignore"), pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *a, **k: None)
                beta[session == number] = (part - np.nanmean(part, axis=0)) / np.nanstd(part, axis=0)
    lost_trial = 26 + 7
    ids, split = rows.read("stimulus_id"), rows.read("split")
    expected = []
    for stimulus in dict.fromkeys(ids.tolist()):
        trials = [t for t in np.flatnonzero(shown == stimulus) if t != lost_trial]
        single = of.get("rows") == "trials" and split[ids == stimulus][0] == "train"
        groups = [[t] for t in trials] if single else [trials]
        for group in groups:
            known = np.isfinite(beta[group])
            sums = np.where(known, beta[group], 0).sum(axis=0)
            expected.append(np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), np.nan))
    expected = np.stack(expected)
    incomplete = np.isnan(expected).any(axis=0)
    assert 0 < incomplete.sum() < incomplete.size
    expected[:, incomplete] = np.nan
    np.testing.assert_allclose(rows.read("response"), expected, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(rows.read("valid") == 1, ~incomplete)
    np.testing.assert_array_equal(np.isnan(rows.read("voxel_mean")), incomplete)
    valid = betas.read("valid") == 1
    assert rows.read("missing_trials").tolist() == (~valid).sum(axis=0).tolist()
    ends = np.isin(betas.read("beta"), (-32768, 32767)) & valid
    assert rows.read("clipped_trials").tolist() == ends.sum(axis=0).tolist()


def test_repeats_do_not_count_a_trial_that_has_nothing(made):
    study, _ = made
    betas, rows = Store(study, f"betas/{SUBJECT}"), Store(study, f"responses/{SUBJECT}/averaged")
    stimulus = betas.read("stimulus_id")[26 + 7]
    shown = int((betas.read("stimulus_id") == stimulus).sum())
    assert rows.read("repeats")[rows.rows("stimulus_id", np.array([stimulus]))[0]] == shown - 1


def test_what_is_missing_or_cut_off_is_said(nsd, tmp_path, caplog):
    root, truth = spoilt(nsd, tmp_path, 1)
    with caplog.at_level(logging.WARNING, "bdflow"):
        Pipeline(config(root, tmp_path)).run(("ingest",))
    missing = ~np.isfinite(np.delete(truth, 26 + 7, axis=0))
    lines = logs.lines(caplog)
    wanted = [
        f"{missing.any(axis=0).sum():,} of {missing.shape[1]:,} voxels have no measurement in some trials "
        f"({missing.sum():,} of {missing.size:,} betas)",
        "1 trial has no measurement in any voxel and is left out",
        "of 1 voxel are cut off at -109.2 or 109.2 percent signal change",
        "which have no measurement of some stimulus",
    ]
    for words in wanted:
        assert any(words in line for line in lines), (words, lines)
    assert len([line for line in lines if wanted[0] in line]) == 1, "once a subject"


@pytest.mark.slow(kind="spoilt data")
@pytest.mark.parametrize("seed", [2, 3])
def test_a_study_of_spoilt_data_goes_through_to_the_end_of_ridge(nsd, tmp_path, seed):
    root, _ = spoilt(nsd, tmp_path, seed)
    pipeline = Pipeline(config(root, tmp_path))
    pipeline.run(("ingest", "features", "regress"))
    for space in KINDS:
        assert np.isfinite(Store(pipeline.config.study, f"predictions/{SUBJECT}/{space}").read("latent")).all()


def test_stimuli_of_lost_trials_alone_are_left_out(nsd, tmp_path, caplog):
    """Every trial of one training stimulus, and of one test stimulus, holds nothing."""
    root = Path(shutil.copytree(nsd, tmp_path / "nsd"))
    reader_config = config(root, tmp_path)
    reader = Reader(reader_config)
    shown, split = reader.trials(SUBJECT).stimulus, reader.split[SUBJECT]
    gone = [min(split.train), min(split.test)]
    for session in (1, 2, 3):
        image = nib.load(root / BETAS.format(session))
        data = (np.asarray(image.dataobj) / 300).astype(np.float32)
        data[..., np.isin(shown[26 * (session - 1) : 26 * session], gone)] = np.nan
        nib.save(nib.Nifti1Image(data, image.affine, dtype=np.dtype("f4")), root / BETAS.format(session))
    with pytest.raises(InputError, match=r"every beta of trial .*\n.*\n.*`dataset\.not_a_number: invalid`"):
        Pipeline(config(root, tmp_path, not_a_number="refuse")).run(("ingest",))
    with caplog.at_level(logging.WARNING, "bdflow"):
        pipeline = Pipeline(reader_config)
        pipeline.run(("ingest", "features", "regress"), remake=True)
    assert "and with them 2 stimuli that were shown in no other" in logs.text(caplog)
    rows = Store(pipeline.config.study, f"responses/{SUBJECT}/averaged")
    assert not set(gone) & set(rows.read("stimulus_id").tolist())
    assert (rows.read("valid") == 1).all(), "no voxel is dropped for them"
    assert gone[1] not in Store(pipeline.config.study, f"predictions/{SUBJECT}/averaged").read("stimulus_id")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.booleans())
def test_z_scores_ignore_what_is_no_measurement(seed, share, constant):
    rng = np.random.default_rng(seed)
    session = np.sort(rng.integers(1, 4, 30))
    betas, valid = rng.integers(-900, 900, (30, 5)).astype(np.int16), rng.random((30, 5)) > share
    if constant:
        betas[session == 2, 3] = 70
    betas[~valid] = rng.choice([0, -32768, 5])
    values, known = session_z_scored(betas, session, valid)
    for number in np.unique(session):
        for voxel in range(5):
            at = session == number
            of, measured = betas[at, voxel].astype(float), valid[at, voxel]
            spread = of[measured].std() if measured.any() else 0
            assert known[at, voxel].tolist() == (measured & (spread > 0)).tolist()
            if spread > 0:
                expected = (of[measured] - of[measured].mean()) / spread
                np.testing.assert_allclose(values[at, voxel][measured], expected, atol=1e-9)
            assert (values[at, voxel][~known[at, voxel]] == 0).all()
