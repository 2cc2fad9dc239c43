"""Configuration: strict, every wrong key named with the nearest valid one, every setting overridable."""

from pathlib import Path

import pytest

from bdflow.config import content, load, parse, recipes
from bdflow.errors import InputError

MINIMAL = {
    "study": "s.zarr",
    "dataset": {"root": "nsd"},
    "spaces": {name: {"encoder": name} for name in ("vdvae", "clip_vision", "clip_text")},
    "painters": {"brain_diffuser": {}},
    "report": {"path": "r"},
}

PAINTER = "painters.brain_diffuser"


def test_the_paper_is_the_default_and_the_shipped_recipe():
    paper = load("brain_diffuser")
    alphas = {space: paper.ridge_of(space).alpha for space in paper.spaces}
    assert alphas == {"vdvae": 50_000, "clip_vision": 60_000, "clip_text": 100_000}
    assert (paper.dataset.sessions, paper.subjects) == (37, ("subj01", "subj02", "subj05", "subj07"))
    default = parse(MINIMAL)
    assert content(paper.painters["brain_diffuser"]) == content(default.painters["brain_diffuser"])
    for section in ("ridge", "reconstruct", "evaluate"):
        assert getattr(paper, section) == getattr(default, section)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_shipped_recipe_is_valid(name):
    assert load(name).science()["seed"] == 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"{PAINTER}.stepz=20", [f"`{PAINTER}.stepz`", f"did you mean `{PAINTER}.steps`"]),
        ("spaces.vdvae.encodr=x", ["`spaces.vdvae.encodr`", "did you mean `spaces.vdvae.encoder`"]),
        ("spaces.vdvae.ridge.alfa=3", ["`spaces.vdvae.ridge.alfa`", "did you mean `spaces.vdvae.ridge.alpha`"]),
        ("sesions=3", ["`sesions`", "dataset.sessions"]),
        (f"{PAINTER}.strength=1.5", [f"`{PAINTER}.strength` = 1.5", "less than or equal to 1"]),
        (f"{PAINTER}.strength=0.01", ["at least 1 / steps"]),
        ("spaces.vdvae.ridge.alpha=-1", ["spaces.vdvae.ridge.alpha", "greater than 0"]),
        (f"{PAINTER}.variants=[1l]", ["variants", "pattern"]),
        (
            f"{PAINTER}.vision=clip_visoin",
            ["`painters.brain_diffuser.vision` 'clip_visoin'", "did you mean `clip_vision`"],
        ),
        ("encode.spaces=[dino]", ["`encode.spaces` 'dino'", "one of `spaces`"]),
        ("encode.sets={both: [vdvae, clip_txt]}", ["`encode.sets.both` 'clip_txt'", "did you mean `clip_text`"]),
        ("encode.sets={both: [vdvae]}", ["encode.sets.both", "at least 2"]),
        ("encode.sets={both: [vdvae, vdvae]}", ["encode.sets", "each space once"]),
        ("encode.sets={vdvae: [vdvae, clip_text]}", ["encode.sets", "vdvae, which a space has"]),
        ("encode.share_steps=0", ["encode.share_steps", "greater than or equal to 1"]),
        ("subjects=[subj01, subj01]", ["each subject once"]),
        ("subjects=[]", ["subjects"]),
        ("study.path=x", ["`study`, which is a single value"]),
        (f"{PAINTER}.steps", ["no `=`"]),
    ],
)
def test_wrong_overrides_are_named(override, words):
    with pytest.raises(InputError) as error:
        load("demo", [override])
    for word in words:
        assert word in str(error.value), str(error.value)


def test_kept_features_and_compiled_networks_are_refused_before_anything_runs():
    with pytest.raises(InputError, match=r"feature_cache: found 2, with networks.speed.compile: default"):
        load("demo", ["networks.speed.compile=default", f"{PAINTER}.feature_cache=2"])


def test_every_wrong_key_at_once():
    with pytest.raises(InputError) as error:
        parse(MINIMAL | {"sed": 3, "dataset": {"rot": "x"}})
    for word in ("`sed`", "`dataset.rot`", "no `dataset.root`"):
        assert word in str(error.value)


def test_overrides_apply():
    config = load("demo", [f"{PAINTER}.steps=7", "execution.features.workers=3", "subjects=[subj05]"])
    assert (config.painters["brain_diffuser"].steps, config.execution.features.workers, config.subjects) == (
        7,
        3,
        ("subj05",),
    )


def test_where_work_runs_is_not_part_of_the_record():
    a = load("demo", ["execution.features.workers=3", "networks.device=cuda", "features.batch_size=5"])
    assert a.science() == load("demo").science()
    assert load("demo", ["networks.dtype=float16"]).science() != a.science()


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.yaml")
    for text, word in (("a: [", "not YAML"), ("- a", "list"), ("", "found nothing")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(InputError, match=word):
            load(tmp_path / "c.yaml")


def test_places_are_paths_or_urls_of_object_stores():
    config = parse(MINIMAL | {"study": "s3://bucket/lab/s.zarr/", "dataset": {"root": "gs://bucket/nsd"}})
    assert (config.study, config.dataset.root) == ("s3://bucket/lab/s.zarr", "gs://bucket/nsd")
    assert parse(MINIMAL).study == Path("s.zarr")
    assert load("demo", ["study=memory://x/s.zarr", "execution={}"]).study == "memory://x/s.zarr"
    with pytest.raises(InputError, match=r'`study` = "ftp://x/y" .*a URL other than s3://'):
        parse(MINIMAL | {"study": "ftp://x/y"})
    with pytest.raises(InputError, match=r"`dataset.root` in memory://, .*: ingest; expected serial"):
        parse(MINIMAL | {"dataset": {"root": "memory://x/n"}, "execution": {"ingest": {"executor": "dask"}}})
