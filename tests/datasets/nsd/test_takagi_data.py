"""Rows, voxels and means of Takagi & Nishimoto's scripts: what they save of a made-up subject, from NSD's files of it.

The reference (`tests/reference/takagi_data_a.npz`) was made by the authors' `make_subjmri.py` and `make_subjstim.py`.
"""

from pathlib import Path

import h5py
import numpy as np
import pytest

from bdflow.config import parse
from bdflow.datasets.nsd import stimulus_id
from bdflow.pipeline import Pipeline
from bdflow.simulation.files import write_design, write_hdf5, write_nifti
from bdflow.stores import Store
from bdflow.study import region_patterns
from tests.support.parts import whole

REFERENCE = Path(__file__).parents[2] / "reference/takagi_data_a.npz"
STREAMS = ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal")
N_STIMULI, SUBJECTS = 73_000, 8


@pytest.fixture(scope="module")
def authors() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as stored:
        return dict(stored)


def ids(nsd_ids: np.ndarray) -> np.ndarray:
    """Ids of stimuli, from 0-based numbers."""
    return np.array([stimulus_id(int(one)) for one in nsd_ids])


def nsd_files(root: Path, authors: dict[str, np.ndarray]) -> None:
    """The made-up subject in NSD's files: the design with trials after the last session too, betas as HDF5."""
    trials, shared = authors["kid73_1based"], authors["sharedix_1based"]
    own = np.setdiff1d(trials, shared)
    mine = np.concatenate([shared, own])
    others = np.setdiff1d(np.arange(1, N_STIMULI + 1), mine)[: (SUBJECTS - 1) * len(own)].reshape(SUBJECTS - 1, -1)
    listed = [mine, *(np.concatenate([shared, row]) for row in others)]
    positions = np.searchsorted(mine, trials, sorter=np.argsort(mine))
    order = np.argsort(mine)[positions] + 1
    files = root / "nsddata/experiments/nsd"
    files.mkdir(parents=True)
    write_design(files / "nsd_expdesign.mat", {
        "masterordering": order[None], "subjectim": np.stack(listed), "sharedix": shared[None]
    })  # fmt: skip
    stimuli = root / "nsddata_stimuli/stimuli/nsd"
    stimuli.mkdir(parents=True)
    with h5py.File(stimuli / "nsd_stimuli.hdf5", "w") as file:
        file.create_dataset("imgBrick", (N_STIMULI, 8, 8, 3), np.uint8, chunks=(1, 8, 8, 3))
    roi = root / "nsddata/ppdata/subj01/func1pt8mm/roi"
    roi.mkdir(parents=True)
    streams = authors["streams"]
    write_nifti(roi / "streams.nii.gz", streams.shape, np.dtype(np.int16), [streams])
    betas = root / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    betas.mkdir(parents=True)
    write_nifti(betas / "ncsnr.nii.gz", streams.shape, np.dtype(np.float32), [np.ones(streams.shape)])
    count, sessions = int(authors["trials_per_session"]), int(authors["sessions"])
    for session in range(sessions):
        volumes = authors["betas"][session * count : (session + 1) * count]  # (trial, z, y, x)
        file = betas / f"betas_session{session + 1:02d}.hdf5"
        write_hdf5(file, (*streams.shape, count), np.dtype(np.int16), [volume.T for volume in volumes])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, authors: dict[str, np.ndarray]) -> Path:
    root = tmp_path_factory.mktemp("takagi")
    nsd_files(root / "nsd", authors)
    captions = np.full((N_STIMULI, 1), "a", dtype="U1")
    np.save(root / "captions.npy", captions)
    latents = root / "features.npz"
    np.savez(latents, stimulus_id=ids(authors["feature_ids"]), latent=authors["features"])
    config = parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": ["subj01"],
            "dataset": {
                "root": str(root / "nsd"),
                "captions": str(root / "captions.npy"),
                "sessions": int(authors["sessions"]),
                "mask": "streams",
                "bad_voxels": "refuse",
            },
            "features": {"dtype": "float32"},
            "spaces": {
                "z": {"encoder": f"array:{latents}", "ridge": {"rows": "trials"}},
                "c": {"encoder": f"array:{latents}"},
            },
            "report": {"path": str(root / "report")},
            "chunks": {"voxels": 16},
        }
    )
    pipeline = Pipeline(config)
    pipeline.run(("ingest", "features"))
    atlas = region_patterns.atlas(pipeline.context(), "subj01", {})
    np.savez(root / "regions.npz", **{name: atlas.pattern(name) > 0 for name in STREAMS})
    return root


def in_presentation(responses: Store, split: str) -> np.ndarray:
    """Rows of a part, in the order of (first) presentation."""
    rows = np.flatnonzero(responses.read("split") == split)
    return rows[np.argsort(responses.read("trial")[rows])]


def test_trials_and_test_stimuli_in_the_order_of_presentation(study: Path, authors: dict[str, np.ndarray]) -> None:
    betas = Store(study / "study.zarr", "betas/subj01")
    np.testing.assert_array_equal(betas.read("stimulus_id"), ids(authors["stims"]))
    average = Store(study / "study.zarr", "responses/subj01/averaged")
    order = np.argsort(average.read("trial"))
    np.testing.assert_array_equal(average.read("stimulus_id")[order], ids(authors["stims_ave"]))
    single = Store(study / "study.zarr", "responses/subj01/trials")
    rows = in_presentation(single, "train")
    np.testing.assert_array_equal(
        betas.read("stimulus_id")[single.read("trial")[rows]], single.read("stimulus_id")[rows]
    )


@pytest.mark.parametrize("region", STREAMS)
def test_rows_voxels_and_means_are_the_authors(study: Path, authors: dict[str, np.ndarray], region: str) -> None:
    """Voxels in the C order of (z, y, x); betas in units of 1/300 percent."""
    betas = Store(study / "study.zarr", "betas/subj01")
    inside = np.load(study / "regions.npz")[region]
    i, j, k = (betas.read(axis) for axis in "ijk")
    order = np.lexsort((i, j, k))
    voxels = order[inside[order]]
    assert len(voxels) == authors[f"{region}.betas_tr"].shape[1]
    raw = betas.read("beta")[:, voxels]
    test = np.isin(authors["stims"], authors["sharedix_1based"] - 1)
    np.testing.assert_array_equal(raw[~test], authors[f"{region}.betas_tr"])
    np.testing.assert_array_equal(raw[test], authors[f"{region}.betas_te"])
    for rows, split, name in (
        ("trials", "train", "betas_tr"),
        ("trials", "test", "betas_ave_te"),
        ("averaged", "train", "betas_ave_tr"),
        ("averaged", "test", "betas_ave_te"),
    ):
        store = Store(study / "study.zarr", f"responses/subj01/{rows}")
        found = 300 * store.read("response")[in_presentation(store, split)][:, voxels].astype(np.float64)
        np.testing.assert_allclose(found, authors[f"{region}.{name}"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "split", "name"),
    [("trials", "train", "each_tr"), ("averaged", "train", "ave_tr"), ("trials", "test", "ave_te")],
)
def test_each_row_has_the_latent_of_its_stimulus(
    study: Path, authors: dict[str, np.ndarray], rows: str, split: str, name: str
) -> None:
    responses = Store(study / "study.zarr", f"responses/subj01/{rows}")
    shown = responses.read("stimulus_id")[in_presentation(responses, split)]
    targets = whole(study / "study.zarr", "targets/c")
    np.testing.assert_array_equal(targets.read("latent")[targets.rows("stimulus_id", shown)], authors[f"c.{name}"])
