"""Samples in the real formats of several datasets, from their files to decoded features and to a report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from bdflow import api
from bdflow.config import Config, parse
from bdflow.datasets.formats.pictures import fitted
from bdflow.datasets.reader import open_dataset
from bdflow.pipeline import Pipeline
from bdflow.stores import Store
from bdflow.study.noise_ceilings import ncsnr_of_repeats
from tests.conftest import SUBJECTS

SAMPLES = Path(__file__).parents[1] / "samples"
QUIRKS = SAMPLES / "nsd_quirks"
ROOTS = {name: SAMPLES / name for name in ("laion_fmri", "glmsingle_bids", "nsd_imagery")} | {"nsd_quirks": QUIRKS}
EXPECTED = {name: json.loads((root / "expected.json").read_text()) for name, root in ROOTS.items()}
DATASETS: dict[str, dict[str, Any]] = {
    "laion_fmri": {
        "kind": "laion_fmri",
        "mask": "laion/laiongeneral",
        "split": "dataset:{subject}/tau",
        "options": {"splits": str(SAMPLES / "laion_fmri/splits")},
    },
    "glmsingle_bids": {
        "kind": "glmsingle",
        "mask": "visual",
        "split": "dataset:set",
        "image_size": 48,
        "image_fit": "stretch",
    },
    "nsd_quirks": {"sessions": {"subj01": 3, "subj04": 2}},
}
CORES: dict[str, dict[str, Any]] = {"nsd_imagery": {"sessions": 2}}
"""NSD's core beside other experiments, which have no training stimuli of their own."""
STRAIGHT = {"rows": "trials", "session_zscore": True, "alpha": 300, "standardise": "none"}


def features(pictures: np.ndarray) -> np.ndarray:
    """(n, 12) of pictures (n, y, x, 3): mean of each colour, and mean luminance in a grid of 3 x 3."""
    luminance = pictures.astype(float) @ [0.299, 0.587, 0.114]
    rows = np.array_split(luminance, 3, axis=1)
    cells = [part.mean(axis=(1, 2)) for row in rows for part in np.array_split(row, 3, axis=2)]
    return np.stack([*pictures.astype(float).mean(axis=(1, 2)).T, *cells], axis=1)


def configuration(sample: str, root: Path, **sections: Any) -> Config:
    return parse(
        {
            "study": str(root / "study.zarr"),
            "subjects": list(EXPECTED[sample]["subjects"]),
            "dataset": {"root": str(ROOTS[sample]), **(DATASETS | CORES)[sample]},
            "spaces": {"text": {"encoder": "clip_text", "ridge": STRAIGHT}},
            "report": {"path": str(root / "report"), "thumbnail": 32},
            "chunks": {"stimuli": 16, "voxels": 128, "images": 8},
            "features": {"dtype": "float32"},
            **sections,
        }
    )


def with_features(sample: str, root: Path, **sections: Any) -> Config:
    """A configuration with a space of the twelve features of the pictures, as arrays that exist already."""
    data = open_dataset(configuration(sample, root))
    ids = list(data.dataset.stimuli())
    pictures = np.stack([fitted(one, *data.photo_shape(), "stretch") for one in data.dataset.pictures(ids)])
    np.savez(root / "features.npz", stimulus_id=np.array(ids), latent=features(pictures).astype(np.float32))
    spaces = {"features": {"encoder": f"array:{root / 'features.npz'}", "ridge": STRAIGHT}}
    return configuration(sample, root, **{**sections, "spaces": spaces | sections.get("spaces", {})})


@pytest.mark.slow(kind="science")
@pytest.mark.parametrize("sample", DATASETS)
def test_features_of_pictures_are_decoded_as_well_as_they_should_be(sample: str, tmp_path: Path) -> None:
    """Ridge on single trials that are z-scored within sessions, by the whole engine; the figure is of other code."""
    config = with_features(sample, tmp_path)
    Pipeline(config).run(("ingest", "features", "regress"))
    for subject, expected in EXPECTED[sample]["subjects"].items():
        wanted = expected["decoding"]
        valid = Store(config.study, f"responses/{subject}/trials_zscored").read("valid") == 1
        assert valid.sum() == wanted["voxels"]
        found = Store(config.study, f"predictions/{subject}/features")
        with np.load(tmp_path / "features.npz") as truth:
            rows = [truth["stimulus_id"].tolist().index(one) for one in found.read("stimulus_id").tolist()]
            latent = truth["latent"][rows]
        assert len(rows) == wanted.get("test_stimuli", wanted.get("test_stimuli_shared"))
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.read("latent").T, latent.T, strict=True)]
        assert np.mean(r) == pytest.approx(wanted["mean_correlation_of_12_features"], abs=wanted["tolerance"])


@pytest.mark.parametrize("sample", DATASETS)
def test_what_is_there_is_told_on_a_screen(sample: str, tmp_path: Path) -> None:
    config, expected = configuration(sample, tmp_path), EXPECTED[sample]["subjects"]
    account = api.check_dataset(config)
    assert account.subjects.keys() == expected.keys()
    for subject, of in account.subjects.items():
        wanted = expected[subject]
        trials = wanted["trials"] if isinstance(wanted["trials"], int) else sum(wanted["trials"])
        assert sum(of.sessions.values()) == trials
        shown = wanted["stimuli_shown"]
        assert of.shown == (shown if isinstance(shown, int) else len(shown))
        assert of.shape == tuple(wanted["shape"])
    text = account.text()
    assert max(map(len, text.splitlines())) <= 110
    for word in (config.dataset.kind, str(config.dataset.root), *expected, "noise ceiling", "regions", "sessions"):
        assert word in text


@pytest.mark.slow(kind="datasets")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sample", [*DATASETS, *CORES])
def test_a_sample_goes_to_a_report(sample: str, tmp_path: Path) -> None:
    """With the tiny networks. Where stimuli have no captions, no space is made of them."""
    captioned = sample != "glmsingle_bids"
    spaces = {name: {"encoder": name} for name in ("vdvae", "clip_vision", *(("clip_text",) if captioned else ()))}
    painters = {
        "brain_diffuser": {
            "steps": 2,
            "controls": ["prior"],
            **({} if captioned else {"text": None, "variants": ["no_clip_text"]}),
        }
    }
    config = with_features(
        sample, tmp_path, spaces=spaces, painters=painters, evaluate={"metrics": ["PixCorr", "CLIP (bundle)"]}
    )
    api.run(config)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert all(subject in page for subject in config.subjects)
    assert ("estimated from repeated stimuli" in page) == (sample == "glmsingle_bids"), "sub-02 has no noise ceiling"
    for subject in config.subjects:
        value = Store(config.study, f"metrics/brain_diffuser/{subject}").read("value")
        assert np.isfinite(value).all()
    assert len(list((tmp_path / "report/images/shown").iterdir())) == len(
        {one for s in config.subjects for one in Store(config.study, f"metrics/brain_diffuser/{s}").read("stimulus_id")}
    )


def test_captions_that_some_stimuli_lack_are_said_before_anything_is_made_of_them(tmp_path: Path) -> None:
    config = configuration("glmsingle_bids", tmp_path)
    assert "no caption" in api.check_dataset(config).text()
    with pytest.raises(api.InputError, match="caption"):
        api.run(config, until="features")


def prepared(config: Config, root: Path) -> None:
    """The data that a configuration reads, as a hierarchy of arrays, in a mixed order of voxels."""
    import xarray

    data = open_dataset(config)
    whole = data.dataset
    parts = {part: data.stimuli(part)[0] for part in ("shared", *config.subjects)}
    known = np.concatenate(list(parts.values()))
    ids = [one for one in whole.stimuli() if one in set(known.tolist())]
    captions = [list(found) for found in whole.captions(ids)]
    most = max(map(len, captions))
    text = np.array([found + [""] * (most - len(found)) for found in captions])
    stimuli = xarray.Dataset(
        {
            "image": (("stimulus", "y", "x", "rgb"), np.stack(whole.pictures(ids))),
            "caption": (("stimulus", "caption_number"), text),
        },
        {"stimulus": np.array(ids)},
    )
    tree = {"/stimuli": stimuli}
    for number, subject in enumerate(config.subjects):
        mask, trials = data.mask(subject), data.trials(subject)
        order = np.random.default_rng(number).permutation(int(mask.sum()))
        sessions = [whole.betas(subject, session, mask) for session in data.sessions(subject)]
        i, j, k = (axis[order].astype(np.int32) for axis in np.nonzero(mask))
        beta = np.concatenate([of.values for of in sessions])[:, order]
        valid = np.stack([of.valid.all(axis=0) for of in sessions])[:, order]
        scale = {"units": "percent signal change", "scale_factor": 1 / 300, "saturates": 1}
        space = {"shape": list(mask.shape), "affine": data.affine(subject).tolist()}
        space["affine_form"] = data.affine_form(subject)
        tree[f"/subjects/{subject}"] = xarray.Dataset(
            {
                "beta": (("trial", "voxel"), beta, scale),
                "stimulus_id": ("trial", trials.stimulus),
                "session": ("trial", trials.session),
                "valid": (("session_name", "voxel"), valid),
                "i": ("voxel", i),
                "j": ("voxel", j),
                "k": ("voxel", k),
                "roi": (("region", "voxel"), data.regions(subject)[:, order]),
                "noise_ceiling": ("voxel", data.ncsnr(subject)[order], {"units": "ncsnr"}),
            },
            {"session_name": np.array(data.sessions(subject)), "region": np.array(data.region_names(subject))},
            space,
        )
    zarr.open_group(root, mode="w", attributes={"bdflow_dataset": 1, "name": "prepared"})
    for path, group in tree.items():
        group.to_zarr(root, group=path, mode="a", zarr_format=3, consolidated=False, write_empty_chunks=True)


def test_the_same_data_through_two_doors_are_the_same_bytes(nsd: Path, tmp_path: Path) -> None:
    """NSD's files, and arrays that were made of them: every array but those of betas has the same bytes."""
    spaces = {"text": {"encoder": "clip_text"}, "guess": {"encoder": "vdvae", "ridge": STRAIGHT}}
    content = {
        "study": str(tmp_path / "files.zarr"),
        "subjects": list(SUBJECTS),
        "dataset": {"root": str(nsd), "sessions": 3},
        "spaces": spaces,
        "report": {"path": str(tmp_path / "report")},
        "chunks": {"stimuli": 16, "voxels": 64},
    }
    files = parse(content)
    prepared(files, tmp_path / "own.zarr")
    arrays = parse(
        content
        | {
            "study": str(tmp_path / "arrays.zarr"),
            "dataset": {"kind": "arrays", "root": str(tmp_path / "own.zarr")},
        }
    )
    for config in (files, arrays):
        Pipeline(config).run(("ingest", "features", "regress"))
    one, other = (zarr.open_group(config.study, mode="r") for config in (files, arrays))
    compared = set()
    for path, array in one.members(max_depth=None):
        if not isinstance(array, zarr.Array) or path.split("/")[0] in ("runs", "betas") or path.endswith("metadata"):
            continue
        here, there = (np.asarray(of[...]) for of in (array, other[path]))
        assert here.tolist() == there.tolist() if here.dtype.kind == "T" else here.tobytes() == there.tobytes(), path
        compared.add(path.split("/")[0])
    assert compared >= {"stimuli", "targets", "responses", "systems", "decoders", "predictions"}


# --- what is there may be less, or change -------------------------------------------------------------------------


def arrays_of(path: Path, regions: bool, sessions: int) -> None:
    """A hierarchy of one subject, with trials that show nothing."""
    import xarray

    rng = np.random.default_rng(0)
    names = np.array([f"a {number}.png" for number in range(8)])
    rows = np.concatenate([[*range(8), -1], [*range(8), -1, -1], [*range(8)]][:sessions]).astype(int)
    lengths = [9, 10, 8][:sessions]
    subject = {
        "beta": (("trial", "voxel"), rng.normal(size=(len(rows), 20)).astype(np.float32), {"units": "z"}),
        "stimulus_id": ("trial", np.where(rows < 0, "", names[rows])),
        "session": ("trial", np.repeat([f"day {n}" for n in range(sessions)], lengths)),
    }
    coordinates = {}
    if regions:
        subject["roi"] = (("region", "voxel"), np.arange(40).reshape(2, 20) % 3 == 0)
        coordinates["region"] = np.array(["own/a", "own/b"])
    other = {name: value for name, value in subject.items() if name in ("beta", "stimulus_id", "session")}
    parts = {
        "/stimuli": xarray.Dataset(
            {"image": (("stimulus", "y", "x", "rgb"), rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8))},
            {"stimulus": names},
        ),
        "/splits": xarray.Dataset(
            {"part": (("split", "stimulus"), np.array([["test"] * 3 + ["train"] * 5]))},
            {"split": np.array(["own"]), "stimulus": names},
        ),
        "/subjects/anna": xarray.Dataset(subject, coordinates),
        "/subjects/ben": xarray.Dataset(other),
        "/subjects/carl": xarray.Dataset(other),
    }
    zarr.open_group(path, mode="w", attributes={"bdflow_dataset": 1, "name": "own"})
    for group, content in parts.items():
        content.to_zarr(path, group=group, mode="a", zarr_format=3, consolidated=False, write_empty_chunks=True)


def own(tmp_path: Path) -> Config:
    return parse(
        {
            "study": str(tmp_path / "study.zarr"),
            "subjects": ["anna"],
            "dataset": {"kind": "arrays", "root": str(tmp_path / "own.zarr"), "split": "dataset:own"},
            "spaces": {"text": {"encoder": "clip_text"}},
            "report": {"path": str(tmp_path / "report")},
        }
    )


@pytest.mark.parametrize("regions", [True, False])
def test_a_dataset_may_have_no_regions_and_sessions_of_any_length(regions: bool, tmp_path: Path) -> None:
    """Blocks of betas are as long as the longest session, and hold the end of one and the beginning of the next."""
    arrays_of(tmp_path / "own.zarr", regions, 3)
    config = own(tmp_path)
    assert ("own: a 7, b 7" in api.check_dataset(config).text()) == regions
    Pipeline(config).run(("ingest",))
    betas = Store(config.study, "betas/anna")
    root = zarr.open_group(tmp_path / "own.zarr/subjects/anna", mode="r")
    np.testing.assert_array_equal(betas.read("beta"), root["beta"][...])
    assert betas.read("session").tolist() == ["day 0"] * 9 + ["day 1"] * 10 + ["day 2"] * 8
    assert betas.n_partitions == 3
    assert (betas.read("valid") == 1).all()
    shown, beta = betas.read("stimulus_id"), betas.read("beta")
    rows = Store(config.study, "responses/anna/averaged")
    for stimulus, response in zip(rows.read("stimulus_id").tolist(), rows.read("response"), strict=True):
        np.testing.assert_allclose(response, beta[shown == stimulus].mean(axis=0), rtol=1e-5)
    assert rows.sizes["stimulus_id"] == 8, "a trial of nothing is in no row"
    something = shown != ""
    expected = ncsnr_of_repeats(beta[something], np.ones((24, 20), bool), shown[something])
    np.testing.assert_allclose(rows.read("ncsnr_repeats"), expected, rtol=1e-5)


def test_a_session_that_is_added_makes_stale_what_it_changes(tmp_path: Path) -> None:
    """With `sessions: null`, which means all there are."""
    arrays_of(tmp_path / "own.zarr", True, 2)
    config = own(tmp_path)
    Pipeline(config).run(("ingest",))
    arrays_of(tmp_path / "own.zarr", True, 3)
    states = {row.path: row.state.kind for row in Pipeline(config).status()}
    assert {states[key] for key in ("betas/anna", "stimuli/anna", "stimuli/shared")} == {"stale"}
    Pipeline(config).run(("ingest",), remake=True)
    assert Store(config.study, "responses/anna/averaged").read("repeats").tolist() == [3] * 8


def test_a_subject_that_is_added_leaves_the_others(tmp_path: Path) -> None:
    """With `sessions: null`, and with other numbers of sessions by subject."""
    arrays_of(tmp_path / "own.zarr", True, 2)
    content = own(tmp_path).model_dump(mode="json")
    for number, sessions in enumerate((None, {"anna": 2, "ben": 1, "carl": 2})):
        content |= {"study": str(tmp_path / f"{number}.zarr"), "subjects": ["anna", "ben"]}
        content["dataset"]["sessions"] = sessions
        Pipeline(parse(content)).run(("ingest",))
        more = parse(content | {"subjects": ["anna", "ben", "carl"]})
        states = {row.path: row.state.kind for row in Pipeline(more).status()}
        kept = {key for key in states if key.split("/")[0] in ("betas", "stimuli", "responses") and "carl" not in key}
        assert {states[key] for key in kept} == {"sealed"}
        assert states["betas/carl"] == "absent"


def test_pictures_of_another_size_are_found_beforehand(tmp_path: Path) -> None:
    config = configuration("glmsingle_bids", tmp_path)
    odd = config.model_copy(update={"dataset": config.dataset.model_copy(update={"image_size": None})})
    with pytest.raises(api.InputError, match=r"54 x 72 pixels[\s\S]*dataset\.image_size"):
        api.check_dataset(odd)
