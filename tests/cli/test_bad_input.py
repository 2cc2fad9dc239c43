"""What users get wrong: every command, over a corpus of it, ends with one message that says what to do."""

import shutil

import numpy as np
import pytest
import yaml

from tests.conftest import snapshot

PAINTER = "painters.brain_diffuser"


OVERRIDES = [
    "study=@x", "study=%x", "study=`x`", "study=!x", "study=&x", "study=*x", "study=", "study= ", "study='x'",
    "study=~nobody-of-this-name/x", "study=$NOT_SET_HERE/x", "study=ftp://a/b", "study=s3://", "study=a\nb",
    "study=\udce9",
    f"{PAINTER}.variants=[full", f"{PAINTER}.variants=full", f"{PAINTER}.variants=[010]", f"{PAINTER}.steps=@x",
    f"{PAINTER}.steps={{", f"{PAINTER}.steps=1e999", f"{PAINTER}.steps=" + "1" * 5000, f"{PAINTER}.steps=yes",
    f"{PAINTER}.guidance_interval=[1", f"{PAINTER}=x", f"{PAINTER}.options=[]", "painters=[a]", "spaces={}",
    "spaces.vdvae=null", "spaces.vdvae.encoder=nowhere", "spaces.vdvae.encoder=os:path", "spaces.vdvae.encoder=a b:c",
    "spaces.vdvae.encoder=array:none.npz", "spaces.vdvae.encoder=.x:Y", "spaces.vdvae.encoder=:",
    "spaces.é.encoder=vdvae",
    "spaces.vdvae.encoder=this:that",
    "dataset.kind=123:x", "dataset.kind=.a:b", "dataset.root=none", "dataset.mask=../x", "dataset.split=none.txt",
    "dataset.sessions=-1", "dataset.sessions=010", "subjects=[é]", "subjects=[/]", "subjects=[1]", "subjects=subj01",
    "roi.sets={a: [V1 |]}", "roi.sets={é: [V1]}", "roi.masks.é.subj01=x", "networks.bundle=none", "networks.bundle=..",
    "networks.device=[", "execution.ingest.memory=lots", "execution.ingest.workers=true",
    "cluster.slurm.time=1:2:3:4:5",
    "report.path=s3://a/b", "evaluate.weights=s3://a/b", "a.b.c=[", "..=1", "=1", "seed", "seed=[", "seed=--- 1\n--- 2",
    "seed=!!python/object:os.system x", "seed=&a [*a]", "seed=" + "[" * 3000, "ridge=null", "ridge=3", "ridge.grid=[]",
]  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: ascii(text)[1:40])
def test_overrides(override, ended, tmp_path):
    command = ["run", "demo", "--only", "ingest", "--set", f"dataset.root={tmp_path}/none", "--set", override]
    assert ended(*command)
    assert not [file for file in tmp_path.iterdir() if "study" not in file.name]


FILES = {
    "empty": b"",
    "a list": b"- a",
    "text": b"hello",
    "binary": bytes(range(256)),
    "Latin-1": "study: Früh".encode("latin-1"),
    "UTF-16": "study: x".encode("utf-16"),
    "tabs": b"study:\n\tx: 1",
    "twice": b"study: a\nstudy: b",
    "numbers": b"study: 123\nreport: {path: 1}",
    "keys that are numbers": b"1: 2\n2: {3: 4}",
    "keys that are lists": b"? [a]\n: b",
    "deep": b"[" * 600,
    "itself": b"a: &a [*a]",
    "a date": b"study: 2020-01-01\nseed: 2020-01-01",
    "bytes": b"study: !!binary aGVsbG8=",
    "null": b"study: null\ndataset: null",
    "NUL": b'study: "a\\0b"',
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_configuration(case, ended, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(FILES[case])
    for command in ("run", "status", "verify", "plan", "report", "figures", "maps", "encode", "roi", "serve"):
        assert str(file) in ended(command, file)


@pytest.mark.parametrize(
    "name", ["none.yaml", ".", "a" * 300, "a/" * 3000, "\0" * 0 + "demo.yaml", "", "s3://a/b.yaml"]
)
def test_configurations_that_are_not_there(name, ended):
    assert ended("run", name)


def test_a_byte_order_mark_is_no_part_of_a_configuration(settings, tmp_path, ended):
    file = tmp_path / "c.yaml"
    file.write_text("\ufeff" + yaml.safe_dump(settings(tmp_path)), encoding="utf-8")
    assert "no study there" in ended("verify", file)


ARRAYS = {
    "one axis": lambda n: np.ones(n),
    "three axes": lambda n: np.ones((1, 1, n)),
    "no axis": lambda n: np.array(1.0),
    "other voxels": lambda n: np.ones((2, n + 1)),
    "turned": lambda n: np.ones((n, 2)),
    "text": lambda n: np.full((2, n), "1"),
    "complex": lambda n: np.ones((2, n), complex),
    "truths": lambda n: np.ones((2, n), bool),
    "objects": lambda n: np.full((2, n), None),
    "records": lambda n: np.zeros((2, n), [("a", float)]),
    "dates": lambda n: np.zeros((2, n), "M8[s]"),
    "too large for float32": lambda n: np.full((2, n), 1e300),
    "too large when z-scored": lambda n: np.full((2, n), 3e38),
    "not finite": lambda n: np.full((2, n), np.nan),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_patterns_and_masks(case, ended, config, undisturbed, tmp_path):
    from bdflow.stores import Study

    voxels = Study(undisturbed).store("betas/subj01").sizes["voxel"]
    np.save(tmp_path / "a.npy", ARRAYS[case](voxels), allow_pickle=True)
    command = ["decode", config, "a.npy", "--subject", "subj01", "--out", "out.zarr"]
    assert ended(*command)
    assert not list(tmp_path.glob("out*"))
    if case != "one axis":  # which a mask has
        assert "a.npy" in ended("roi", config, "--mask", "a.npy", "--subject", "subj01")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff", b"\x1f\x8b\x08 no gzip"]
)
@pytest.mark.parametrize("name", ["a.npy", "a.nii.gz", "a.nii", "a.txt", "été.nii.gz"])
def test_files_that_are_no_patterns_or_masks(content, name, ended, config, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert name in ended("decode", config, name, "--subject", "subj01", "--out", "out.zarr")
    assert name in ended("roi", config, "--mask", name, "--subject", "subj01")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "words",
    [
        ["--subject", "subj01,subj02"], ["--subject", "é"], ["--subject", ""], ["--subject", "subj09"], [],
        ["--subject", "subj01", "--standardise", "other"], ["--subject", "subj01", "--standardise", "held_out"],
    ],
)  # fmt: skip
def test_decoding_for_whom_and_how(words, ended, config, undisturbed, tmp_path):
    from bdflow.stores import Study

    voxels = Study(undisturbed).store("betas/subj01").sizes["voxel"]
    np.save(tmp_path / "a.npy", np.ones((1, voxels)))
    assert ended("decode", config, "a.npy", "--out", "out.zarr", *words)
    assert not list(tmp_path.glob("out*"))


REGIONS = [
    "Früh",
    "",
    " ",
    "été",
    "V1 |",
    "(V1",
    "V1)",
    "(" * 3000 + "V1",
    "'V1",
    '"V1',
    "V1 V2",
    "bodİes",
    "\U0001f600",
]
REGIONS += [
    "random 0",
    "random " + "9" * 5000,
    "random 1000000",
    "random ١٠",
    "- ",
    "V1 & (V1 - V2)",
    "V1 \\ V1",
    "\udce9",
]


@pytest.mark.parametrize("region", REGIONS, ids=lambda text: ascii(text)[1:30])
def test_regions(region, ended, config, tmp_path, undisturbed):
    assert "region" in ended("roi", config, "--region", region)
    shutil.copytree(undisturbed, tmp_path / "own.zarr")
    command = ["run", config, "--only", "regress", "--remake", "--set", f"study={tmp_path / 'own.zarr'}"]
    assert "egion" in ended(*command, "--set", f"ridge.regions={region}")


def test_regions_that_cannot_be_read_or_have_no_voxel_remove_no_store(ended, settings, undisturbed, tmp_path):
    study = tmp_path / "own.zarr"
    shutil.copytree(undisturbed, study)
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, study=str(study))), encoding="utf-8")
    before = snapshot(study)
    for region in ("V1 |", "(V1", "V1 V2", "nowhere", "V1 & (V1 - V2)", "V1 \\ V1", "random 1000000", "V1 - V2"):
        ended("run", file, "--only", "regress", "--remake", "--set", f"ridge.regions={region}")
    assert snapshot(study) == before


@pytest.mark.parametrize(
    "words",
    [
        ["roi", "CONFIG", "--mask", "none.nii.gz"],
        ["roi", "CONFIG", "--mask", "none.nii.gz", "--subject", "subj01,subj02"],
        ["roi", "CONFIG", "--mask", "none.nii.gz", "--subject", "subj01"],
        ["roi", "CONFIG", "--mask", ".", "--subject", "subj01"],
        ["run", "CONFIG", "--subjects", "é"],
        ["run", "CONFIG", "--until", "é"],
        ["plan", "CONFIG", "--figures", "none.json"],
        ["plan", "CONFIG", "--figures", "."],
        ["run", "CONFIG", "--only", "roi", "--set", "roi.sets={a: [V1 |]}"],
        ["serve", "CONFIG", "--max-body", "é"],
        ["serve", "CONFIG", "--host", "é"],
        ["serve", "CONFIG", "--port", "é"],
        ["serve", "CONFIG", "--token", "é" * 20],
        ["serve", "CONFIG", "--max-items", "0"],
        ["fetch", "nsd", "CONFIG", "--from", "nowhere"],
        ["fetch", "nsd", "CONFIG", "--from", "ftp://a/b"],
        ["fetch", "nsd", "CONFIG", "--from", "memory://empty/nsd", "--list"],
        ["simulate", "x", "--subjects", "é"],
        ["simulate", "x", "--subjects", "subj99"],
        ["simulate", "x", "--shared", "-1"],
        ["simulate", "."],
        ["simulate", "config.yaml"],
        ["simulate", "config.yaml/x"],
        ["demo", "--root", "config.yaml"],
        ["demo", "--root", "config.yaml/x"],
        ["demo", "--set", "study=[", "--set", "seed=[", "--root", "x"],
        ["bundle", "info", "."],
        ["bundle", "init", "none"],
        ["bundle", "init", "."],
        ["figures", "CONFIG", "--out", "config.yaml"],
        ["maps", "CONFIG", "--out", "config.yaml"],
        ["maps", "CONFIG", "--out", "a" * 300],
        ["report", "CONFIG", "--set", "report.path=config.yaml"],
        ["report", "CONFIG", "--set", "report.path=config.yaml/x"],
        ["report", "CONFIG", "--set", "report.path=" + "a" * 300],
        ["run", "CONFIG", "--set", "study=x.zarr", "--set", "dataset.root=config.yaml"],
        ["run", "CONFIG", "--set", "study=config.yaml"],
        ["run", "CONFIG", "--set", "study=config.yaml/x"],
        ["run", "CONFIG", "--set", "study=" + "a" * 300],
        ["run", "CONFIG", "--set", "study=."],
        ["no such command"],
        [],
    ],
    ids=lambda words: " ".join(words)[:60],
)  # fmt: skip
def test_arguments(words, ended, config):
    if not words:
        words = ["--nothing"]
    assert ended(*[str(config) if word == "CONFIG" else word for word in words])
    assert config.read_text(encoding="utf-8")


FIGURES = [
    '{"kind": "diffusion"}',
    '{"kind": "diffusion", "rows": [1]}',
    "[1]",
    "{",
    "[" * 100_000,
    '{"sgemm (FLOP/s)": 1}',
]
FIGURES += [
    '{"sgemm (FLOP/s)": "a", "cores": 2, "disk write, disk read (B/s)": [1, 2], "fraction of sgemm": 1,'
    ' "plain store reading (B/s)": 1}',
    '{"sgemm (FLOP/s)": -1, "cores": 2, "disk write, disk read (B/s)": [1, 2], "fraction of sgemm": 1,'
    ' "plain store reading (B/s)": 1}',
    '{"sgemm (FLOP/s)": NaN, "cores": 0, "disk write, disk read (B/s)": [1], "fraction of sgemm": "1",'
    ' "plain store reading (B/s)": null}',
]


@pytest.mark.parametrize("text", FIGURES, ids=range(len(FIGURES)))
def test_figures_of_no_benchmark(text, ended, tmp_path):
    (tmp_path / "f.json").write_text(text, encoding="utf-8")
    assert "f.json" in ended("plan", "brain_diffuser", "--set", "dataset.root=none", "--figures", "f.json")


SPLITS = ["1 10\n2 20", "1 2 3", "a", "", "3\n3", "1.5", "-1", "99999999"]


@pytest.mark.parametrize("text", SPLITS)
def test_split_files(text, ended, settings, tmp_path):
    (tmp_path / "split.txt").write_text(text, encoding="utf-8")
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path)), encoding="utf-8")
    assert "split.txt" in ended("run", file, "--only", "ingest", "--set", "dataset.split=split.txt")
