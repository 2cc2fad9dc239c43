"""Several pictures of a stimulus: each from noise of its own, kept as a dimension; which of them are scored."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdflow.config import Config, parse
from bdflow.errors import InputError
from bdflow.metrics import image_metrics
from bdflow.models.encoders import Stimuli, encoder_of
from bdflow.models.judges.networks import bundle_clip
from bdflow.models.painters import painter_kind
from bdflow.pipeline import STAGES, Pipeline
from bdflow.regression import ridge
from bdflow.stages.reconstruct import selection
from bdflow.stores import Store
from bdflow.study.graph import Graph
from bdflow.study.selection import selected
from tests.support.parts import whole

METRICS = {"metrics": ["PixCorr", "SSIM", "CLIP (bundle)"], "distractors": "reconstructions"}
PICTURES = 3


def configured(settings: Any, root: Path, **painter: Any) -> Config:
    of = {"steps": 4, "batch_size": 4, "variants": ["full", "only_vdvae"], **painter}
    return parse(settings(root, subjects=["subj01"], painters={"bd": of}, evaluate=METRICS))


@pytest.fixture(scope="module")
def root(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one picture of each stimulus, and its report."""
    folder = tmp_path_factory.mktemp("pictures")
    Pipeline(configured(settings, folder)).run()
    return folder


@pytest.fixture(scope="module")
def several(settings: Any, root: Path) -> Config:
    """The same with three, all of which are scored."""
    folder = root / "several"
    shutil.copytree(root / "study.zarr", folder / "study.zarr")
    config = configured(settings, folder, pictures=PICTURES)
    Pipeline(config).run(("reconstruct", "evaluate"), remake=True)
    return config


def images(study: Path | Any, variant: str = "full") -> np.ndarray:
    return Store(study, f"reconstructions/bd/subj01/{variant}").read("image")


def values(study: Any) -> dict[str, np.ndarray]:
    store = Store(study, "metrics/bd/subj01")
    return dict(zip(store.read("metric").tolist(), store.read("value")[0], strict=True))


def photos(study: Any) -> np.ndarray:
    stimuli, ids = whole(study, "stimuli"), Store(study, "reconstructions/bd/subj01/full").read("stimulus_id")
    return stimuli.read("image")[stimuli.rows("stimulus_id", ids)]


def test_pictures_are_a_dimension_and_the_first_is_what_it_was_alone(root: Path, several: Config) -> None:
    one, three = images(root / "study.zarr"), images(several.study)
    assert one.shape == (6, 1, 64, 64, 3)
    assert three.shape == (6, PICTURES, 64, 64, 3)
    assert Store(several.study, "reconstructions/bd/subj01/full").dims("image")[1] == "picture"
    np.testing.assert_array_equal(three[:, :1], one)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (three[:, a] != three[:, b]).mean(axis=(1, 2, 3)).min() > 0.1
    enlarged = images(several.study, "only_vdvae")
    np.testing.assert_array_equal(enlarged, np.repeat(enlarged[:, :1], PICTURES, axis=1))


def test_pictures_of_a_stimulus_share_the_start_and_not_the_noise() -> None:
    kind = painter_kind(parse_tiny(), "bd")
    painter = kind.load()
    guesses, tokens = np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 24, 48), np.float32)
    inputs = painter.paint_inputs(guesses, None, tokens, "subj01", [5, 5, 6, 6], [0, 1, 0, 1])
    alone = painter.paint_inputs(guesses[:2], None, tokens[:2], "subj01", [5, 6])
    assert (inputs.encode[0] == inputs.encode[1]).all()
    assert (inputs.encode[::2] == alone.encode).all()
    assert (inputs.start[::2] == alone.start).all()
    assert len({tuple(row.flatten()[:4].tolist()) for row in inputs.start}) == 4


def parse_tiny() -> Config:
    spaces = {name: {"encoder": name} for name in ("vdvae", "clip_vision", "clip_text")}
    return parse({"study": "s", "dataset": {"root": "d"}, "report": {"path": "r"}, "spaces": spaces,
                  "painters": {"bd": {}}})  # fmt: skip


def test_all_are_scored_by_the_mean_over_them(several: Config) -> None:
    """Pixels picture by picture; identification from correlations that are averaged before they are compared."""
    made, shown, found = images(several.study), photos(several.study), values(several.study)
    pixels = [[image_metrics.pixcorr(a, image_metrics.at_size(b, *a.shape[:2])) for b in of]
              for a, of in zip(shown, made, strict=True)]  # fmt: skip
    np.testing.assert_allclose(found["PixCorr"], np.mean(pixels, axis=1), rtol=1e-5)
    judge = bundle_clip("tiny")
    steps = judge.judge.size

    def features(pictures: np.ndarray) -> np.ndarray:
        from PIL import Image

        from bdflow.models.resizing import resize

        seen = judge.features(resize(np.ascontiguousarray(pictures), steps, Image.Resampling.BILINEAR))
        return seen["CLIP (bundle)"].numpy().astype(np.float64)

    true = features(shown)
    each = [np.corrcoef(features(made[:, k]), true)[:6, 6:] for k in range(PICTURES)]
    expected = image_metrics.identification(np.mean(each, axis=0), "reconstructions")
    np.testing.assert_allclose(found["CLIP (bundle) (among reconstructions)"], expected, atol=1e-6)
    stored = Store(several.study, "similarities/bd/subj01").read("correlation")[0, 0]
    np.testing.assert_allclose(stored, np.mean(each, axis=0), atol=1e-4)


@pytest.fixture(scope="module")
def best(settings: Any, several: Config) -> Config:
    folder = Path(several.study).parent / "best"
    shutil.copytree(several.study, folder / "study.zarr")
    config = configured(settings, folder, pictures=PICTURES, select="best", select_by="clip_vision")
    Pipeline(config).run(("reconstruct", "evaluate"), remake=True)
    return config


def test_the_best_is_closest_to_the_prediction_and_the_photo_is_not_looked_at(several: Config, best: Config) -> None:
    store, made = Store(best.study, "selected/bd/subj01"), images(best.study)
    np.testing.assert_array_equal(made, images(several.study))
    predictions = Store(best.study, "predictions/subj01/clip_vision")
    statistics = {name: predictions.read(name) for name in ridge.RULES["test_set"]}
    wanted = ridge.restandardise(predictions.read("latent"), "test_set", statistics)
    encoder = encoder_of(best, "clip_vision")
    for row in range(6):
        latents = encoder.work(encoder.prepare(Stimuli(np.arange(PICTURES), made[row], [[]] * PICTURES)))
        expected = [np.corrcoef(latent.ravel(), wanted[row].ravel())[0, 1] for latent in latents]
        np.testing.assert_allclose(store.read("agreement")[0, row], expected, atol=1e-5)
        assert store.read("best")[0, row] == np.argmax(expected)
    chosen = store.read("best")[0]
    assert len(set(chosen.tolist())) > 1, "otherwise this would compare with the first"
    shown, found = photos(best.study), values(best.study)
    pixels = [image_metrics.pixcorr(a, image_metrics.at_size(of[k], *a.shape[:2]))
              for a, of, k in zip(shown, made, chosen, strict=True)]  # fmt: skip
    np.testing.assert_allclose(found["PixCorr"], pixels, rtol=1e-5)
    kinds = {key.split("/")[0] for key in Graph(best, STAGES.values()).decls["selected/bd/subj01"].upstream}
    assert kinds == {"reconstructions", "predictions"}
    picked = selected(best, lambda key: Store(best.study, key), "bd", "subj01", "full")
    np.testing.assert_array_equal(picked.shown(np.array([1, 4])), made[[1, 4], chosen[[1, 4]]])
    assert picked.read(slice(0, 0)).shape == (0, 1, 64, 64, 3)


def test_the_first_alone_is_scored_as_if_there_were_no_other(settings: Any, root: Path, several: Config) -> None:
    config = configured(settings, Path(several.study).parent, pictures=PICTURES, select="first")
    assert {row.path.split("/")[0] for row in Pipeline(config).status() if row.state.kind == "stale"} == {
        "similarities",
        "metrics",
    }
    folder = root / "first"
    shutil.copytree(several.study, folder / "study.zarr")
    config = configured(settings, folder, pictures=PICTURES, select="first")
    Pipeline(config).run(remake=True)
    for metric, scores in values(root / "study.zarr").items():
        np.testing.assert_allclose(values(config.study)[metric], scores, atol=1e-6)
    assert len(list((folder / "report/images/subj01").glob("*-full.webp"))) == 6


def test_agreement_of_what_is_constant_loses_against_any_other() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(2, 7))
    pictures = np.stack([np.ones(7), -wanted[0], np.ones(7), np.full(7, 3.0)])
    found = selection.agreement(pictures, wanted)
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(found[0, 1], -1)
    assert selection.best(found).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("painter", "message"),
    [
        ({"select": "best"}, "found best, and no select_by; expected the space that says which picture is best"),
        ({"select": "worst"}, "all.*first.*best"),
        ({"pictures": 0}, "pictures"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Any, tmp_path: Path, painter: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        configured(settings, tmp_path, **painter)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("clip_text", "whose encoder takes captions; expected a space whose encoder takes pictures alone"),
        ("nothing", "`painters.bd.select_by` 'nothing', which is no space of this configuration"),
    ],
)
def test_the_best_is_said_by_a_space_of_pictures(settings: Any, tmp_path: Path, space: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(configured(settings, tmp_path, pictures=2, select="best", select_by=space)).status()
