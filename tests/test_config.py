"""Configuration: strict, every wrong key named with the nearest valid one, every setting overridable."""

from pathlib import Path

import pytest

from bdflow.config import load, parse, recipes
from bdflow.errors import InputError

MINIMAL = {"study": "s.zarr", "nsd": {"root": "nsd"}, "report": {"path": "r"}}


def test_the_paper_is_the_default_and_the_shipped_recipe():
    paper = load("brain_diffuser")
    assert paper.regress.alpha.model_dump() == {"vdvae": 50_000, "clip_vision": 60_000, "clip_text": 100_000}
    assert (paper.nsd.sessions, paper.subjects) == (37, ("subj01", "subj02", "subj05", "subj07"))
    default = parse(MINIMAL)
    for section in ("regress", "reconstruct", "evaluate"):
        same = {"batch_size"}
        assert getattr(paper, section).model_dump(exclude=same) == getattr(default, section).model_dump(exclude=same)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_shipped_recipe_is_valid(name):
    assert load(name).science()["seed"] == 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reconstruct.stepz=20", ["`reconstruct.stepz`", "did you mean `reconstruct.steps`"]),
        ("sesions=3", ["`sesions`", "nsd.sessions"]),
        ("reconstruct.strength=1.5", ["`reconstruct.strength` = 1.5", "less than or equal to 1"]),
        ("regress.alpha.vdvae=-1", ["regress.alpha.vdvae", "greater than 0"]),
        ("reconstruct.variants=[ful]", ["'ful'"]),
        ("subjects=[subj01, subj01]", ["each subject once"]),
        ("subjects=[]", ["subjects"]),
        ("study.path=x", ["`study`, which is a value"]),
        ("reconstruct.steps", ["no `=`"]),
    ],
)
def test_wrong_overrides_are_named(override, words):
    with pytest.raises(InputError) as error:
        load("demo", [override])
    for word in words:
        assert word in str(error.value), str(error.value)


def test_every_wrong_key_at_once():
    with pytest.raises(InputError) as error:
        parse(MINIMAL | {"sed": 3, "nsd": {"rot": "x"}})
    for word in ("`sed`", "`nsd.rot`", "no `nsd.root`"):
        assert word in str(error.value)


def test_overrides_apply():
    config = load("demo", ["reconstruct.steps=7", "execution.features.workers=3", "subjects=[subj05]"])
    assert (config.reconstruct.steps, config.execution.features.workers, config.subjects) == (7, 3, ("subj05",))


def test_where_work_runs_is_not_part_of_the_record():
    a = load("demo", ["execution.features.workers=3", "networks.device=cuda", "features.batch_size=5"])
    assert a.science() == load("demo").science()
    assert load("demo", ["networks.dtype=float16"]).science() != a.science()


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.yaml")
    for text, word in (("a: [", "not YAML"), ("- a", "list"), ("", "NoneType")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(InputError, match=word):
            load(tmp_path / "c.yaml")


def test_places_are_paths_or_urls_of_object_stores():
    config = parse(MINIMAL | {"study": "s3://bucket/lab/s.zarr/", "nsd": {"root": "gs://bucket/nsd"}})
    assert (config.study, config.nsd.root) == ("s3://bucket/lab/s.zarr", "gs://bucket/nsd")
    assert parse(MINIMAL).study == Path("s.zarr")
    assert load("demo", ["study=memory://x/s.zarr", "execution={}"]).study == "memory://x/s.zarr"
    with pytest.raises(InputError, match=r"`study` = 'ftp://x/y' .*a url other than s3://"):
        parse(MINIMAL | {"study": "ftp://x/y"})
    with pytest.raises(InputError, match=r"`nsd.root` in memory://, .*: ingest; expected serial"):
        parse(MINIMAL | {"nsd": {"root": "memory://x/n"}, "execution": {"ingest": {"executor": "dask"}}})
