"""Controls: which pictures they show, against a search written out; true to what is planted, and at chance in noise."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest

from bdflow.config import Config, parse
from bdflow.errors import InputError
from bdflow.metrics.statistics import difference, holm
from bdflow.pipeline import Pipeline
from bdflow.stages.reconstruct.controls import others
from bdflow.stores import Store
from bdflow.study.stage import MEAN, TRUE
from tests.conftest import SUBJECTS, painter, spaces
from tests.support.parts import whole

CONTROLS = ["prior", "retrieval", "mean_image"]
PICTURES = 2
RETRIEVED = [("brain_diffuser", "clip_vision", PICTURES), ("second", "clip_text", 1)]


@pytest.fixture(scope="module")
def content(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two painters, one of them with two pictures of a stimulus; a space that is decoded without an intercept."""
    first = painter(controls=CONTROLS, pictures=PICTURES, variants=["full", "only_vdvae"])
    second = {**painter()["brain_diffuser"], "variants": ["no_vdvae"], "guess": None}
    second |= {"controls": ["retrieval"], "retrieve_by": "clip_text"}
    return settings(
        tmp_path_factory.mktemp("controls"),
        spaces=spaces(clip_text={"intercept": False}),
        painters={**first, "second": second},
        reconstruct={"subject_mean": True, "upper_bound": True},
        evaluate={"metrics": ["PixCorr", "SSIM", "CLIP (bundle)"]},
    )


@pytest.fixture(scope="module")
def made(content: dict[str, Any]) -> Config:
    config = parse(content)
    Pipeline(config).run()
    return config


def images(config: Config, subject: str, kind: str, of: str = "brain_diffuser") -> np.ndarray:
    return Store(config.study, f"reconstructions/{of}/{subject}/{kind}").read("image")


def trained(config: Config, subject: str) -> np.ndarray:
    """stimulus_ids of a subject's training stimuli, from its responses; of the mean, of everybody's."""
    found = []
    for of in SUBJECTS if subject == MEAN else (subject,):
        responses = Store(config.study, f"responses/{of}/averaged")
        found.append(responses.read("stimulus_id")[responses.read("split") != "test"])
    return np.unique(np.concatenate(found))


def photos(config: Config, ids: np.ndarray, pixels: int) -> np.ndarray:
    stimuli = whole(config.study, "stimuli")
    found = stimuli.read("image")[stimuli.rows("stimulus_id", ids)]
    return np.stack([np.asarray(Image.fromarray(p).resize((pixels, pixels), Image.Resampling.LANCZOS)) for p in found])


def test_every_control_is_a_store_and_a_row(made: Config) -> None:
    states = {row.path: row.state.kind for row in Pipeline(made).status()}
    assert set(states.values()) == {"sealed"}
    for subject in (*SUBJECTS, MEAN):
        variants = Store(made.study, f"metrics/brain_diffuser/{subject}").read("variant").tolist()
        assert variants == ["full", "only_vdvae", *CONTROLS]
        assert {f"neighbours/{subject}/clip_vision", f"neighbours/{subject}/clip_text"} < states.keys()
        values = Store(made.study, f"metrics/brain_diffuser/{subject}").read("value")
        assert np.isfinite(values[: len(variants)]).mean() > 0.9
    assert Store(made.study, f"metrics/brain_diffuser/{TRUE}").read("variant").tolist() == ["full", "only_vdvae"]
    page = (made.report.path / "index.html").read_text(encoding="utf-8")
    assert "the training photo nearest to the prediction" in page
    for of, space, first in (("brain_diffuser", "clip_vision", "full"), ("second", "clip_text", "no_vdvae")):
        for metric in ("PixCorr", "CLIP (bundle)"):
            assert f"{of}, {metric}, and likeness to training" in page
        assert f"cosine with the nearest training stimulus, in {space}" in page
        assert f"Spearman&#39;s rho: {first} " in page or f"Spearman's rho: {first} " in page
    with (made.report.path / "tables/scores.csv").open() as file:
        rows = {(row["subject"], row["variant"]) for row in csv.DictReader(file)}
    assert {("subj01", f"brain_diffuser/{control}") for control in CONTROLS} < rows


@pytest.mark.parametrize("subject", [*SUBJECTS, MEAN])
def test_the_prior_is_every_picture_at_another_stimulus(made: Config, subject: str) -> None:
    full, prior = images(made, subject, "full"), images(made, subject, "prior")
    assert prior.shape == full.shape
    assert prior.shape[1] == PICTURES
    order = others(len(full), made.seed, subject)
    np.testing.assert_array_equal(prior, full[order])
    assert sorted(order.tolist()) == list(range(len(full)))
    assert (order != np.arange(len(full))).all()


@pytest.mark.parametrize("n", [2, 3, 982])
def test_no_stimulus_keeps_its_picture(n: int) -> None:
    for seed in range(20):
        found = others(n, seed, "subj01")
        assert (found != np.arange(n)).all()
        assert len(set(found.tolist())) == n
    assert n == 2 or len({tuple(others(n, seed, "subj01").tolist()) for seed in range(20)}) > 1


@pytest.mark.parametrize("subject", [*SUBJECTS, MEAN])
@pytest.mark.parametrize(("of", "space", "count"), RETRIEVED)
def test_retrieval_shows_the_nearest_training_photos(
    made: Config, subject: str, of: str, space: str, count: int
) -> None:
    """By cosines of whole latents, z-scored by the training stimuli."""
    predictions, targets = Store(made.study, f"predictions/{subject}/{space}"), whole(made.study, f"targets/{space}")
    ids, pool = predictions.read("stimulus_id"), trained(made, subject)
    latent = targets.read("latent").astype(float)
    train, own = (latent[targets.rows("stimulus_id", wanted)].reshape(len(wanted), -1) for wanted in (pool, ids))
    made_of = predictions.read("latent").reshape(len(ids), -1).astype(float)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    kept = scale > 0
    z = ((train - mean) / np.where(kept, scale, 1))[:, kept]
    around_0 = space == "clip_text" and subject != MEAN  # no intercept; the mean is of re-standardised predictions
    assert (np.abs(made_of.mean(axis=0)).mean() < 0.5 * np.abs(mean).mean()) == around_0
    asked = {"agreement": made_of - (0 if around_0 else mean), "similarity": own - mean}
    store = Store(made.study, f"neighbours/{subject}/{space}")
    for name, values in asked.items():
        q = (values / np.where(kept, scale, 1))[:, kept]
        cosine = q @ z.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(z, axis=1)
        order = np.argsort(-cosine, axis=1)[:, :count]
        np.testing.assert_allclose(store.read(name), np.take_along_axis(cosine, order, axis=1), atol=1e-5)
        nearest = store.read("train_stimulus_id" if name == "agreement" else "similar_stimulus_id")
        np.testing.assert_array_equal(nearest, pool[order])
    shown = images(made, subject, "retrieval", of)
    for row, neighbours in enumerate(store.read("train_stimulus_id")):
        np.testing.assert_array_equal(shown[row], photos(made, neighbours, shown.shape[2]))


@pytest.mark.parametrize("subject", [*SUBJECTS, MEAN])
def test_the_mean_image_is_of_the_training_photos(made: Config, subject: str) -> None:
    shown = images(made, subject, "mean_image")
    expected = photos(made, trained(made, subject), shown.shape[2]).astype(float).mean(axis=0)
    np.testing.assert_array_equal(shown, np.broadcast_to(np.rint(expected), shown.shape))


def test_a_control_added_later_makes_its_pictures_and_scores_alone(content: dict[str, Any], made: Config) -> None:
    second = {**content["painters"]["second"], "controls": []}
    pipeline = Pipeline(parse(content | {"painters": {**content["painters"], "second": second}}))
    expected = pipeline.expected()
    stale = {row.path for row in pipeline.status() if row.state.kind == "stale" and row.path in expected}
    assert {path.split("/")[0] for path in stale} == {"similarities", "metrics"}
    assert all(path.split("/")[1] == "second" for path in stale)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"controls": ["priors"]}, "controls"),
        ({"controls": ["prior", "prior"]}, "lists `prior` more than once"),
        ({"controls": ["retrieval"], "retrieve_by": "clip"}, "did you mean `clip_"),
    ],
)
def test_what_does_not_fit_is_refused(content: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(content | {"painters": painter(**change)})


def test_a_single_test_stimulus_has_no_prior(content: dict[str, Any], made: Config, tmp_path: Path) -> None:
    ids = Store(made.study, "metrics/brain_diffuser/subj01").read("stimulus_id")
    (tmp_path / "one.txt").write_text(f"{ids[0]}\n")
    dataset = {**content["dataset"], "split": str(tmp_path / "one.txt")}
    one = content | {"study": str(tmp_path / "study.zarr"), "reconstruct": {}, "subjects": ["subj01"]}
    one |= {"dataset": dataset, "painters": painter(controls=["prior"])}
    with pytest.raises(InputError, match="found one test stimulus; expected two at least"):
        Pipeline(parse(one)).run()


# --- statistics -------------------------------------------------------------------------------------------------------


def test_p_is_uniform_under_the_null() -> None:
    """200 studies of 100 stimuli whose pictures have nothing to do with the photos: the identification scores of two
    readings of one such picture set, one as `full`, one put to other stimuli.
    """
    draw, found = np.random.default_rng(0), []
    for seed in range(200):
        similarity = draw.standard_normal((100, 100))
        rank = (similarity < similarity.diagonal()[:, None]).mean(axis=1)
        order = others(100, seed, "subj01")
        of_prior = (similarity < similarity[np.arange(100), order][:, None]).mean(axis=1)
        found.append(difference(rank, of_prior, seed).p)
    assert kstest(found, "uniform").pvalue > 0.01
    assert abs(np.mean(np.array(found) < 0.05) - 0.05) < 0.04


def test_holm_is_as_he_wrote_it() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    draw = np.random.default_rng(1)
    wrong = [(holm(draw.uniform(size=8)) < 0.05).any() for _ in range(2000)]
    assert np.mean(wrong) < 0.065
    assert holm(np.array([])).shape == (0,)
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
