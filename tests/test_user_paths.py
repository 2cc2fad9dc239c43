"""Paths as users write them: in the configuration, as overrides, and as arguments."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bdflow
from bdflow import user_paths
from bdflow.cli.main import app
from bdflow.config import load
from bdflow.errors import InputError
from bdflow.user_paths import new_folder

LOCAL = ("networks.bundle", "evaluate.weights", "roi.masks.mine.subj01", "report.path", "cluster.slurm.logs")
LOCAL += ("dataset.split",)
ANYWHERE = ("study", "dataset.root", "dataset.captions")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_of(key: str, text: str) -> str:
    found = load("demo", [f"{key}={text}"]).model_dump()
    for name in key.split("."):
        found = found[name]
    return str(found)


@pytest.mark.parametrize("key", [*LOCAL, *ANYWHERE])
def test_home_and_variables_are_put_in(key, home):
    assert value_of(key, "~/x") == str(home / "home/x")
    assert value_of(key, "$SCRATCH/x") == value_of(key, "${SCRATCH}/x") == str(home / "scratch/x")
    assert value_of(key, "cost$$5/a #2 @x%&*!'") == "cost$5/a #2 @x%&*!'"
    assert Path(value_of(key, "./~x")) == Path("./~x")


@pytest.mark.parametrize("key", [*LOCAL, *ANYWHERE])
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        (" x", "white space"),
        ("x\n", "white space"),
        ("a\0b", "control"),
        ("$NOT_SET/x", r"\$NOT_SET, which is not set"),
        ("a$/x", "dollar"),
        ("${NOT", "dollar"),
        ("~nobody-of-this-name/x", "nobody-of-this-name"),
        ("caf\udce9", "locale"),
        ("https://a/b", "URL"),
        ("s3:/b/x", "URL"),
        ("s3://", "URL"),
        ("s3:b/x", "URL"),
        ("s3://b/../x", "URL"),
        ("s3://s3://b/x", "URL"),
        ("'a'", "quotes"),
    ],
)
def test_what_would_become_another_path_is_refused(key, text, word):
    with pytest.raises(InputError, match=word) as error:
        load("demo", [f"{key}={text}"])
    assert key in str(error.value)


@pytest.mark.parametrize("key", LOCAL)
def test_urls_are_refused_where_only_local_paths_are_read(key):
    for url in ("s3://b/x", "gs://b/x", "memory://b/x"):
        with pytest.raises(InputError, match="only local paths"):
            load("demo", [f"{key}={url}"])


@pytest.mark.parametrize("key", ANYWHERE)
def test_variables_in_urls(key, monkeypatch):
    monkeypatch.setenv("USER", "me")
    assert value_of(key, "s3://lab/$USER/s.zarr/") == "s3://lab/me/s.zarr"


def test_latents_of_a_file(home):
    assert value_of("spaces.vdvae.encoder", "array:~/a #1.npz") == f"array:{home}/home/a #1.npz"
    for text, word in (("array:s3://b/x.npz", "URL"), ("array:", "empty"), ("array:$NOT_SET", "NOT_SET")):
        with pytest.raises(InputError, match=word):
            load("demo", [f"spaces.vdvae.encoder={text}"])


def test_a_set_value_of_text_is_taken_as_it_stands():
    config = load(
        "demo", ["ridge.regions=V1 # no comment", "networks.device=[cuda", "study=@x", "dataset.captions=null"]
    )
    assert (config.ridge.regions, config.networks.device) == ("V1 # no comment", "[cuda")
    assert (config.study, config.dataset.captions) == (Path("@x"), None)


def test_what_is_escaped_is_that_path_again():
    for path in (Path("~a/$b"), Path("/x/$$y"), Path("plain")):
        assert Path(user_paths.expanded(user_paths.escaped(path))) == path


ARGUMENTS = [
    ["decode", "demo", "PATH", "--subject", "subj01", "--out", "x.zarr"],
    ["decode", "demo", "x.npy", "--subject", "subj01", "--out", "PATH"],
    ["roi", "demo", "--subject", "subj01", "--mask", "PATH"],
    ["roi", "demo", "--region", "V1", "--out", "PATH"],
    ["maps", "demo", "--out", "PATH"],
    ["figures", "demo", "--out", "PATH"],
    ["plan", "demo", "--figures", "PATH"],
    ["simulate", "PATH"],
    ["demo", "--root", "PATH"],
    ["fetch", "nsd", "demo", "--to", "PATH"],
    ["bundle", "init", "PATH"],
    ["bundle", "check", "PATH"],
    ["bundle", "info", "PATH"],
    ["status", "PATH"],
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda words: " ".join(words))
def test_every_path_among_the_arguments(arguments, home):
    for text, word in (("s3://b/o", "URL"), ("s3:/b/o", "URL"), ("$NOT_SET/x", "NOT_SET"), ("", "empty")):
        done = CliRunner().invoke(app, [text if part == "PATH" else part for part in arguments])
        assert isinstance(done.exception, InputError), done.exception
        assert word in str(done.exception)
        assert not list(home.iterdir())


def test_arguments_are_expanded(home, monkeypatch):
    monkeypatch.setenv("USER", "me")
    (home / "home").mkdir()
    done = CliRunner().invoke(app, ["bundle", "info", "~/none"])
    assert str(home / "home/none") in str(done.exception)
    done = CliRunner().invoke(app, ["status", "$SCRATCH/c.yaml"])
    assert isinstance(done.exception, InputError)
    with pytest.raises(bdflow.NotReady, match=str(home / "home/s.zarr")):
        bdflow.open_study("~/s.zarr")
    with pytest.raises(InputError, match="URL"):
        bdflow.score("s3:/b/photos", os.fspath(home))
    with pytest.raises(InputError, match="lab/me/photos"):
        bdflow.score("memory://lab/$USER/photos", os.fspath(home))


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    with new_folder(tmp_path / "a/out") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "a/out").exists()
    assert [file.name for file in (tmp_path / "a").rglob("*")] == ["out", "file"]
    failing = new_folder(tmp_path / "b")
    (failing.__enter__() / "file").write_text("x")
    error = RuntimeError("it fails")
    assert not failing.__exit__(RuntimeError, error, None), "it is raised again"
    with pytest.raises(InputError, match="something there"), new_folder(tmp_path / "a/out"):
        pass
    with pytest.raises(InputError, match="a file"), new_folder(tmp_path / "a/out/file/c"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
