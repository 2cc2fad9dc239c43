"""The report of a small synthetic study: everything is there, true to the stores, escaped, and replaced as a whole."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bdflow.config import Config, parse
from bdflow.datasets.contract import Encoding
from bdflow.errors import InputError
from bdflow.metrics import published, statistics
from bdflow.models.weights.bundle import open_bundle
from bdflow.report import decoding, making, plots, tables, writer
from bdflow.report.scores import Scores, ranks
from bdflow.stores import ArraySpec, NotReady, Provenance, StoreSpec, Study, text
from bdflow.stores.journal import Journal
from bdflow.study import catalog, picture_catalog, score_catalog
from bdflow.study.coordinates import of_latents
from bdflow.study.in_effect import settings_in_effect
from bdflow.study.stage import Context
from tests.conftest import SPACES, painter, spaces

SUBJECTS, VARIANTS, METRICS = ("subj01", "subj02"), ("full", "no_vdvae"), ("PixCorr", "SSIM (paper)", "SwAV")
WHY = "no weights: none were found"
TEST, TRAIN = np.array(["00061", "00007", "00019", "00023", "00003", "00040"]), np.array(["00100", "00101", "00102"])
EVIL = '<script>alert("x")</script> & friends'
PIXELS = 64
SIDE = 100


def configuration(tmp_path: Path, **sections: object) -> Config:
    return parse(
        {
            "study": str(tmp_path / "study.zarr"),
            "subjects": list(SUBJECTS),
            "dataset": {"root": str(tmp_path / "nsd")},
            "spaces": spaces(),
            "painters": painter(variants=list(VARIANTS)),
            "report": {"path": str(tmp_path / "report"), "thumbnail": PIXELS},
            "chunks": {"images": 4},
            **sections,
        }
    )


class Builder:
    """Declares, fills and seals stores with random values."""

    def __init__(self, study: Study, seed: int = 0) -> None:
        self.study, self.rng = study, np.random.default_rng(seed)
        self.expected: dict[str, Provenance] = {}

    def add(self, path: str, spec: StoreSpec, sizes: dict[str, int], **values: np.ndarray) -> None:
        provenance = self.expected[path] = Provenance("stage", {"path": path})
        given = {a.name: values[a.name] for a in spec.arrays if a.role != "data" and a.values is None}
        store = self.study.declare(path, spec, sizes, given, provenance)
        for partition in range(store.n_partitions):
            region = spec.region(sizes, partition)
            data = {}
            for array in spec.data:
                value = values.get(array.name)
                if value is None:
                    value = self.random(array.shape(sizes), array.dtype)
                data[array.name] = value[tuple(region.get(dim, slice(None)) for dim in array.dims)]
            store.write(partition, data)
        store.seal()

    def random(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if dtype == "u1":
            coarse = self.rng.integers(0, 256, (*shape[:-3], 4, 4, 3), dtype=np.uint8).reshape(-1, 4, 4, 3)
            size = (shape[-2], shape[-3])
            drawn = [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in coarse]
            return np.stack(drawn).reshape(shape)
        return self.rng.normal(size=shape).astype(dtype)


def build(tmp_path: Path, **sections: object) -> Context:
    config = configuration(tmp_path, **sections)
    study = Study(config.study)
    study.create("test", {})
    make = Builder(study)
    ids, per = np.concatenate([TEST, TRAIN]), config.chunks.images
    split = text(["test"] * len(TEST) + ["train"] * len(TRAIN))
    captions = np.array([[f"caption {int(i)}", ""] for i in ids], dtype=np.dtypes.StringDType())
    captions[1] = ["", EVIL]
    spec, pictures = catalog.stimuli(per), {"y": SIDE, "x": SIDE, "rgb": 3}
    dims = {dim for array in spec.arrays for dim in array.dims}
    sizes = {"stimulus_id": len(ids), **pictures, **{dim: 2 for dim in dims if dim.startswith("caption")}}
    make.add("stimuli/shared", spec, sizes, stimulus_id=ids, split=split, caption=captions)
    for subject in SUBJECTS:
        make.add(f"stimuli/{subject}", spec, sizes | {"stimulus_id": 0}, stimulus_id=ids[:0], split=split[:0])
    layers = open_bundle("tiny").layers
    spec, sizes = (
        catalog.targets((1988,), "f2", per, 600, of_latents(layers, ())),
        {"stimulus_id": len(ids), "feature": 1988},
    )
    make.add("targets/vdvae/shared", spec, sizes, stimulus_id=ids, split=split)
    for subject in SUBJECTS:
        voxels = np.arange(8)
        make.add(
            f"betas/{subject}",
            catalog.betas(10, Encoding("int16", "percent signal change", 300, cut_off=True)),
            {"trial": 20, "voxel": 8, "region": 1, "axis": 3, "world": 4, "index": 4, "code": 1},
            grid=np.full(3, 8),
            affine=np.eye(4),
            affine_form=np.zeros(1),
            **dict.fromkeys("ijk", voxels),
            stimulus_id=np.resize(ids, 20),
            session=text(["session01"] * 20),
            run=np.zeros(20),
            condition=text([""] * 20),
            region=text(["nsdgeneral/nsdgeneral"]),
            roi=np.ones((1, 8)),
            ncsnr=np.linspace(0.2, 1.6, 8),
            valid=np.ones((20, 8), "u1"),
            valid_voxels=np.array([0] + [8] * 19, "i4"),
        )
        make.add(
            f"responses/{subject}/averaged",
            catalog.responses(4, "percent signal change"),
            {"stimulus_id": len(ids), "voxel": 8},
            stimulus_id=ids,
            split=split,
            repeats=np.array([3] * len(TEST) + [1] * len(TRAIN)),
            trial=np.arange(len(ids)),
            valid=np.array([1, 1, 1, 1, 1, 1, 0, 1], "u1"),
            voxel_mean=np.array([0, 0, 0, 0, 0, 0, np.nan, 0], "f4"),
            ncsnr_repeats=np.full(8, np.nan, "f4"),
            missing_trials=np.array([1, 1, 1, 5, 1, 1, 11, 1], "i4"),  # one trial is lost in every voxel
            clipped_trials=np.array([0, 2, 0, 0, 0, 0, 0, 1], "i4"),
        )
        for space in SPACES:
            shape = {"vdvae": (1988,), "clip_vision": (5, 6), "clip_text": (2, 6)}[space]
            make.add(
                f"predictions/{subject}/{space}",
                catalog.predictions(shape, 600),
                {"stimulus_id": len(TEST), **dict(zip(catalog.space_dims(shape), shape, strict=True))},
                stimulus_id=TEST,
            )
        for name, settings in config.painters.items():
            make.add(
                f"guesses/{name}/{subject}",
                picture_catalog.guesses(per),
                {"stimulus_id": len(TEST), "y": 32, "x": 32, "rgb": 3},
                stimulus_id=TEST,
            )
            kinds = (*settings.variants, *settings.controls)
            for variant in kinds:
                path = f"reconstructions/{name}/{subject}/{variant}"
                sizes = {"stimulus_id": len(TEST), "picture": settings.pictures, **pictures}
                make.add(path, picture_catalog.reconstructions(per), sizes, stimulus_id=TEST)
            value = make.rng.normal(size=(len(kinds), len(METRICS), len(TEST))).astype("f4")
            value[:, 2] = np.nan
            make.add(
                f"metrics/{name}/{subject}",
                score_catalog.metrics(per),
                {"variant": len(kinds), "metric": len(METRICS), "stimulus_id": len(TEST)},
                variant=text(kinds),
                metric=text(METRICS),
                missing=text(["", "", WHY]),
                value=value,
                stimulus_id=TEST,
            )
    for seconds in ([1.0, 2.0], [4.0]):
        attrs = {"stage": "reconstruct", "unit": "batches", "wall_seconds": 2.0}
        where = {"executor": "ray", "workers": 2, "threads": 1, "gpus": 1.0}
        journal = Journal(study.path, "bdflow run")
        journal.name += f"-{len(seconds)}"
        journal.record("guesses", {**attrs, **where}, seconds, [1] * len(seconds), ["host"] * len(seconds))
    return Context(config, study, make.expected, SUBJECTS)


class Read(HTMLParser):
    """Tags with their attributes, tables as rows of text, and the text of the page outside scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text, self.here = "", ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append((tag, found))
        if tag == "wbr":  # where a name may be divided; the text goes on
            return
        self.here = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.here in ("td", "th"):
            self.rows[-1][-1] += data
        if self.here not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self.here = ""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(context: Context) -> Path:
    return writer.write(context)


def small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((min(PIXELS, len(image)),) * 2, Image.Resampling.LANCZOS))


def gallery(page: Path) -> dict[str, Any]:
    """What the gallery's script knows."""
    start, _, data = page.with_name("gallery.js").read_text().partition("const GALLERY = ")
    assert start == ""
    return json.loads(data.removesuffix(";\n"))


def test_every_stimulus_has_the_pictures_of_the_stores(context: Context, page: Path) -> None:
    assert page == context.config.report.path / "index.html"
    assert [stimulus_id for stimulus_id, _ in gallery(page)["stimuli"]] == sorted(TEST.tolist())
    place = {stimulus: number for number, stimulus in enumerate(sorted(TEST.tolist()))}
    stores = {f"guesses/brain_diffuser/{s}": (s, "-guess") for s in SUBJECTS}
    stores |= {f"reconstructions/brain_diffuser/{s}/{v}": (s, f"-{v}") for s in SUBJECTS for v in VARIANTS}
    for path, (folder, suffix) in {"stimuli/shared": ("shown", ""), **stores}.items():
        store = context.study.store(path)
        for row, stimulus_id in enumerate(store.read("stimulus_id").tolist()):
            if stimulus_id not in TEST:
                continue
            of_item = store.read("image", {"stimulus_id": slice(row, row + 1)})[0]
            truth = small(of_item[0] if "picture" in store.sizes else of_item)
            found = np.asarray(
                Image.open(page.parent / f"images/{folder}/{place[stimulus_id]:05d}{suffix}.webp").convert("RGB")
            )
            assert found.shape == truth.shape
            assert np.abs(found.astype(float) - truth).mean() < 6
    assert len(list(page.parent.rglob("*.webp"))) == (1 + len(stores)) * len(TEST)


def test_the_gallery_knows_every_score_and_caption(context: Context, page: Path) -> None:
    data = gallery(page)
    assert [s["name"] for s in data["subjects"]] == list(SUBJECTS)
    assert [v["name"] for v in data["variants"]] == list(VARIANTS)
    assert data["metrics"] == [{"name": "PixCorr", "lower": False}, {"name": "SSIM (paper)", "lower": False}]
    ids = [stimulus_id for stimulus_id, _ in data["stimuli"]]
    for s, subject in enumerate(SUBJECTS):
        store = context.study.store(f"metrics/brain_diffuser/{subject}")
        expected = store.read("value")[:, :2][..., store.rows("stimulus_id", np.array(ids))]
        np.testing.assert_allclose(data["scores"][s], expected, rtol=1e-3)
    captions = dict(data["stimuli"])
    assert captions["00061"] == ["caption 61"]
    assert captions["00007"] == [EVIL]


BOTH = {"one": painter(variants=list(VARIANTS))["brain_diffuser"], "two": painter(variants=["full"])["brain_diffuser"]}


def test_each_painter_has_its_guess_and_its_pictures(tmp_path: Path) -> None:
    context = build(tmp_path, painters=BOTH)
    page = writer.write(context)
    lines = gallery(page)["lines"]
    assert [line["name"] for line in lines] == ["one/guess", "one/full", "one/no_vdvae", "two/guess", "two/full"]
    assert [line["name"] for line in lines if line["usual"]] == ["one/guess", "one/full", "two/guess", "two/full"]
    for line in lines:
        for subject in SUBJECTS:
            parts = ["guesses", line["painter"], subject]
            if line["variant"] is not None:
                parts = ["reconstructions", line["painter"], subject, line["variant"]]
            store = context.study.store("/".join(parts))
            for stimulus_id, image in zip(store.read("stimulus_id").tolist(), store.read("image"), strict=True):
                number, name = sorted(TEST.tolist()).index(stimulus_id), line["name"].replace("/", "-")
                path = page.parent / f"images/{subject}/{number:05d}-{name}.webp"
                found = np.asarray(Image.open(path).convert("RGB"))
                truth = small(image if line["variant"] is None else image[0])
                assert np.abs(found.astype(float) - truth).mean() < 6
    assert len(list(page.parent.rglob("*.webp"))) == len(TEST) * (1 + len(SUBJECTS) * len(lines))


def test_two_systems_stand_side_by_side_in_table_1(tmp_path: Path) -> None:
    """And what is published of Brain-Diffuser's variants stands beside its own alone."""
    other = {**BOTH["two"], "kind": "stable_diffusion", "vision": None}
    context = build(tmp_path, painters={"one": BOTH["one"], "two": other})
    stores = {path: context.study.store(path) for path in context.expected}
    scores = Scores.read(stores, context.config, context.painted)
    first = tables.table_1(scores, comparable=True)
    assert [name for name, _ in first.groups] == ["one/full", "two/full", "published"]
    for name, rows in first.groups[:2]:
        painter, variant = name.split("/")
        store = context.study.store(f"metrics/{painter}/subj01")
        value = store.read("value")[store.read("variant").tolist().index(variant), 0].mean()
        cell = next(row.cells[1] for row in rows if row.cells[0] == "subj01")
        assert float(str(cell[0]).replace("−", "-")) == pytest.approx(value, abs=5.1e-4)
    second = dict(
        tables.table_2(scores, tables.ours(context.config), tables.described(context.config), comparable=True).groups
    )
    names = [row.cells[0] if isinstance(row.cells[0], str) else row.cells[0][0] for row in second["subj01"]]
    assert names == ["one/full", "published (Table 2)", "one/no_vdvae", "published (Table 2)", "two/full"]


def test_every_image_and_its_ranks_are_in_a_file(context: Context, page: Path) -> None:
    with (page.parent / "tables/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(SUBJECTS) * len(VARIANTS) * len(TEST)
    store = context.study.store("metrics/brain_diffuser/subj02")
    value = store.read("value")[1, 0]
    for row in rows:
        if (row["subject"], row["variant"]) == ("subj02", "no_vdvae"):
            at = store.read("stimulus_id").tolist().index(row["stimulus_id"])
            assert float(row["PixCorr"]) == pytest.approx(value[at], rel=1e-5)
            assert int(row["rank of PixCorr"]) == 1 + (value > value[at]).sum()
            assert row["SwAV"] == row["rank of SwAV"] == ""


def test_means_intervals_and_tests_are_those_of_the_statistics(context: Context, page: Path) -> None:
    order = np.argsort(TEST)
    values = {
        s: context.study.store(f"metrics/brain_diffuser/{s}").read("value")[..., order].astype(float) for s in SUBJECTS
    }
    values["average"] = np.mean(list(values.values()), axis=0)
    with (page.parent / "tables/scores.csv").open() as file:
        for row in csv.DictReader(file):
            v, m = VARIANTS.index(row["variant"]), METRICS.index(row["metric"])
            if row["metric"] == "SwAV":
                assert (row["mean"], row["missing"]) == ("", WHY)
                continue
            found = statistics.estimate(values[row["subject"]][v, m])
            assert [float(row[k]) for k in ("mean", "low", "high")] == pytest.approx(found[:3], rel=1e-4)
    with (page.parent / "tables/differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 2, "no_vdvae against full for two subjects and their average; subj01 against subj02"
    for row in rows:
        a, b = (
            values[row[f"{o}subject"]][VARIANTS.index(row[f"{o}variant"]), METRICS.index(row["metric"])]
            for o in ("", "other_")
        )
        found = statistics.difference(a, b)
        assert [float(row[k]) for k in ("mean_difference", "p")] == pytest.approx(found[:2], rel=1e-4)
    text = Read(page).text
    assert "scipy.stats.bootstrap" in text
    assert "scipy.stats.permutation_test" in text


def test_tables_hold_the_means_beside_the_published_ones(context: Context, page: Path) -> None:
    rows = Read(page).rows
    value = {s: context.study.store(f"metrics/brain_diffuser/{s}").read("value") for s in SUBJECTS}
    value["average of subjects"] = np.mean([value[s] for s in SUBJECTS], axis=0)
    for label, values in value.items():
        row = next(row for row in rows if row[0] == label and len(row) == 1 + len(METRICS))
        assert [float(cell.replace("−", "-")) for cell in row[1:3]] == pytest.approx(values[0, :2].mean(-1), abs=5.1e-4)
        assert row[3:] == [str(len(TEST))], "a metric without scores has no column"
    assert ["Brain-Diffuser", "0.254", "0.356", "982"] in rows
    assert ["Gu et al. 2022", "0.150", "0.325", "982"] in rows
    assert ["published (Table 2)", "0.143", "0.302", "982"] in rows
    assert not any("Takagi" in row[0] for row in rows if row)
    text = Read(page).text
    assert "not comparable with this run" in text
    assert text.count(f"SwAV is missing: {WHY}.") == 1
    assert "1 of 3 metrics are missing: SwAV" in text
    assert not any(cell == "missing" for row in rows for cell in row)


def test_a_run_of_real_networks_carries_no_notice(context: Context) -> None:
    scores = Scores.read(
        {path: context.study.store(path) for path in context.expected}, context.config, context.painted
    )
    for table in (
        tables.table_1,
        partial(tables.table_2, ours=tables.ours(context.config), words=tables.described(context.config)),
    ):
        assert "not comparable" not in table(scores, comparable=True).note
        assert "not comparable" in table(scores, comparable=False).note
    plots = tables.distributions(scores, comparable=True)
    assert ["published: 0.254" in plot.svg for plot in plots] == [True, False]


def test_another_protocol_has_no_published_score() -> None:
    assert published.score(published.TABLE_1["Brain-Diffuser"], "SSIM (paper)") == 0.356
    assert published.score(published.TABLE_1["Brain-Diffuser"], "SSIM (2d)") is None
    assert published.score(published.TABLE_1["Brain-Diffuser"], "unknown") is None


def test_decoding_and_brain_data(context: Context, page: Path) -> None:
    rows = Read(page).rows
    store = context.study.store("predictions/subj01/clip_text")
    r, r2 = store.read("pearson_r"), store.read("r2")
    row = next(row for row in rows if row[:2] == ["clip_text", "2 × 6"])
    medians = [float(cell.replace("−", "-")) for cell in row[2:4]]
    assert medians == pytest.approx([np.median(r), np.median(r2)], abs=5.1e-4)
    assert row[4] == f"{np.mean(r > decoding.chance_r(len(TEST))):.0%}"
    ncsnr = np.delete(np.linspace(0.2, 1.6, 8), 6)
    ceiling = np.median(100 * ncsnr**2 / (ncsnr**2 + 1 / 3))
    assert ["subj02", "7", "1", "20", "14", "3", "3", "6", "3.00", f"{ceiling:.1f} %"] in rows
    note = page.read_text()
    for words in (
        "subj02: 2 of 8 voxels have no measurement in some trials (14 of 152 betas); means leave these out.",
        "subj02: 1 trial has no measurement in any voxel and is left out",
        "subj02: 3 betas of 2 voxels are cut off at -109.2 or 109.2 percent signal change",
        "subj02: not decoded from: 1 of 8 voxels, which has no measurement of some stimulus.",
    ):
        assert words in note


def test_chance_correlation_is_exceeded_in_five_percent() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20_000, 12))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    r = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    assert np.mean(r > decoding.chance_r(12)) == pytest.approx(0.05, abs=0.005)
    assert np.isnan(decoding.chance_r(2))


def test_text_is_escaped_and_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    source, read, data = page.read_text(), Read(page), page.with_name("gallery.js").read_text()
    assert source.count("<script") == 2
    assert EVIL not in source
    assert not set("<>&") & set(data)
    for _, attrs in read.tags:
        for name in ("src", "href", "srcset", "data", "poster"):
            assert not re.match(r"\s*(\w+:|//)", attrs.get(name, "")), attrs
    assert "http" not in source + data
    assert "innerHTML" not in source
    assert "fetch(" not in source
    assert "url(" not in source
    assert "@import" not in source


def test_how_it_was_made(context: Context, page: Path) -> None:
    read = Read(page)
    row = next(row for row in read.rows if row[:2] == ["reconstruct", "guesses"])
    assert row[2:] == ["ray: 2 workers × 1 thread × 1 GPU", "3 batches", "4.0 s", "7.0 s", "0.75 /s", "0"]
    for path, provenance in context.expected.items():
        assert [path, "stage", provenance.fingerprint] in read.rows
    assert "Time, over 2 runs" in read.text
    configuration = yaml.safe_dump(settings_in_effect(context.config), sort_keys=False)
    assert configuration in read.text
    files = list(page.parent.rglob("*.webp"))
    assert f"{len(files):,} pictures, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB" in read.text
    stated = re.search(r"This page weighs (\d+) KiB", read.text)
    assert stated
    assert float(stated[1]) == pytest.approx(page.stat().st_size / 2**10, abs=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_written_twice_it_is_the_same_and_leaves_nothing_beside(context: Context, page: Path) -> None:
    before = contents(page.parent)
    (page.parent / "images" / "left over.webp").write_bytes(b"")
    assert writer.write(context) == page
    assert contents(page.parent) == before
    assert sorted(p.name for p in page.parent.parent.iterdir()) == ["report", "study.zarr"]


def test_a_report_that_fails_leaves_the_old_one(context: Context, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(page.parent)

    def fail(*_: object) -> bytes:
        raise RuntimeError("killed")

    monkeypatch.setattr(writer, "thumbnail", fail)
    with pytest.raises(RuntimeError, match="killed"):
        writer.write(context)
    assert contents(page.parent) == before
    assert not (page.parent.parent / "report.partial").exists()


def test_leftovers_of_a_killed_run_are_cleared(context: Context, page: Path) -> None:
    before = contents(page.parent)
    partial = page.parent.with_name("report.partial")
    partial.mkdir()
    (partial / writer.MARKER).write_text("{}")
    page.parent.rename(page.parent.with_name("report.replaced"))
    writer.write(context)
    assert contents(page.parent) == before
    assert sorted(p.name for p in page.parent.parent.iterdir()) == ["report", "study.zarr"]


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    context = build(tmp_path)
    folder = context.config.report.path
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a report of bdflow"):
        writer.write(context)
    assert contents(folder) == {"thesis.txt": b"mine"}
    (folder / "thesis.txt").unlink()
    assert writer.write(context).is_file()


def test_a_study_inside_the_report_is_refused(tmp_path: Path) -> None:
    context = build(tmp_path, study=str(tmp_path / "report" / "study.zarr"))
    (tmp_path / "report" / writer.MARKER).write_text("{}")
    with pytest.raises(InputError, match="inside `report"):
        writer.write(context)
    assert context.study.exists


def test_only_the_subjects_asked_for(tmp_path: Path) -> None:
    whole = build(tmp_path)
    page = writer.write(Context(whole.config, whole.study, whole.expected, ("subj02",)))
    body = page.read_text().partition("<pre>")[0]
    assert "subj02" in body
    assert "subj01<" not in body
    assert not (page.parent / "images" / "subj01").exists()


def test_a_store_that_is_not_ready_is_named(tmp_path: Path) -> None:
    context = build(tmp_path)
    context.study.store("guesses/brain_diffuser/subj02").forget(0)
    with pytest.raises(NotReady, match="guesses/brain_diffuser/subj02"):
        writer.write(context)
    assert not context.config.report.path.exists()


def test_a_flat_picture_has_no_score(tmp_path: Path) -> None:
    context = build(tmp_path)
    for subject in SUBJECTS:
        store = context.study.store(f"metrics/brain_diffuser/{subject}")
        value = store.read("value")
        value[:, 0, 2] = np.nan
        store.arrays["value"][...] = value
    page = writer.write(context)
    read = Read(page)
    at = [stimulus_id for stimulus_id, _ in gallery(page)["stimuli"]].index(TEST[2])
    assert gallery(page)["scores"][0][0][0][at] is None
    assert "4 scores are undefined" in read.text
    assert not any("nan" in cell for row in read.rows for cell in row)


def test_thumbnails_never_grow() -> None:
    image = Image.open(BytesIO(writer.thumbnail(np.zeros((20, 40, 3), np.uint8), 32)))
    assert image.size == (32, 16)
    assert Image.open(BytesIO(writer.thumbnail(np.zeros((20, 20, 3), np.uint8), 32))).size == (20, 20)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (12.4, "12 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert making.duration(seconds) == words


def test_ranks_share_the_better_place() -> None:
    found = ranks(np.array([[3.0, 1.0, np.nan, 3.0, 2.0]]))
    np.testing.assert_array_equal(found, [[1, 4, np.nan, 1, 3]])


@pytest.mark.parametrize(("low", "high"), [(0.31, 0.97), (-0.02, 0.013), (5, 5), (0, 1e6)])
def test_axes_are_round_and_hold_what_they_show(low: float, high: float) -> None:
    start, stop, ticks = plots.axis(low, high)
    assert start <= low
    assert high <= stop
    assert 3 <= len(ticks) <= 9
    assert np.ptp(np.diff(ticks)) < 1e-9 * max(1, high)


def test_layers_are_cut_where_the_bundle_says(context: Context) -> None:
    stores = {path: context.study.store(path) for path in context.expected}
    r = stores["predictions/subj01/vdvae"].read("pearson_r")
    plot = decoding.layer_plots(context, stores)[0]
    layers = open_bundle("tiny").layers
    stop = 0
    for number, (c, h, w) in enumerate(layers, 1):
        start, stop = stop, stop + c * h * w
        assert f"subj01, {number}: {r[start:stop].mean():.3f}" in plot.svg
    assert stop == len(r)


def test_curves_of_the_penalty_mark_the_one_chosen(context: Context, tmp_path: Path) -> None:
    make = Builder(Study(tmp_path / "study.zarr"))
    make.study.create("test", {})
    alphas = np.array([1e3, 1e4, 1e5])
    score = np.full((3, 12), np.nan, "f4")
    score[:, [2, 7]] = [[0.1, 0.2], [0.3, 0.4], [0.2, 0.1]]
    coordinate = ArraySpec("alpha", ("alpha",), "f8", "penalty", role="coordinate")
    spec = StoreSpec("Selection", (ArraySpec("score", ("alpha", "feature"), "f4", "R^2"), coordinate))
    make.add("selection/subj01/vdvae", spec, {"alpha": 3, "feature": 12}, alpha=alphas, score=score)
    arrays = (
        ArraySpec("hat_matrix", ("space",), "f4", "stands for it"),
        ArraySpec("space_alpha", ("space",), "f8", "penalty", role="given"),
        ArraySpec("space", ("space",), "str", "space", role="coordinate"),
    )
    chosen = np.array([1e4, np.nan, np.nan])
    make.add(
        "decoders/subj01/averaged", StoreSpec("Decoder", arrays), {"space": 3}, space=text(SPACES), space_alpha=chosen
    )
    stores = {path: make.study.store(path) for path in make.expected}
    (plot,) = decoding.alpha_plots(context, stores)
    for alpha, mean in (("1000", 0.15), ("10k", 0.35), ("100k", 0.15)):
        assert f"subj01, {alpha}: {mean:.3f}" in plot.svg
    assert plot.svg.count('class="mark"') == 1
