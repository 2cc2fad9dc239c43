"""A simulated session of NSD-Imagery: its files are read as NSD-Imagery, and hold what was planted."""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray
import yaml

from bdflow import api
from bdflow.config import DatasetSettings, parse
from bdflow.datasets.nsd.imagery import NSDImagery
from bdflow.errors import InputError
from bdflow.metrics.image_metrics import two_way
from bdflow.models.latents import FeatureExtractor
from bdflow.simulation.dataset import SimulateOptions, simulate
from bdflow.simulation.encoding import Components
from bdflow.simulation.scenes import scene
from tests.support.stand_in import stand_in_features

SMALL = SimulateOptions(
    subjects=("subj01", "subj05"), n_shared=8, n_own=40, volume_shape=(14, 16, 12), stimulus_size=48, imagery=True
)
GAINS = {"perception": 1.0, "imagery": 0.45, "attention cue": 0.15, "attention detection": 0.3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "nsd", SMALL, features=stand_in_features)


def digests(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def imagery(root: Path, condition: str = "all") -> NSDImagery:
    return NSDImagery(DatasetSettings(kind="nsd_imagery", root=root, options={"condition": condition}))


def test_without_it_the_files_are_those_of_before(root: Path, tmp_path: Path) -> None:
    """The core is the same bytes, and its record has no word of imagery; with it, the same twice."""
    options = dataclasses.replace(SMALL, imagery=False)
    core = digests(simulate(tmp_path / "core", options, features=stand_in_features))
    both = digests(root)
    differ = {name for name in core if core[name] != both[name]}
    assert differ == {"truth.json", "truth.npz"}
    assert all("imagery" in name for name in both.keys() - core.keys())
    assert "imagery" not in (tmp_path / "core/truth.json").read_text(encoding="utf-8")
    assert digests(simulate(tmp_path / "again", SMALL, features=stand_in_features)) == both
    with pytest.raises(InputError, match="imagery"):
        simulate(tmp_path / "core", SMALL, features=stand_in_features)
    with pytest.raises(InputError, match="5 or more"):
        dataclasses.replace(SMALL, n_shared=4)


def test_it_is_read_completely(root: Path) -> None:
    data = imagery(root)
    assert data.subjects() == list(SMALL.subjects)
    stimuli = data.stimuli()
    pictures = data.pictures(stimuli)
    names = Counter(stimulus.partition("/")[0] if "/" in stimulus else "core" for stimulus in stimuli)
    assert names == {"A": 6, "core": 5, "B": 1, "C": 12}
    assert len({picture.tobytes() for picture in pictures}) == len(stimuli)
    for stimulus, picture in zip(stimuli, pictures, strict=True):
        if "/" not in stimulus:
            assert (picture == scene(int(stimulus), 0, 48).image).all()
    assert all(bool(of) == ("/" not in stimulus) for stimulus, of in zip(stimuli, data.captions(stimuli), strict=True))
    assert data.captions(["C/boat"]) == [["boat"]]
    for subject in SMALL.subjects:
        trials = data.trials(subject)
        assert trials.index.tolist() == list(range(720))
        assert Counter(trials.condition.tolist()) == {
            "perception": 144, "imagery": 288, "attention cue": 144, "attention detection": 144
        }  # fmt: skip
        seen = Counter(trials.stimulus[trials.condition == "imagery"].tolist())
        assert set(seen.values()) == {16}
        assert sum(stimulus.startswith("C/") for stimulus in seen) == 6
        assert set(Counter(trials.stimulus[trials.condition == "perception"].tolist()).values()) == {8, 4}
        mask = data.mask(subject, None)
        betas = data.betas(subject, "nsdimagery", mask)
        measured = betas.valid.all(axis=0)
        assert (measured == betas.valid.any(axis=0)).all()
        assert 0 < (~measured).sum() < 0.05 * mask.sum()


def of_stimulus(stimulus: str, names: list[str]) -> list[int]:
    """Which planted pictures a stimulus is of: one, or those of a word."""
    name = stimulus.rpartition("/")[2]
    name = f"_nsd{int(name) + 1:05d}" if name.isdigit() else name
    return [at for at, one in enumerate(names) if name in one]


def test_betas_are_what_was_planted(root: Path) -> None:
    """Each trial's betas, by what the files say of it, at the strength of its condition; noise explains 0.02."""
    with np.load(root / "truth.npz") as file:
        truth = dict(file)
    centred, names = truth["imagery/components"] - truth["components"].mean(axis=0), truth["imagery/pictures"].tolist()
    for subject in SMALL.subjects:
        data = imagery(root)
        trials, betas = data.trials(subject), data.betas(subject, "nsdimagery", data.mask(subject, None))
        measured = betas.valid.all(axis=0)
        signal = centred @ truth[f"{subject}/weights"][:, measured]
        expected = np.stack([signal[of_stimulus(one, names)].mean(axis=0) for one in trials.stimulus.tolist()])
        found = (betas.values / 300 - truth[f"{subject}/mean"])[:, measured]
        for condition, gain in GAINS.items():
            mine = trials.condition == condition
            slope = np.vdot(expected[mine], found[mine]) / np.vdot(expected[mine], expected[mine])
            assert slope == pytest.approx(gain, abs=0.06)


def test_other_pictures_get_components_as_the_stimuli_do() -> None:
    rng = np.random.default_rng(0)
    layers = ((2, 4, 4), (3, 2, 2))
    latents = {"vdvae": rng.normal(size=(20, 44)), "clip_text": rng.normal(size=(20, 30))}
    parts = Components.of(latents, layers)
    assert parts.spatial
    found = parts.project({space: values[3:9] for space, values in latents.items()})
    np.testing.assert_allclose(found, parts.values[3:9], atol=1e-5)


@pytest.mark.slow(kind="datasets")
@pytest.mark.timeout(900)
def test_perception_is_decoded_better_than_imagery_and_imagery_better_than_chance(tmp_path: Path) -> None:
    """A study of the simulated core, and its decoders applied to the session, by the tiny networks.

    The twelve targets of sets A and B, latents z-scored over them: correlation of each decoded target with its own
    latents, and two-way identification, for which chance is 0.5.
    """
    options = SimulateOptions(
        subjects=("subj01", "subj02"), n_shared=16, n_own=160, volume_shape=(18, 20, 16), stimulus_size=64, imagery=True
    )
    api.simulate(tmp_path / "nsd", options)
    config = parse(
        {
            "study": str(tmp_path / "study.zarr"),
            "subjects": list(options.subjects),
            "dataset": {"root": str(tmp_path / "nsd")},
            "spaces": {"clip_vision": {"encoder": "clip_vision", "ridge": {"session_zscore": True, "alpha": 1000}}},
            "report": {"path": str(tmp_path / "report")},
        }
    )
    api.run(config, until="regress")
    data = imagery(tmp_path / "nsd", "imagery")
    ids = list(data.stimuli())
    true = z(FeatureExtractor("tiny").vision_embeddings(np.stack(data.pictures(ids))).reshape(len(ids), -1))
    found = {}
    for condition in ("perception", "imagery"):
        dataset = {"kind": "nsd_imagery", "root": str(tmp_path / "nsd"), "options": {"condition": condition}}
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({"dataset": dataset}), encoding="utf-8")
        many = api.decode_dataset(config, tmp_path / "other.yaml", tmp_path / f"{condition}.zarr")
        assert list(many) == list(options.subjects)
        for subject in options.subjects:
            group = f"{subject}/clip_vision"
            store = xarray.open_zarr(tmp_path / f"{condition}.zarr", group=group, consolidated=False).load()
            latent = store.latent.values[[store.stimulus_id.values.tolist().index(one) for one in ids]]
            decoded = z(latent.reshape(len(ids), -1))
            own = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(decoded, true, strict=True)])
            found[condition, subject] = float(own), float(two_way(true, decoded).mean())
    for subject in options.subjects:
        (seen, identified), (imagined, told_apart) = found["perception", subject], found["imagery", subject]
        assert seen > imagined > 0.1
        assert min(identified, told_apart) > 0.65


def z(values: np.ndarray) -> np.ndarray:
    scale = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(scale > 0, scale, 1)
