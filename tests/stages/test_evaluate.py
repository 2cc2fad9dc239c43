"""Evaluation through the stores: every metric from its definition, judges that look once, missing weights, the mean."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import bdflow
from bdflow.config import PUBLISHED_METRICS, parse
from bdflow.errors import InputError
from bdflow.metrics import image_metrics
from bdflow.models.diffusion.inputs import BICUBIC
from bdflow.models.judges.networks import Panel, load_panel
from bdflow.models.judges.weights import JUDGES
from bdflow.models.resizing import resize
from bdflow.pipeline import Pipeline, stages_until
from bdflow.stores import NotReady, Store, Study
from tests.conftest import SUBJECTS, painter, snapshot
from tests.support.parts import whole
from tests.support.plain_torchvision import import_torchvision

VARIANTS = ("full", "only_vdvae")
EVALUATED = ("PixCorr", "SSIM", "AlexNet(5)", "EffNet-B", "CLIP", "CLIP (bundle)")
PAINTED = (*SUBJECTS, "mean", "true")
TO_EVALUATE = tuple(stages_until("evaluate"))


@pytest.fixture(scope="module", autouse=True)
def no_caches(tmp_path_factory):
    """An empty place for caches, and torchvision's architectures."""
    import_torchvision()
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("TORCH_HOME", "HF_HUB_CACHE"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Published files of AlexNet and EfficientNet with random weights; of CLIP there are none."""
    from torchvision import models

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(models.alexnet().state_dict(), folder / JUDGES["alexnet"].file)
    torch.save(models.efficientnet_b1().state_dict(), folder / JUDGES["efficientnet_b1"].file)
    return folder


@pytest.fixture(scope="module")
def sections(weights):
    return {
        "painters": painter(variants=list(VARIANTS)),
        "reconstruct": {"subject_mean": True, "upper_bound": True},
        "evaluate": {"metrics": list(EVALUATED), "weights": str(weights)},
    }


def run(settings, root: Path, sections, stages=TO_EVALUATE, subjects=(), remake=False, **evaluate) -> Path:
    sections = sections | {"evaluate": {**sections["evaluate"], **evaluate}}
    config = parse(settings(root, **sections))
    Pipeline(config, subjects).run(stages, remake=remake)
    return config.study


@pytest.fixture(scope="module")
def looked() -> list[int]:
    """How many pictures each call of a panel looked at."""
    return []


@pytest.fixture(scope="module")
def study(settings, tmp_path_factory, sections, looked) -> Path:
    call = Panel.__call__

    def counted(self, images):
        looked.append(len(images))
        return call(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Panel, "__call__", counted)
        return run(settings, tmp_path_factory.mktemp("evaluated"), sections)


@pytest.fixture
def copied(study, tmp_path) -> Path:
    shutil.copytree(study, tmp_path / "study.zarr")
    return tmp_path


def pictures(study: Path, subject: str, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Photos and reconstructions, uint8."""
    store, stimuli = Store(study, f"reconstructions/brain_diffuser/{subject}/{variant}"), whole(study, "stimuli")
    rows = stimuli.rows("stimulus_id", store.read("stimulus_id"))
    return stimuli.read("image")[rows], store.read("image")[:, 0]


def values(study: Path, subject: str, variant: str) -> dict[str, np.ndarray]:
    store = Store(study, f"metrics/brain_diffuser/{subject}")
    at = store.read("variant").tolist().index(variant)
    return dict(zip(store.read("metric").tolist(), store.read("value")[at], strict=True))


def test_judges_look_at_each_photo_once_and_at_each_reconstruction_once(study, looked):
    n = Store(study, "reconstructions/brain_diffuser/true/full").sizes["stimulus_id"]
    assert sum(looked) == n + n * len(VARIANTS) * len(PAINTED)
    assert sorted(path.name for path in (study / "judges").iterdir() if path.is_dir()) == [
        "alexnet_5",
        "clip_bundle",
        "effnet_b",
    ]


def test_pictures_of_the_study_score_the_same_by_themselves(study, weights):
    """`bdflow.score` of the stores, with every kind of judge: the study's scores, up to the rounding of float32."""
    key = "reconstructions/brain_diffuser/subj01/full"
    found = bdflow.score(study / "stimuli/shared", study / key, EVALUATED, weights=weights, bundle="tiny", batch_size=4)
    expected = values(study, "subj01", "full")
    assert set(found.missing) == {"CLIP"}
    assert {*found.values, "CLIP"} == set(expected)
    for metric, scores in found.values.items():
        np.testing.assert_allclose(scores, expected[metric], rtol=0, atol=1e-6 if metric == "EffNet-B" else 1e-7)


@pytest.mark.parametrize(("subject", "variant"), [("subj02", "full"), ("mean", "only_vdvae"), ("true", "full")])
def test_every_value_follows_from_its_definition(study, weights, subject, variant):
    from bdflow.models.judges.weights import find_weights

    photos, made = pictures(study, subject, variant)
    found = values(study, subject, variant)
    assert list(found) == ["PixCorr", "SSIM (paper)", "AlexNet(5)", "EffNet-B", "CLIP", "CLIP (bundle)"]
    resized = [image_metrics.at_size(picture, *photos.shape[1:3]) for picture in made]
    for name, score in (("PixCorr", image_metrics.pixcorr), ("SSIM (paper)", image_metrics.ssim)):
        expected = [score(a, b) for a, b in zip(photos, resized, strict=True)]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
    panel = load_panel({name: find_weights(name, weights) for name in ("alexnet", "efficientnet_b1")}, "tiny")
    truth, seen = ({k: v.numpy() for k, v in panel(images).items()} for images in (photos, made))
    for name in ("AlexNet(5)", "CLIP (bundle)"):
        np.testing.assert_allclose(found[name], image_metrics.two_way(truth[name], seen[name]), atol=1e-6)
    expected = image_metrics.correlation_distance(truth["EffNet-B"], seen["EffNet-B"])
    np.testing.assert_allclose(found["EffNet-B"], expected, atol=1e-5)


def test_a_metric_without_weights_is_missing_and_says_why(study):
    for subject in PAINTED:
        store = Store(study, f"metrics/brain_diffuser/{subject}")
        names, why = store.read("metric").tolist(), store.read("missing").tolist()
        at = names.index("CLIP")
        assert np.isnan(store.read("value")[:, at]).all()
        assert np.isfinite(np.delete(store.read("value"), at, axis=1)).all()
        assert "no weights: found no clip-vit-large-patch14" in why[at]
        assert [text for i, text in enumerate(why) if i != at] == [""] * (len(names) - 1)
        assert store.provenance["settings"]["missing"] == {"CLIP": why[at]}


@pytest.mark.slow(kind="long checks")
def test_the_photos_themselves_score_one_and_those_of_others_do_not(settings, study, copied, sections):
    """Reconstructions replaced by the photos themselves, then by the photos of other stimuli."""
    photos, _ = pictures(study, "subj01", "full")
    n = len(photos)
    for subject, order in (("subj01", np.arange(n)), ("subj02", np.roll(np.arange(n), 1))):
        store = Store(copied / "study.zarr", f"reconstructions/brain_diffuser/{subject}/full")
        size = store.sizes["y"]
        store.arrays["image"][...] = resize(photos[order], size, BICUBIC)[:, None]
    for path in ("similarities", "metrics"):
        shutil.rmtree(copied / "study.zarr" / path)
    run(settings, copied, sections)
    same, shuffled = (values(copied / "study.zarr", subject, "full") for subject in SUBJECTS)
    assert min(same["AlexNet(5)"]) == 1
    assert max(same["EffNet-B"]) < 0.2
    assert min(same["PixCorr"]) > 0.97, "the photos were resized to the reconstructions' size and back"
    assert np.mean(shuffled["AlexNet(5)"]) < 1
    assert np.mean(shuffled["PixCorr"]) < np.mean(same["PixCorr"])


@pytest.mark.slow(kind="evaluation begun again")
def test_other_distractors_are_named_and_cost_no_look_at_a_picture(settings, copied, sections, monkeypatch):
    monkeypatch.setattr(Panel, "__call__", lambda *_: pytest.fail("a judge looked again"))
    before = values(copied / "study.zarr", "subj01", "full")
    study = run(settings, copied, sections, distractors="reconstructions", ssim="2d", remake=True)
    found = values(study, "subj01", "full")
    assert list(found)[1:3] == ["SSIM (2d)", "AlexNet(5) (among reconstructions)"]
    similarity = Store(study, "similarities/brain_diffuser/subj01")
    at = similarity.read("metric").tolist().index("AlexNet(5)")
    matrix = similarity.read("correlation")[0, at].astype(float)
    own = np.diag(matrix)
    np.testing.assert_allclose(found["AlexNet(5) (among reconstructions)"], (matrix < own).sum(0) / (len(own) - 1))
    np.testing.assert_allclose(before["AlexNet(5)"], (matrix < own[:, None]).sum(1) / (len(own) - 1))
    np.testing.assert_array_equal(before["EffNet-B"], found["EffNet-B"])
    assert (before["SSIM (paper)"] != found["SSIM (2d)"]).all()


@pytest.mark.slow(kind="long checks")
def test_other_weights_make_scores_stale_and_name_themselves(settings, copied, sections, weights, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(weights, other)
    file = other / JUDGES["efficientnet_b1"].file
    content = torch.load(file)
    content["features.0.0.weight"] += 0.01
    torch.save(content, file)
    with pytest.raises(NotReady, match=r"input efficientnet_b1_\w+-\w+\.pth is another file now: judges/effnet_b"):
        run(settings, copied, sections, weights=str(other))
    before = values(copied / "study.zarr", "subj01", "full")
    after = values(run(settings, copied, sections, weights=str(other), remake=True), "subj01", "full")
    assert (before["EffNet-B"] != after["EffNet-B"]).all()
    for name in ("PixCorr", "AlexNet(5)", "CLIP (bundle)"):
        np.testing.assert_array_equal(before[name], after[name])
    file.unlink()
    study = run(settings, copied, sections, weights=str(other), remake=True)
    assert (values(study, "subj01", "full")["EffNet-B"] == after["EffNet-B"]).all(), "what is judged stays"
    Study(study).remove("judges/effnet_b")
    study = run(settings, copied, sections, weights=str(other), remake=True)
    assert np.isnan(values(study, "subj01", "full")["EffNet-B"]).all()


@pytest.mark.slow(kind="evaluation begun again")
def test_evaluation_resumed_and_cut_otherwise_gives_the_same_bytes(settings, study, copied, sections):
    store = Store(copied / "study.zarr", "similarities/brain_diffuser/subj02")
    store.forget(3)
    Store(copied / "study.zarr", "metrics/brain_diffuser/subj02").forget(3)
    shutil.rmtree(copied / "study.zarr/metrics/brain_diffuser/mean")
    assert snapshot(run(settings, copied, sections)) == snapshot(study)


# --- the mean of all subjects ---------------------------------------------------------------------------------------


def test_the_mean_is_the_average_of_what_each_subjects_pictures_are_made_from(study):
    for space in ("vdvae", "clip_vision", "clip_text"):
        expected = []
        for subject in SUBJECTS:
            store = Store(study, f"predictions/{subject}/{space}")
            raw = store.read("latent").astype(float)
            scale = raw.std(0)
            scale[scale == 0] = 1
            expected.append((raw - raw.mean(0)) / scale * store.read("train_std") + store.read("train_mean"))
        mean = Store(study, f"predictions/mean/{space}")
        np.testing.assert_allclose(mean.read("latent"), np.mean(expected, axis=0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(mean.read("prediction_std"), mean.read("latent").std(0), rtol=1e-3, atol=1e-5)
    for variant in VARIANTS:
        assert Store(study, f"reconstructions/brain_diffuser/mean/{variant}").sealed


@pytest.mark.slow(kind="evaluation begun again")
def test_the_mean_waits_for_all_subjects(settings, tmp_path, sections, study):
    shutil.copytree(study, tmp_path / "study.zarr")
    for path in (
        "predictions/mean",
        "guesses/brain_diffuser/mean",
        "reconstructions/brain_diffuser/mean",
        "similarities/brain_diffuser/mean",
        "metrics/brain_diffuser/mean",
    ):
        shutil.rmtree(tmp_path / "study.zarr" / path)
    run(settings, tmp_path, sections, subjects=["subj01"])
    assert not (tmp_path / "study.zarr/predictions/mean").exists()
    assert snapshot(run(settings, tmp_path, sections)) == snapshot(study)


@pytest.mark.slow(kind="long checks")
def test_a_mean_of_raw_predictions(settings, tmp_path, sections, study):
    shutil.copytree(study, tmp_path / "study.zarr")
    raw = {"ridge": {"standardise": "none"}, "painters": painter(variants=["only_vdvae"])}
    remade = run(settings, tmp_path, sections | raw, remake=True)
    each = [Store(study, f"predictions/{subject}/vdvae").read("latent") for subject in SUBJECTS]
    mean = Store(remade, "predictions/mean/vdvae").read("latent")
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"subjects": ["subj01", "mean"]}, "rename the subject"),
        ({"evaluate": {"metrics": ["SSIM", "SSIM"]}}, "each once"),
        ({"painters": painter(variants=["full", "full"])}, "each once"),
        ({"evaluate": {"metrics": ["FID"]}}, "evaluate.metrics"),
        ({"evaluate": {"distractors": "all"}}, "evaluate.distractors"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, tmp_path, sections, words):
    with pytest.raises(InputError, match=words):
        parse(settings(tmp_path, **sections))


def test_the_default_is_the_papers_eight(settings, tmp_path):
    config = parse(settings(tmp_path))
    assert config.evaluate.metrics == PUBLISHED_METRICS
    assert (config.evaluate.ssim, config.evaluate.distractors) == ("paper", "photos")
