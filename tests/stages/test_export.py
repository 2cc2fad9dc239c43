"""Pictures as files: what the stores hold, byte for byte, found by stimulus; digests that hold; whole or not at all."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bdflow import api
from bdflow.config import Config, parse
from bdflow.export import pictures
from bdflow.export.pictures import file_name
from bdflow.stores import NotReady, Store
from tests.conftest import SUBJECTS, painter
from tests.support.parts import whole


@pytest.fixture(scope="module")
def made(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    root = tmp_path_factory.mktemp("export")
    options = {"variants": ["full", "only_vdvae"], "controls": ["prior"], "pictures": 2}
    config = parse(settings(root, painters=painter(**options), evaluate={"metrics": ["PixCorr"]}))
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
