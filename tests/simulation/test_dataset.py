"""The simulator: NSD's files exactly, the same bytes every time, and responses that are what was planted."""

import csv
import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import scipy.io
import scipy.stats

from bdflow.config import parse
from bdflow.datasets import nsd
from bdflow.datasets.ceilings import noise_ceiling
from bdflow.datasets.formats.volumes import voxel_mask
from bdflow.datasets.nsd import NSD, nsd_id_of
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError
from bdflow.simulation import brains
from bdflow.simulation.backgrounds import BACKGROUNDS
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.simulation.drawing import THINGS
from bdflow.simulation.scenes import LOCALISER_KINDS, scene
from tests.support.planted import decoding_ceiling
from tests.support.stand_in import stand_in_features

SMALL = SimulateOptions(
    subjects=("subj01", "subj05"), n_shared=20, n_own=140, volume_shape=(16, 18, 14), stimulus_size=48
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("simulated") / "nsd", SMALL, features=stand_in_features)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_files_and_types(root):
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    subjects = {f"nsddata/ppdata/{s}/func1pt8mm/roi/{roi}.nii.gz" for s in SMALL.subjects for roi in nsd.ROI_LABELS}
    betas = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR/{}.nii.gz"
    files = ["ncsnr", *(f"betas_session{n:02d}" for n in range(1, 5))]
    subjects |= {betas.format(s, name) for s in SMALL.subjects for name in files}
    assert names == subjects | {
        "nsddata/experiments/nsd/nsd_expdesign.mat",
        "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
        "COCO_73k_annots_curated.npy",
        "truth.json",
        "truth.npz",
    }
    design = scipy.io.loadmat(root / nsd.DESIGN)
    shapes = {key: design[key].shape for key in ("masterordering", "subjectim", "sharedix")}
    assert shapes == {"masterordering": (1, 480), "subjectim": (8, 160), "sharedix": (1, 20)}
    image = nib.load(root / betas.format("subj05", "betas_session02"))
    assert image.get_data_dtype() == np.int16
    assert image.shape == (*brains.volume_shape("subj05", SMALL.volume_shape), 120)
    assert image.header.get_zooms()[:3] == pytest.approx((1.8, 1.8, 1.8))
    with h5py.File(root / nsd.STIMULI) as file:
        assert (file["imgBrick"].shape, file["imgBrick"].dtype) == ((20 + 8 * 140, 48, 48, 3), np.uint8)
    captions = np.load(root / nsd.CAPTIONS, allow_pickle=False)
    assert (captions.shape, captions.dtype.kind) == ((20 + 8 * 140, 5), "U")


def test_design_is_like_nsds(root):
    design = NSD(root).design()
    assert set(Counter(design.masterordering.tolist()).values()) == {3}
    own = design.subjectim[:, 20:].ravel()
    assert np.unique(own).size == own.size
    assert not np.intersect1d(own, design.sharedix).size
    assert (np.diff(design.sharedix) > 0).all()
    ids = [design.nsd_ids(s, design.n_trials) for s in SMALL.subjects]
    with (root / nsd.STIM_INFO).open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        i = int(row["nsdId"])
        assert (row["shared1000"] == "True") == (i + 1 in design.sharedix)
        trials = [int(row[f"subject1_rep{r}"]) for r in range(3)]
        expected = (np.flatnonzero(ids[0] == i) + 1).tolist() or [0, 0, 0]
        assert trials == expected


def test_ending_early_costs_last_repeats():
    options = dataclasses.replace(SMALL, sessions=3)
    assert (options.n_sessions, options.session_trials) == (3, 120)
    from bdflow.simulation.files import make_design

    order = make_design(20, 140, 3, 0)["masterordering"].ravel()
    seen = Counter(order[:360].tolist())
    assert len(seen) == 160
    assert set(seen.values()) == {2, 3}


def test_split_and_stimuli(root):
    data = NSD(root)
    design = data.design()
    reader = Reader(
        parse(
            {
                "study": str(root.parent / "study.zarr"),
                "subjects": data.subjects(),
                "dataset": {"root": str(root), "sessions": 4},
                "spaces": {"text": {"encoder": "clip_text"}},
                "report": {"path": str(root.parent / "report")},
            }
        )
    )
    parts = {part: reader.stimuli(part) for part in ("shared", "subj01", "subj05")}
    assert {part: Counter(of.tolist()) for part, (_, of) in parts.items()} == {
        "shared": {"test": 20},
        "subj01": {"train": 140},
        "subj05": {"train": 140},
    }
    ids = np.array([nsd_id_of(one) for ids, _ in parts.values() for one in ids.tolist()])
    with data.stimuli() as stimuli:
        design.check_stimuli(stimuli.count)
        for nsd_id in ids[[0, 30, 200]]:
            expected = scene(int(nsd_id), 0, 48)
            assert (stimuli.read([nsd_id])[0] == expected.image).all()
            assert data.captions().read([nsd_id]) == [expected.captions]
        unseen = np.setdiff1d(np.arange(stimuli.count), ids)
        assert not stimuli.read(unseen).any()
        assert data.captions().read(unseen[:5]) == [[]] * 5


@pytest.mark.parametrize("index", range(1, 9))
def test_brains_at_their_default_size(index):
    subject = f"subj{index:02d}"
    anatomy = brains.brain(subject, SimulateOptions().volume_shape, 0)
    assert 500 < anatomy.general.sum() < 950
    cortex = anatomy.rois["nsdgeneral"] >= 0
    for name, labels in anatomy.rois.items():
        assert ((labels >= 0) == cortex).all()
        assert set(np.unique(labels)) == {-1, 0, *nsd.roi_labels(name)} - ({0} if name == "x" else set())
    assert (cortex <= anatomy.inside).all()
    early = anatomy.rois["prf-visualrois"] > 0
    assert ((anatomy.rois["prf-eccrois"] > 0) == early).all()
    assert min(Counter(anatomy.groups().tolist()).values()) > 80
    assert ((anatomy.rois["floc-faces"] == 5) & ~anatomy.general).any()


@pytest.mark.parametrize("subject", ["subj01", "subj07"])
def test_streams_divide_visual_cortex_as_nsds_do(subject):
    anatomy = brains.brain(subject, SimulateOptions().volume_shape, 0)
    streams, number = anatomy.rois["streams"], {n: i for i, n in enumerate(nsd.ROI_LABELS["streams"], start=1)}
    v1_to_v3 = np.isin(anatomy.rois["prf-visualrois"], range(1, 7))
    assert ((streams == number["early"]) == v1_to_v3).all()
    assert (streams[anatomy.general] > 0).all()
    assert 1.7 < (streams > 0).sum() / anatomy.general.sum() < 1.8, "NSD's subject 1: 27,638 of 15,724"
    for file, names in (
        ("floc-faces", ("midventral", "ventral")),
        ("floc-words", ("midventral", "ventral")),
        ("floc-bodies", ("midlateral", "lateral")),
    ):
        inside = (anatomy.rois[file] > 0) & (streams > 0)
        assert np.isin(streams[inside], [number[name] for name in names]).all(), file
    ppa = 1 + nsd.ROI_LABELS["floc-places"].index("PPA")
    inside = anatomy.rois["floc-places"] == ppa
    assert np.isin(streams[inside], [number["midventral"], number["ventral"]]).all()


def test_subjects_differ(root):
    shapes = {brains.volume_shape(f"subj{n:02d}", (24, 28, 22)) for n in range(1, 9)}
    assert len(shapes) == 8
    assert len({int(voxel_mask(NSD(root).roi(s, "nsdgeneral")).sum()) for s in SMALL.subjects}) == 2


def session_betas(root, subject):
    data = NSD(root)
    mask = voxel_mask(data.roi(subject, "nsdgeneral"))
    betas = np.concatenate([data.open_session(subject, n).read_masked(mask) for n in range(1, 5)])
    return betas / 300, data.design().nsd_ids(subject, len(betas)), mask


def test_noise_and_ceiling_are_what_was_planted(root):
    """ncsnr as NSD estimates it, from the repeats alone; the median ceiling of three repeats is 30 %."""
    for subject in SMALL.subjects:
        betas, ids, mask = session_betas(root, subject)
        order = np.argsort(ids, kind="stable").reshape(-1, 3)
        repeats = betas[order]
        noise_variance = repeats.var(axis=1, ddof=1).mean(axis=0)
        signal_variance = np.maximum(repeats.mean(axis=1).var(axis=0, ddof=1) - noise_variance / 3, 0)
        planted = NSD(root).ncsnr(subject)[mask]
        truth = np.load(root / "truth.npz")
        np.testing.assert_allclose(np.sqrt(noise_variance) / truth[f"{subject}/noise_sd"], 1, atol=0.25)
        ceilings = noise_ceiling(np.sqrt(signal_variance / noise_variance), 3), noise_ceiling(planted, 3)
        assert np.corrcoef(*ceilings)[0, 1] > 0.85
        assert abs(np.median(ceilings[0]) - np.median(ceilings[1])) < 4
        assert abs(np.median(ceilings[1]) - 30) < 8


def test_outside_nsdgeneral_there_is_no_signal(root):
    data = NSD(root)
    mask = voxel_mask(data.roi("subj01", "nsdgeneral"))
    for _, volume in data.open_session("subj01", 1).iter_volumes():
        assert not volume[0, 0, 0]
    assert not data.ncsnr("subj01")[~mask].any()
    anatomy = brains.brain("subj01", SMALL.volume_shape, 0)
    opened = data.open_session("subj01", 1)
    assert not opened.read_masked(~anatomy.inside).any()
    assert opened.read_masked(anatomy.inside & ~mask).std(axis=0).min() > 0


def test_best_linear_decoder_reaches_the_ceiling_and_none_exceeds_it(root):
    """The posterior mean under the planted weights decodes unseen noise as well as `decoding_ceiling` says."""
    truth = np.load(root / "truth.npz")
    betas, ids, _ = session_betas(root, "subj01")
    shown = np.unique(ids)
    rows = np.searchsorted(truth["nsd_id"], shown)
    responses = np.stack([betas[ids == i].mean(axis=0) for i in shown])
    responses -= responses.mean(axis=0)
    scenes = [scene(int(i), SMALL.seed, SMALL.stimulus_size) for i in shown]
    images = np.stack([one.image for one in scenes])
    latents = stand_in_features(images, [one.captions for one in scenes], shown.tolist())["vdvae"].astype(float)
    latents -= latents.mean(axis=0)
    ceiling = decoding_ceiling(root, "subj01", latents, shown, repeats=3)
    signal = truth["components"][rows] @ truth["subj01/weights"]
    signal -= signal.mean(axis=0)
    total = signal.T @ signal / len(shown) + np.diag(truth["subj01/noise_sd"] ** 2 / 3)
    best = responses @ np.linalg.solve(total, signal.T @ latents / len(shown))
    reached = (best * latents).mean(axis=0) / (best.std(axis=0) * latents.std(axis=0))
    assert 0.5 < ceiling.mean() < 1
    assert ceiling.max() <= 1
    np.testing.assert_allclose(reached.mean(), ceiling.mean(), atol=0.03)
    assert decoding_ceiling(root, "subj01", latents, shown, 1).mean() < ceiling.mean()
    assert decoding_ceiling(root, "subj01", np.ones((len(shown), 2)), shown, 3).tolist() == [0, 0]


def test_areas_encode_their_spaces(root):
    truth = np.load(root / "truth.npz")
    groups = brains.brain("subj01", SMALL.volume_shape, 0).groups()
    weights, spaces = truth["subj01/weights"], truth["component_space"]
    power = {
        space: (truth["components"][:, spaces == space] @ weights[spaces == space]).var(axis=0)
        for space in ("vdvae", "clip_vision", "clip_text")
    }
    total = sum(power.values())
    assert np.median(power["vdvae"][groups == "early"] / total[groups == "early"]) > 0.7
    assert np.median(power["vdvae"][groups == "category"] / total[groups == "category"]) < 0.3
    assert not power["clip_text"][groups == "early"].any()


def test_same_options_same_bytes(root, tmp_path):
    again = simulate(tmp_path / "again", SMALL, features=stand_in_features)
    assert digests(again) == digests(root)
    other = simulate(tmp_path / "other", dataclasses.replace(SMALL, seed=1), features=stand_in_features)
    changed = {name for name, digest in digests(other).items() if digests(root)[name] != digest}
    assert len(changed) == len(digests(root))


def test_hdf5_holds_the_same_betas(root, tmp_path):
    options = dataclasses.replace(SMALL, betas_format="hdf5", subjects=("subj01", "subj05"))
    other = simulate(tmp_path / "hdf5", options, features=stand_in_features)
    for session in (1, 4):
        one, two = (NSD(r).open_session("subj05", session) for r in (root, other))
        assert two.path.suffix == ".hdf5"
        mask = voxel_mask(NSD(root).roi("subj05", "nsdgeneral"))
        np.testing.assert_array_equal(one.read_masked(mask), two.read_masked(mask))


def test_what_is_there_is_kept(root, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert simulate(root, SMALL, features=stand_in_features) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    with pytest.raises(InputError) as error:
        simulate(root, dataclasses.replace(SMALL, n_own=12, seed=3), features=stand_in_features)
    assert "n_own, seed" in str(error.value)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(InputError, match="did not write"):
        simulate(tmp_path / "notes", SMALL, features=stand_in_features)
    assert (tmp_path / "notes/a.txt").read_text() == "mine"


def test_failure_leaves_nothing(tmp_path):
    def full_disk(images, captions, nsd_ids):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="full disk"):
        simulate(tmp_path / "nsd", SMALL, features=full_disk)
    assert not list(tmp_path.iterdir())


def test_killed_and_run_again(root, tmp_path):
    code = (
        "import sys; sys.path.insert(0, {tests!r})\n"
        "from tests.support.stand_in import stand_in_features\n"
        "from bdflow.simulation.dataset import SimulateOptions, simulate\n"
        "simulate({root!r}, SimulateOptions(**{options!r}), features=stand_in_features)"
    ).format(tests=str(Path(__file__).parents[2]), root=str(tmp_path / "nsd"), options=dataclasses.asdict(SMALL))
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not (tmp_path / "nsd.partial" / nsd.STIMULI).exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "nsd").exists()
    simulate(tmp_path / "nsd", SMALL, features=stand_in_features)
    assert digests(tmp_path / "nsd") == digests(root)
    assert not (tmp_path / "nsd.partial").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"subjects": ("subj01", "subj01")}, "subjects"),
        ({"subjects": ("subj09",)}, "subj08"),
        ({"n_own": 0}, "n_own"),
        ({"trials_per_session": 5}, "divisor of all 1092"),
        ({"sessions": 9}, "1 to 4"),
        ({"noise_ceiling": 0}, "percent"),
        ({"betas_format": "nii"}, "hdf5"),
        ({"volume_shape": (4, 4, 4)}, "8 or more"),
    ],
)
def test_impossible_options(options, word):
    with pytest.raises(InputError, match=word):
        SimulateOptions(**options)


def test_truth_says_what_was_made(root):
    truth = json.loads((root / "truth.json").read_text())
    assert truth["options"]["n_own"] == 140
    assert truth["subjects"]["subj01"]["voxels"] == voxel_mask(NSD(root).roi("subj01", "nsdgeneral")).sum()


def test_scenes_are_keyed_and_varied():
    scenes = [scene(i, seed=3, size=24) for i in range(400)]
    again = scene(7, seed=3, size=24)
    assert (again.image == scenes[7].image).all()
    assert again.captions == scenes[7].captions
    assert scenes[0].image.shape == (24, 24, 3)
    assert scene(1).image.shape == (425, 425, 3)
    seen = {key: Counter(s.attributes[key] for s in scenes) for key in ("kind", "background", "position", "number")}
    assert set(seen["kind"]) == set(THINGS)
    assert set(seen["background"]) == set(BACKGROUNDS)
    assert min(seen["background"].values()) > 50
    assert 0.5 < sum(seen["kind"][kind] for kind in LOCALISER_KINDS) / 400 < 0.7
    for one in scenes:
        assert len(one.captions) == len(set(one.captions)) == 5
        assert all(caption[0].isupper() and caption.endswith(".") for caption in one.captions)
        assert sum(str(one.attributes["colour"]) in caption for caption in one.captions) == 5


def test_meaning_and_layout_are_independent():
    """Kind and background against position and height: no association beyond chance."""
    scenes = [scene(i, seed=5, size=8).attributes for i in range(1500)]
    for meaning in ("kind", "background"):
        for layout in ("position", "number", "colour"):
            table = Counter((s[meaning], s[layout]) for s in scenes)
            rows, columns = sorted({m for m, _ in table}), sorted({x for _, x in table})
            counts = np.array([[table[m, x] for x in columns] for m in rows])
            assert scipy.stats.chi2_contingency(counts).pvalue > 1e-3
