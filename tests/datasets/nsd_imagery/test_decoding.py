"""Perception and imagery decoded by the decoders of a study of NSD's core: figures of other code, gaps, faults."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import scipy.io
import xarray
import yaml
from typer.testing import CliRunner

from bdflow import api
from bdflow.cli.main import app
from bdflow.config import Config, parse
from bdflow.datasets.reader import open_dataset
from bdflow.errors import InputError
from bdflow.pipeline import Pipeline
from bdflow.regression import ridge
from bdflow.stores import NotReady, Store
from bdflow.study import other_dataset
from tests.datasets.test_doors import features
from tests.support import logs

SAMPLE = Path(__file__).parents[2] / "samples/nsd_imagery"
EXPECTED = json.loads((SAMPLE / "expected.json").read_text(encoding="utf-8"))["subjects"]
CONDITIONS = {"vision": "perception", "imagery": "imagery"}
UNSEEN = "00018"
"""A stimulus that no subject of the sample saw: the one test stimulus, so that decoders are fitted on all others."""
RIDGE = {"session_zscore": True, "standardise": "none"}
SPACES = {
    "trials": {"rows": "trials", "alpha": 900},
    "averaged": {"rows": "averaged", "alpha": 300},
    "plain": {"rows": "averaged", "alpha": 300, "session_zscore": False},
    "early": {"rows": "trials", "alpha": 300, "regions": "V1 | V2"},
}


def with_a_test_session(to: Path) -> Path:
    """A copy of the sample with a third session of the core, all of one stimulus that nobody saw before."""
    shutil.copytree(SAMPLE, to)
    path = to / "nsddata/experiments/nsd/nsd_expdesign.mat"
    design = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
    assert not (design["subjectim"] == int(UNSEEN) + 1).any()
    new = np.full((len(design["subjectim"]), 1), int(UNSEEN) + 1.0)
    design["subjectim"] = np.concatenate([design["subjectim"], new], axis=1)
    last = np.full((1, 30), design["subjectim"].shape[1], float)
    design["masterordering"] = np.concatenate([design["masterordering"], last], axis=1)
    design["stimpattern"] = np.concatenate([design["stimpattern"], design["stimpattern"][-1:]])
    design["basiccnt"] = np.concatenate([design["basiccnt"], design["basiccnt"][:, -1:]], axis=1)
    scipy.io.savemat(path, design)
    for path in list(to.rglob("*_session02.nii.gz")):
        shutil.copy(path, path.with_name(path.name.replace("02", "03")))
    (to / "test.txt").write_text(UNSEEN, encoding="utf-8")
    return to


def other(root: Path, condition: str = "imagery", **dataset: Any) -> Config:
    """The whole of a configuration, of which the dataset counts."""
    content = {"study": "none.zarr", "spaces": {"text": {"encoder": "clip_text"}}, "report": {"path": "none"}}
    dataset = {"kind": "nsd_imagery", "root": str(root), "options": {"condition": condition}} | dataset
    return parse({**content, "subjects": list(EXPECTED), "dataset": dataset})


def study_of(root: Path, name: str = "study", **dataset: Any) -> Config:
    spaces = {
        space: {"encoder": f"array:{root / 'features.npz'}", "ridge": RIDGE | ridge} for space, ridge in SPACES.items()
    }
    data = {"root": str(root / "nsd"), "sessions": 3, "split": str(root / "nsd/test.txt")} | dataset
    return parse(
        {
            "study": str(root / f"{name}.zarr"),
            "subjects": list(EXPECTED),
            "dataset": data,
            "spaces": spaces,
            "report": {"path": str(root / "report")},
            "features": {"dtype": "float32"},
            "chunks": {"columns": 5},  # of twelve latents: decoded and written in blocks of 5, 5 and 2
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the sample's core up to its decoders, `study.zarr`, with the files it was made from."""
    root = tmp_path_factory.mktemp("imagery")
    data = open_dataset(other(with_a_test_session(root / "nsd"), kind="nsd", options={})).dataset
    ids = list(data.stimuli())
    latent = features(np.stack(data.pictures(ids))).astype(np.float32)
    np.savez(root / "features.npz", stimulus_id=np.array(ids), latent=latent)
    Pipeline(study_of(root)).run(("ingest", "features", "regress"))
    for condition in CONDITIONS.values():
        api.decode_dataset(study_of(root), other(root / "nsd", condition), root / f"{condition}.zarr")
    return root


def z(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def targets() -> tuple[list[str], np.ndarray]:
    """The targets of sets A and B, and features of their pictures."""
    data = open_dataset(other(SAMPLE)).dataset
    ids = list(data.stimuli())
    return ids, features(np.stack(data.pictures(ids)))


def core(subject: str, used: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every trial of the core, z-scored within its session, and features of what was shown."""
    data = open_dataset(other(SAMPLE, kind="nsd", options={}, sessions=2))
    sessions, mask = data.sessions(subject), data.mask(subject)
    x = np.concatenate([z(data.dataset.betas(subject, session, mask).values.astype(float)) for session in sessions])
    y = features(np.stack(data.dataset.pictures(data.trials(subject).stimulus.tolist())))
    return x if used is None else x[:, used], y


def session(subject: str, condition: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean z-scored response to each target, NaN where a voxel was not measured; repeats; which voxels were."""
    data, ids = open_dataset(other(SAMPLE, condition)), targets()[0]
    betas, shown = data.session_betas(subject, "nsdimagery"), data.trials(subject).stimulus
    measured = betas.valid.all(axis=0)
    with np.errstate(invalid="ignore"):
        x = z(betas.values.astype(float))
    x[:, ~measured] = np.nan
    return (
        np.stack([x[shown == one].mean(axis=0) for one in ids]),
        np.array([(shown == i).sum() for i in ids]),
        measured,
    )


def two_way(decoded: np.ndarray, true: np.ndarray) -> float:
    """Percent of pairs in which a decoded target correlates more with its own features than with another's."""
    r = np.corrcoef(decoded, true)[: len(decoded), len(decoded) :]
    own = np.diag(r)[:, None]
    return 100 * float((own > r)[~np.eye(len(r), dtype=bool)].mean())


@pytest.mark.parametrize("subject", EXPECTED)
@pytest.mark.parametrize("what", CONDITIONS)
def test_what_the_samples_figures_are_of(what: str, subject: str) -> None:
    """Ridge on means of z-scored trials, not scaled again, of voxels that all experiments measured; features z-scored
    over the stimuli that were shown."""
    wanted = EXPECTED[subject]["decoding"]
    synthetic = open_dataset(other(SAMPLE, kind="nsd_synthetic", options={}))
    patterns, repeats, used = session(subject, CONDITIONS[what])
    used &= synthetic.session_betas(subject, "nsdsynthetic").valid.all(axis=0)
    assert used.sum() == wanted["voxels"]
    assert {str(n): int((repeats == n).sum()) for n in set(repeats)} == wanted[what]["repeats"]
    x, y = core(subject, used)
    y, number = np.unique(y, axis=0, return_inverse=True)
    x = np.stack([x[number.ravel() == one].mean(axis=0) for one in range(len(y))])
    x, patterns = x - x.mean(axis=0), patterns[:, used] - x.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + 300 * np.eye(x.shape[1]), x.T @ z(y))
    found = two_way(patterns @ weights, (targets()[1] - y.mean(axis=0)) / y.std(axis=0))
    assert found == pytest.approx(wanted[what]["two_way_identification_percent"], abs=wanted["tolerance_percent"])


@pytest.mark.parametrize("subject", EXPECTED)
@pytest.mark.parametrize("what", CONDITIONS)
def test_targets_are_decoded_as_other_code_does(root: Path, what: str, subject: str) -> None:
    """The latents of the same ridge on single trials in plain numpy, and the sample's figures. These are of means of
    three trials: the sum over single trials is three times theirs, and so is the penalty."""
    wanted, (ids, true) = EXPECTED[subject]["decoding"], targets()
    patterns, repeats, measured = session(subject, CONDITIONS[what])
    x, y = core(subject)
    scale = x.std(axis=0, ddof=1)
    weights = np.linalg.solve(
        (x / scale).T @ (x / scale) + 900 * np.eye(len(scale)), (x / scale).T @ (y - y.mean(axis=0))
    )
    plain = np.nan_to_num(patterns / scale) @ weights + y.mean(axis=0)
    found = xarray.open_zarr(root / f"{CONDITIONS[what]}.zarr", group=f"{subject}/trials", consolidated=False).load()
    rows = [found.stimulus_id.values.tolist().index(one) for one in ids]
    decoded = found.latent.values[rows]
    np.testing.assert_allclose(decoded, plain, atol=1e-3 * y.std())
    assert found.repeats.values[rows].tolist() == repeats.tolist()
    assert set(found.condition.values.tolist()) == {CONDITIONS[what]}
    assert set(found.missing_voxels.values.tolist()) == {int((~measured).sum())} == {2}
    shown = np.unique(y, axis=0)
    figure = two_way(*((one - shown.mean(axis=0)) / shown.std(axis=0) for one in (decoded, true)))
    assert figure == pytest.approx(wanted[what]["two_way_identification_percent"], abs=wanted["tolerance_percent"])


@pytest.mark.parametrize("subject", EXPECTED)
def test_each_space_has_its_own_design(root: Path, subject: str, tmp_path: Path) -> None:
    """Rows, z-scoring and regions: the store's latents are those of `decode` for patterns in the unit of the rows."""
    tree = xarray.open_datatree(root / "imagery.zarr", engine="zarr", consolidated=False)[subject]
    assert set(tree.children) == set(SPACES)
    data, config = open_dataset(other(SAMPLE)), study_of(root)
    betas, shown = data.session_betas(subject, "nsdimagery"), data.trials(subject).stimulus
    measured = betas.valid.all(axis=0)
    percent = "percent signal change"
    kinds = (("averaged", "averaged_zscored", z, "z"), ("plain", "averaged", lambda of: of / 300, percent))
    for space, kind, values, units in kinds:
        mean = Store(config.study, f"responses/{subject}/{kind}").read("voxel_mean")
        with np.errstate(invalid="ignore"):
            x = np.where(measured, values(betas.values.astype(float)), mean)
        ids = tree[space].stimulus_id.values.tolist()
        assert ids == sorted(set(shown.tolist()))
        patterns = np.stack([x[shown == one].mean(axis=0) for one in ids])
        again = api.decode(config, patterns, subject, units=units)
        assert set(again.children) == ({"plain"} if units == percent else {"trials", "averaged", "early"})
        assert {node.attrs["pattern_units"] for node in again.children.values()} == {units}
        np.testing.assert_allclose(tree[space].latent, again[space].latent, atol=1e-3)
    used = Store(config.study, f"betas/{subject}").read("roi")
    assert tree["early"].attrs["voxels"] < tree["trials"].attrs["voxels"] == used.shape[1]
    provenance = json.loads(tree["early"].attrs["bdflow"])["provenance"]
    assert provenance["settings"]["dataset"]["kind"] == "nsd_imagery"
    assert provenance["settings"]["dataset"]["options"] == {"condition": "imagery"}
    assert "session nsdimagery" in provenance["inputs"]
    assert tree["early"].attrs["study"] == str(config.study)
    tree["early"].to_dataset().to_netcdf(tmp_path / "early.nc", engine="h5netcdf")
    again = xarray.open_dataset(tmp_path / "early.nc", engine="h5netcdf")
    np.testing.assert_array_equal(again.latent, tree["early"].latent)
    assert again.attrs["bdflow"] == tree["early"].attrs["bdflow"]


def test_patterns_are_in_the_unit_of_the_rows(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where spaces are decoded from rows in two units, patterns say theirs; raw int16 is told from percent."""
    config = study_of(root)
    caplog.set_level("INFO", logger="bdflow")
    rows = Store(config.study, "responses/subj01/averaged").read("response")[:2]
    with pytest.raises(InputError) as error:
        api.decode(config, rows, "subj01")
    said = str(error.value)
    assert "z for trials, averaged, early; percent signal change for plain" in said
    assert "--units" in said
    with pytest.raises(InputError, match="'arbitrary'"):
        api.decode(config, rows, "subj01", units="arbitrary")
    assert "SDs from the mean" not in logs.text(caplog)
    api.decode(config, rows, "subj01", units="percent signal change")
    assert "not decoded, since their rows are in other units" in logs.text(caplog)
    assert "SDs from the mean" not in logs.text(caplog)
    api.decode(config, 300 * rows, "subj01", units="percent signal change")
    assert "Are they in the unit of the rows (percent signal change)?" in logs.text(caplog)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    command = ["decode", str(tmp_path / "study.yaml"), str(tmp_path / "rows.npy"), "--subject", "subj01"]
    out = str(tmp_path / "out.zarr")
    done = CliRunner().invoke(app, [*command, "--out", out, "--units", "percent signal change"], catch_exceptions=False)
    assert done.exit_code == 0
    assert set(xarray.open_datatree(out, engine="zarr", consolidated=False).children) == {"plain"}


def test_latents_are_decoded_and_written_in_blocks(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No more of a space is in memory than one block of columns; blocks make up what `latents` gives."""
    sizes = []
    seen = other_dataset.restandardised
    monkeypatch.setattr(
        other_dataset, "restandardised", lambda raw, *rest: sizes.append(raw.shape[1]) or seen(raw, *rest)
    )
    api.decode_dataset(
        study_of(root), other(SAMPLE), tmp_path / "out.zarr", subjects=["subj01"], standardise="test_set"
    )
    assert sizes == [5, 5, 2] * len(SPACES)
    raw = xarray.open_zarr(root / "imagery.zarr", group="subj01/plain", consolidated=False).load()
    found = xarray.open_zarr(tmp_path / "out.zarr", group="subj01/plain", consolidated=False).load()
    rule = Store(study_of(root).study, "predictions/subj01/plain")
    to_mean, to_std, mean, std = (rule.read(name) for name in ridge.RULES["test_set"])
    np.testing.assert_allclose(
        found.latent, (raw.latent - mean) / np.where(std > 0, std, 1) * to_std + to_mean, rtol=1e-4, atol=1e-3
    )
    assert found.latent.attrs == {"long_name": "decoded latent"}


def test_a_minimal_file_and_the_command(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`dataset` alone; one subject; every condition, a row each."""
    dataset = {"kind": "nsd_imagery", "root": str(SAMPLE), "options": {"condition": "all"}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"dataset": dataset}), encoding="utf-8")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study_of(root).model_dump(mode="json")), encoding="utf-8")
    out = tmp_path / "out.zarr"
    command = ["decode", str(tmp_path / "study.yaml"), "--dataset", str(tmp_path / "other.yaml")]
    done = CliRunner().invoke(app, [*command, "--subject", "subj05", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "of subj05" in done.output
    found = xarray.open_zarr(out, group="subj05/trials", consolidated=False)
    kinds = set(zip(found.stimulus_id.values.tolist(), found.condition.values.tolist(), strict=True))
    assert len(kinds) == found.sizes["stimulus"]
    assert {condition for _, condition in kinds} == {"perception", "imagery", "attention cue", "attention detection"}
    assert not (out / "subj01").exists()
    assert "lack up to 2 of 244 voxels" in logs.text(caplog)
    for wrong, words in (
        ([*command, "--subject", "subj05", "--out", str(out)], "nothing is written over"),
        ([*command, "--subject", "subj07", "--out", str(tmp_path / "x")], "subj07"),
        ([*command, "patterns.npy", "--out", str(tmp_path / "x")], "one of them"),
        (["decode", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "x")], "one of them"),
    ):
        with pytest.raises((InputError, SystemExit)) as error:
            CliRunner().invoke(app, wrong, catch_exceptions=False)
        assert words in str(error.value)
        assert not (tmp_path / "x").exists()


def spoilt(to: Path) -> Path:
    shutil.copytree(SAMPLE, to)
    return to


def volume(path: Path, change: Any) -> None:
    image = nib.load(path)
    data, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(data, affine), path)


def test_faults_are_named_and_nothing_is_left(root: Path, tmp_path: Path) -> None:
    config, out = study_of(root), tmp_path / "out.zarr"

    def refused(data: Config, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            api.decode_dataset(config, data, out, **options)
        assert not list(tmp_path.glob("out.zarr*"))
        return str(error.value)

    said = refused(other(SAMPLE, mask="prf-visualrois/V1v"))
    assert "mask prf-visualrois/V1v of subj01" in said
    assert "of the study's absent" in said
    assert "subj07" in refused(other(SAMPLE), subjects=["subj07"])
    assert "test_set, held_out, none" in refused(other(SAMPLE), standardise="some")
    assert "held_out" in refused(other(SAMPLE), standardise="held_out")

    grid = spoilt(tmp_path / "grid")
    for path in grid.rglob("ppdata/subj01/func1pt8mm/**/*.nii.gz"):
        volume(path, lambda data, affine: (data, affine @ np.diag([-1, 1, 1, 1])))
    assert "axes that run to" in refused(other(grid))

    few = spoilt(tmp_path / "few")

    def most(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        data[:, :5] = 0
        return data, affine

    volume(few / "nsddata/ppdata/subj05/func1pt8mm/valid_nsdimagery.nii.gz", most)
    assert "no measurement in" in refused(other(few))
    gone = spoilt(tmp_path / "gone")
    for path in gone.glob("nsddata_betas/ppdata/subj05/func1pt8mm/nsdimagery*/betas*"):
        path.unlink()
    assert "no session with betas" in refused(other(gone))
    api.decode_dataset(config, other(gone), out, subjects=["subj01"])
    with pytest.raises(NotReady, match="regress"):
        api.decode_dataset(study_of(root, "none"), other(SAMPLE), tmp_path / "none.zarr")
