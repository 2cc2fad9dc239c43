"""Pictures as files: what the stores hold, byte for byte, found by stimulus; digests that hold; whole or not at all."""

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import bdflow
from bdflow import api
from bdflow.config import Config, parse
from bdflow.export import pictures
from bdflow.export.pictures import file_name
from bdflow.stores import NotReady, Store
from tests.conftest import SUBJECTS, painter
from tests.support.parts import whole

METRICS = ("PixCorr", "SSIM", "CLIP (bundle)")


@pytest.fixture(scope="module")
def made(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    root = tmp_path_factory.mktemp("export")
    options = {"variants": ["full", "only_vdvae"], "controls": ["prior"], "pictures": 2}
    config = parse(settings(root, painters=painter(**options), evaluate={"metrics": list(METRICS)}))
    with pytest.raises(NotReady):
        api.export_pictures(config, root / "early")
    assert not (root / "early").exists()
    api.run(config)
    return config, api.export_pictures(config, root / "out", photos=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_picture_is_what_its_store_holds(made: tuple[Config, Path]) -> None:
    config, folder = made
    found, stimuli = rows(folder), whole(config.study, "stimuli")
    assert {row["file"] for row in found} == {str(f.relative_to(folder)) for f in (folder / "pictures").rglob("*.png")}
    kinds = {(row["subject"], row["kind"]) for row in found if row["kind"] != "photo"}
    assert kinds == {(s, kind) for s in SUBJECTS for kind in ("guess", "full", "only_vdvae", "prior")}
    for row in found:
        image, stimulus = np.asarray(Image.open(folder / row["file"])), np.array([row["stimulus_id"]])
        if row["kind"] == "photo":
            expected = stimuli.read("image")[stimuli.rows("stimulus_id", stimulus)[0]]
        else:
            of = "guesses" if row["kind"] == "guess" else "reconstructions"
            name = "" if row["kind"] == "guess" else f"/{row['kind']}"
            store = Store(config.study, f"{of}/brain_diffuser/{row['subject']}{name}")
            expected = store.read("image")[store.rows("stimulus_id", stimulus)[0]]
            expected = expected[int(row["picture"])] if expected.ndim == 4 else expected
        np.testing.assert_array_equal(image, expected)
    assert sum(row["kind"] == "full" for row in found) == 2 * 6 * len(SUBJECTS)
    assert sum(row["kind"] == "photo" for row in found) == 6


def test_digests_and_tables(made: tuple[Config, Path]) -> None:
    config, folder = made
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    every = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert manifest["sha256"].keys() == every - {"manifest.json"}
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert parse(manifest["configuration"]) == config
    assert {"tables/scores.csv", "tables/images.csv", "images.csv"} <= every
    report = config.report.path / "tables"
    assert (folder / "tables/scores.csv").read_bytes() == (report / "scores.csv").read_bytes()
    assert f"metrics/brain_diffuser/{SUBJECTS[0]}" in manifest["stores"]


def test_what_is_there_stays(made: tuple[Config, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(api.InputError, match="something there"):
        api.export_pictures(made[0], tmp_path / "mine")


def test_an_export_that_fails_leaves_nothing(
    made: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: object) -> str:
        raise RuntimeError("no table")

    monkeypatch.setattr(pictures, "_table", broken)
    with pytest.raises(RuntimeError):
        api.export_pictures(made[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def score(*given: Any, **options: Any) -> Any:
    return bdflow.score(*given, METRICS, bundle="tiny", batch_size=4, **options)


def test_an_export_is_scored_as_the_study_was(made: tuple[Config, Path]) -> None:
    """Every score of every variant and control, to the last digit that the store keeps; guesses too."""
    config, folder = made
    found = score(folder, None)
    kinds = ("guess", "full", "only_vdvae", "prior")
    assert set(found.sets) == {f"brain_diffuser/{kind}/{subject}" for kind in kinds for subject in SUBJECTS}
    for subject in SUBJECTS:
        store = Store(config.study, f"metrics/brain_diffuser/{subject}")
        ids, names = store.read("stimulus_id").tolist(), store.read("metric").tolist()
        for variant, expected in zip(store.read("variant").tolist(), store.read("value"), strict=True):
            one = found.sets[f"brain_diffuser/{variant}/{subject}"]
            assert (list(one.stimuli), one.pictures) == (ids, 2)
            assert list(one.values) == names
            for metric, values in zip(names, expected, strict=True):
                np.testing.assert_array_equal(one.values[metric].astype(np.float32), values, err_msg=metric)


@pytest.mark.parametrize(
    ("chosen", "option", "words"),
    [
        ("best", "all", "the study scored the best by a predicted space, here all count"),
        ("best", "first", "the study scored the best by a predicted space, here the first count"),
        ("first", "all", "the study scored the first, here all count: .*--select first makes them so"),
        ("all", "first", "the study scored all, here the first count"),
        ("first", "first", None),
        ("all", "all", None),
    ],
)
def test_other_pictures_than_the_study_scored_are_told(
    made: tuple[Config, Path], tmp_path: Path, chosen: str, option: str, words: str | None
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(made[1], folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["configuration"]["painters"]["brain_diffuser"]["select"] = chosen
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = bdflow.score(folder, None, ("PixCorr",), select=option)
    told = [notice for notice in found.notices if "not the study's scores" in notice]
    assert len(told) == (words is not None)
    if words is not None:
        assert re.search(words, told[0])


def test_photos_may_lie_apart_and_stores_be_scored_themselves(made: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = made
    expected = score(folder, folder)
    apart = score(folder / "pictures/photo", folder)
    first = f"brain_diffuser/full/{SUBJECTS[0]}"
    stores = score(config.study / "stimuli/shared", config.study / f"reconstructions/{first.replace('full/', '')}/full")
    for metric, values in expected.sets[first].values.items():
        np.testing.assert_array_equal(apart.sets[first].values[metric], values)
        np.testing.assert_array_equal(stores.values[metric], values)


def test_a_store_that_is_damaged_or_not_finished_is_not_scored(made: tuple[Config, Path], tmp_path: Path) -> None:
    study = tmp_path / "study.zarr"
    shutil.copytree(made[0].study, study)
    key = f"reconstructions/brain_diffuser/{SUBJECTS[0]}/full"
    chunk = next(file for file in sorted((study / key / "image/c").rglob("*")) if file.is_file())
    chunk.unlink()
    with pytest.raises(bdflow.CorruptChunk, match="no file"):
        score(study / "stimuli/shared", study / key)
    shutil.copytree(made[0].study / key, study / "half")
    metadata = json.loads((study / "half/zarr.json").read_text(encoding="utf-8"))
    metadata["attributes"]["sealed"] = False
    (study / "half/zarr.json").write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(bdflow.InputError, match="not finished"):
        score(study / "stimuli/shared", study / "half")


@pytest.mark.parametrize("change", ["picture", "table", "row", "absent", "added", "manifest"])
def test_an_export_that_was_changed_is_not_scored(made: tuple[Config, Path], tmp_path: Path, change: str) -> None:
    folder = tmp_path / "out"
    shutil.copytree(made[1], folder)
    file, table = folder / rows(folder)[0]["file"], folder / "images.csv"
    match change:
        case "picture":
            Image.new("RGB", (64, 64)).save(file)
        case "table":
            table.write_text(table.read_text(encoding="utf-8").replace("subj01", "subj09"), encoding="utf-8")
        case "row":
            text = table.read_text(encoding="utf-8").replace("pictures/", "../pictures/")
            table.write_text(text, encoding="utf-8")
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            manifest["sha256"]["images.csv"] = hashlib.sha256(text.encode()).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        case "absent":
            file.unlink()
        case "added":
            shutil.copy(file, file.with_name("new.png"))
        case "manifest":
            (folder / "manifest.json").write_text("{}", encoding="utf-8")
    words = {
        "picture": "another SHA-256", "table": "another SHA-256", "row": "outside the folder", "absent": "no pictures/",
        "added": "1 picture that images.csv does not name", "manifest": "cannot be read",
    }  # fmt: skip
    with pytest.raises(bdflow.InputError, match=words[change]):
        bdflow.score(folder, folder, "PixCorr")


@given(st.lists(st.text(min_size=1, max_size=300), max_size=12, unique=True))
def test_names_of_files_are_different_and_plain(ids):
    names = [file_name(stimulus) for stimulus in ids]
    assert len({name.casefold() for name in names}) == len(ids)
    for name in names:
        assert name.isascii()
        assert 0 < len(name) < 200
        assert not set(name) & set('/\\:*?"<>|\n\0')
        assert name not in (".", "..")
        assert not name.startswith((".", " "))


def test_plain_names_are_themselves():
    assert file_name("00042") == "00042"
    assert file_name("shared_12rep_things+_walrus.jpg") == "shared_12rep_things+_walrus.jpg"
    assert file_name("a/b") == "a%2Fb"[:3] + "2f" + "b" or file_name("a/b").startswith("a%2Fb-")
