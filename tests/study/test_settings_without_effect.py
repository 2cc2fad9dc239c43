"""Settings without effect: those that the chosen kind does not look at are refused; those that others take the effect
from make nothing stale.
"""

import inspect
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bdflow.config import OF_SOME_KINDS, load, parse
from bdflow.config import content as settings_content
from bdflow.datasets.reader import DATASETS as KINDS
from bdflow.datasets.reader import Reader
from bdflow.errors import InputError
from bdflow.models.painters import painter_kind
from bdflow.registry import resolve
from bdflow.study.in_effect import settings_in_effect
from bdflow.study.keys import kind
from tests.conftest import small_settings
from tests.study.test_fingerprints import changed, everything, keys_that_differ

PAINTER = "painters.brain_diffuser"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any, str]] = {
    "dataset.image_fit": ({"dataset.image_size": None}, {"dataset.image_size": 48}, "pad", "stimuli"),
    "evaluate.ssim": ({"evaluate.metrics": ["PixCorr"]}, {"evaluate.metrics": ["SSIM"]}, "2d", "metrics"),
    "evaluate.distractors": (
        {"evaluate.metrics": ["PixCorr", "SSIM"]},
        {"evaluate.metrics": ["CLIP (bundle)"]},
        "reconstructions",
        "metrics",
    ),
    f"{PAINTER}.select": ({f"{PAINTER}.pictures": 1}, {f"{PAINTER}.pictures": 2}, "first", "metrics"),
    f"{PAINTER}.noise_index": (
        {f"{PAINTER}.strength": 1.0},
        {f"{PAINTER}.strength": 0.75},
        "diffusers",
        "reconstructions",
    ),
}
"""By setting: others beside which it has no effect, and beside which it has; another value; what it shapes."""


@pytest.fixture(scope="module")
def full(nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    content = everything(nsd, tmp_path_factory.mktemp("effects"))
    return changed(content, f"{PAINTER}.select", "all")


@pytest.mark.parametrize("key", CASES)
def test_it_counts_only_beside_settings_that_give_it_an_effect(full: dict[str, Any], key: str) -> None:
    without, with_effect, other, shaped = CASES[key]
    for beside, counts in ((without, False), (with_effect, True)):
        base = full
        for name, value in beside.items():
            base = changed(base, name, value)
        stale = {kind(store) for store in keys_that_differ(base, changed(base, key, other))}
        assert (shaped in stale) == bool(stale) == counts


GIVEN = {
    "captions": "captions.npy",
    "preparation": "betas_assumehrf",
    "space": "func1mm",
    "betas_format": "hdf5",
    "outliers": "clip",
    "not_a_number": "invalid",
}


def study_of(dataset: dict[str, Any]) -> dict[str, Any]:
    """The shortest configuration of a dataset."""
    return {"study": "s", "dataset": dataset, "spaces": {"v": {"encoder": "vdvae"}}, "report": {"path": "r"}}


@cache
def reads(kind: str) -> set[str]:
    """The settings of some kinds alone that the source of a dataset's class reads."""
    classes = [of for of in resolve(kind, KINDS, "").__mro__ if of.__module__.startswith("bdflow.")]
    return {name for name in GIVEN if any(f"settings.{name}" in inspect.getsource(of) for of in classes)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_a_kind_of_dataset_does_not_read_is_refused(kind: str, tmp_path: Path) -> None:
    assert set(GIVEN) == set(OF_SOME_KINDS)
    for name, value in GIVEN.items():
        section = {"kind": kind, "root": str(tmp_path), name: value}
        config = parse(
            {"study": "s", "dataset": section, "spaces": {"v": {"encoder": "vdvae"}}, "report": {"path": "r"}}
        )
        if name in reads(kind):
            with suppress(InputError):  # options and files are looked at next
                Reader(config)
            continue
        with pytest.raises(InputError) as error:
            Reader(config)
        assert str(error.value).startswith(f"dataset.kind {kind}: found `dataset.{name}`, which this kind does not")
        knowing = [other for other in KINDS if name in reads(other)]
        assert f"Kinds that look at such settings, of {', '.join(knowing)}: `{name}`." in str(error.value)


def test_all_that_a_kind_does_not_look_at_is_said_at_once_and_nothing_given_is_no_fault(tmp_path: Path) -> None:
    section = {"kind": "arrays", "root": str(tmp_path), "captions": None}
    content = study_of(section)
    Reader(parse(content))
    with pytest.raises(InputError, match=r"`dataset.space`, `dataset.outliers`, which this kind") as error:
        Reader(parse(changed(changed(content, "dataset.outliers", "clip"), "dataset.space", "func1mm")))
    assert "of nsd, nsd_imagery, nsd_synthetic: `space`, `outliers`.\nWhat to do: remove them, or" in str(error.value)


def test_a_class_of_ones_own_is_asked_what_it_reads(tmp_path: Path) -> None:
    kind = f"{__name__}:NumbersAsPictures"
    section = {"kind": kind, "root": str(tmp_path), "captions": "captions.npy"}
    content = study_of(section)
    Reader(parse(content))
    with pytest.raises(InputError, match="a class of your own names what it reads in `looks_at`"):
        Reader(parse(changed(content, "dataset.space", "func1mm")))


class NumbersAsPictures:
    """A dataset of one's own, as far as it is asked here."""

    looks_at = ("captions",)

    def __init__(self, settings: object) -> None:
        self.settings = settings


STABLE = {"kind": "stable_diffusion", "guess": "vdvae", "text": "clip_text"}
PAINTERS_WITHOUT = [
    (
        {"kind": "stable_diffusion", "guess": "vdvae", "text": "clip_text", "mixing": 0.5},
        "mixing",
        "versatile_diffusion",
    ),
    ({"kind": "stable_diffusion", "guess": "vdvae", "text": "clip_text", "vision": "vdvae"}, "vision", ""),
    ({"options": {"any": 1}}, "options", "a class of your own"),
    ({"kind": "stable_diffusion", "guess": "vdvae", "text": "clip_text", "options": {"any": 1}}, "options", ""),
]


@pytest.mark.parametrize(("section", "idle", "known"), PAINTERS_WITHOUT)
def test_a_setting_that_a_kind_of_painter_does_not_read_is_refused(section, idle, known, nsd, tmp_path) -> None:
    content = small_settings(nsd, tmp_path)
    with pytest.raises(InputError, match=rf"`painters.one.{idle}`, which this kind does not look at") as error:
        painter_kind(parse({**content, "painters": {"one": section}}), "one")
    assert known in str(error.value)
    kept = {name: value for name, value in section.items() if name != idle}
    config = parse({**content, "painters": {"one": kept}})
    assert painter_kind(config, "one").settings.vision == (None if "kind" in section else "clip_vision")


@pytest.mark.parametrize("recipe", ["demo", "brain_diffuser", "takagi_nishimoto"])
def test_a_configuration_written_out_with_all_its_defaults_can_be_read(recipe: str) -> None:
    config = load(recipe)
    again = parse(config.model_dump(mode="json"))
    assert again == config
    for name in again.painters:
        painter_kind(again, name)


def test_what_the_report_and_exports_record_can_be_run_again(nsd, tmp_path) -> None:
    """Without what the kinds do not look at, though every other setting is written out."""
    content = {**small_settings(nsd, tmp_path), "painters": {"one": STABLE, "two": {}}}
    for dataset, left_out in (("nsd", set()), ("laion_fmri", set(OF_SOME_KINDS))):
        config = parse(changed(content, "dataset", {"kind": dataset, "root": str(nsd)}))
        record = settings_in_effect(config)
        assert set(type(config.dataset).model_fields) - set(record["dataset"]) == left_out
        assert set(type(config.painters["one"]).model_fields) - set(record["painters"]["one"]) == {
            "mixing",
            "options",
            "vision",
        }
        again = parse(record)
        Reader(again)
        for painter in ("one", "two"):
            assert painter_kind(again, painter).settings == painter_kind(config, painter).settings


def test_workers_of_a_stage_in_this_process_are_refused(nsd, tmp_path) -> None:
    content = small_settings(nsd, tmp_path)
    with pytest.raises(InputError, match=r"`execution` .*ingest.workers: found 3, and executor: serial"):
        parse(changed(content, "execution", {"ingest": {"workers": 3}}))
    parse(changed(content, "execution", {"reconstruct": {"workers": 3}}))  # of `bdflow serve`
    parse(changed(content, "execution", {"ingest": {"executor": "serial", "workers": 1, "memory": "4 GiB"}}))


def test_rules_for_values_of_nsd_make_other_kinds_no_difference(nsd: Path, tmp_path: Path) -> None:
    """Nor would another default of them."""
    laion = parse(changed(small_settings(nsd, tmp_path), "dataset", {"kind": "laion_fmri", "root": str(nsd)}))
    assert not {"outliers", "not_a_number"} & set(settings_content(laion.dataset, "betas"))
    core = small_settings(nsd, tmp_path)
    for key in ("dataset.outliers", "dataset.not_a_number"):
        assert "betas/subj01" in keys_that_differ(core, changed(core, key, "invalid"))


@pytest.mark.parametrize(
    ("ridge", "words"),
    [({"alpha": 10.0}, "`ridge.alpha`"), ({"regions": "V1", "rows": "trials"}, "`ridge.rows`, `ridge.regions`")],
)
def test_settings_of_ridge_of_a_space_that_is_not_decoded_are_refused(ridge, words, nsd, tmp_path) -> None:
    content = small_settings(nsd, tmp_path)
    for decode in (True, False):
        space = {"encoder": "vdvae", "decode": decode, "ridge": ridge}
        if decode:
            assert parse(changed(content, "spaces.more", space)).spaces["more"].ridge.given(ridge)
            continue
        with pytest.raises(InputError, match=r"`spaces\.more` = .*\(ridge: found ") as error:
            parse(changed(content, "spaces.more", space))
        assert f"(ridge: found {words}, and decode: false" in str(error.value)
        parse(changed(content, "spaces.more", {**space, "ridge": dict.fromkeys(ridge)}))
        parse(changed(content, "spaces.more", {**space, "ridge": {}}))
