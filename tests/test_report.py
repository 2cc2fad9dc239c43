"""The report of a small synthetic study: everything is there, true to the stores, escaped, and replaced as a whole."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

from bdflow import published, report, report_tables
from bdflow.config import SPACES, Config, parse
from bdflow.errors import InputError
from bdflow.stage import Context
from stores import NotReady, Provenance, StoreSpec, Study, catalog, text
from stores.journal import Journal

SUBJECTS, VARIANTS, METRICS = ("subj01", "subj02"), ("full", "no_vdvae"), ("PixCorr", "SSIM (paper)")
TEST, TRAIN = np.array([61, 7, 19, 23, 3, 40]), np.array([100, 101, 102])
EVIL = '<script>alert("x")</script> & friends'
PIXELS = 64


def configuration(tmp_path: Path, **sections: object) -> Config:
    return parse(
        {
            "study": str(tmp_path / "study.zarr"),
            "subjects": list(SUBJECTS),
            "nsd": {"root": str(tmp_path / "nsd")},
            "reconstruct": {"variants": list(VARIANTS)},
            "report": {"path": str(tmp_path / "report"), "thumbnail": PIXELS},
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
        given = {a.name: values[a.name] for a in spec.arrays if a.role != "data"}
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
            return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in coarse])
        return self.rng.normal(size=shape).astype(dtype)


def build(tmp_path: Path, **sections: object) -> Context:
    config = configuration(tmp_path, **sections)
    study = Study(config.study)
    study.create("test", {})
    make = Builder(study)
    ids = np.concatenate([TEST, TRAIN])
    split = text(["test"] * len(TEST) + ["train"] * len(TRAIN))
    captions = np.array([[f"caption {i}", ""] for i in ids], dtype=np.dtypes.StringDType())
    captions[1] = ["", EVIL]
    spec, pictures = catalog.stimuli(4), {"y": 100, "x": 100, "rgb": 3}
    dims = {dim for array in spec.arrays for dim in array.dims}
    sizes = {"stimulus": len(ids), **pictures, **{dim: 2 for dim in dims if dim.startswith("caption")}}
    make.add("stimuli", spec, sizes, nsd_id=ids, split=split, owner=text(["shared"] * len(ids)), caption=captions)
    for subject in SUBJECTS:
        voxels = np.arange(8)
        make.add(
            f"betas/{subject}",
            catalog.betas(10),
            {"trial": 20, "voxel": 8, "roi": 1},
            **dict.fromkeys("ijk", voxels),
            nsd_id=np.resize(ids, 20),
            session=np.ones(20),
            roi=text(["nsdgeneral"]),
            roi_label=np.ones((1, 8)),
            ncsnr=np.linspace(0.2, 1.6, 8),
        )
        make.add(
            f"responses/{subject}",
            catalog.responses(4),
            {"stimulus": len(ids), "voxel": 8},
            nsd_id=ids,
            split=split,
            repeats=np.array([3] * len(TEST) + [1] * len(TRAIN)),
            valid=np.array([1, 1, 1, 1, 1, 1, 0, 1], "u1"),
        )
        for space in SPACES:
            shape = (12,) if space == "vdvae" else (2, 6)
            make.add(
                f"predictions/{subject}/{space}",
                catalog.predictions(shape, 6),
                {"stimulus": len(TEST), **dict(zip(catalog.space_dims(shape), shape, strict=True))},
                nsd_id=TEST,
            )
        make.add(
            f"guesses/{subject}", catalog.guesses(4), {"stimulus": len(TEST), "y": 32, "x": 32, "rgb": 3}, nsd_id=TEST
        )
        for variant in VARIANTS:
            path = f"reconstructions/{subject}/{variant}"
            make.add(path, catalog.reconstructions(4), {"stimulus": len(TEST), **pictures}, nsd_id=TEST)
        make.add(
            f"metrics/{subject}",
            catalog.metrics(4),
            {"variant": len(VARIANTS), "metric": len(METRICS), "stimulus": len(TEST)},
            variant=text(VARIANTS),
            metric=text(METRICS),
            nsd_id=TEST,
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
        self.articles: dict[int, list[dict[str, str]]] = {}
        self.text, self.here, self.open = "", "", 0
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append((tag, found))
        self.here = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "article":
            self.open = int(found["data-nsd"])
            self.articles[self.open] = []
        elif tag == "img":
            self.articles[self.open].append(found)

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
    return report.write(context)


def small(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((min(PIXELS, len(image)),) * 2, Image.Resampling.LANCZOS))


def test_every_stimulus_shows_the_pictures_of_the_stores(context: Context, page: Path) -> None:
    assert page == context.config.report.path / "index.html"
    found = Read(page).articles
    assert sorted(found) == sorted(TEST.tolist())
    rows = {int(i): row for row, i in enumerate(context.study.store("stimuli").read("nsd_id"))}
    paths = [p for s in SUBJECTS for p in (f"guesses/{s}", *(f"reconstructions/{s}/{v}" for v in VARIANTS))]
    for nsd_id, images in found.items():
        assert len(images) == 1 + len(paths)
        for path, shown in zip(["stimuli", *paths], images, strict=True):
            file = page.parent / unquote(shown["src"])
            assert f"nsd{nsd_id:05d}" in file.name
            assert path == "stimuli" or path.split("/")[1] in file.parts
            store = context.study.store(path)
            row = rows[nsd_id]
            assert store.read("nsd_id")[row] == nsd_id
            truth = small(store.read("image", {"stimulus": slice(row, row + 1)})[0])
            thumbnail = np.asarray(Image.open(file).convert("RGB"))
            assert thumbnail.shape == truth.shape
            assert np.abs(thumbnail.astype(float) - truth).mean() < 6
            assert (shown["width"], shown["height"], shown["loading"]) == (str(PIXELS), str(PIXELS), "lazy")
            assert shown["alt"]


def test_the_gallery_is_ordered_by_mean_pixcorr(context: Context, page: Path) -> None:
    stores = [context.study.store(f"metrics/{subject}").read("value") for subject in SUBJECTS]
    mean = np.mean([store[:, 0] for store in stores], axis=(0, 1))
    assert list(Read(page).articles) == TEST[np.argsort(-mean)].tolist()
    articles = {int(a["data-nsd"]): float(a["data-score"]) for tag, a in Read(page).tags if tag == "article"}
    assert [articles[i] for i in TEST.tolist()] == pytest.approx(mean, rel=1e-6)


def test_scores_are_the_means_of_the_stores_beside_the_published_ones(context: Context, page: Path) -> None:
    rows = Read(page).rows
    expected, means = [], {}
    for v, _ in enumerate(VARIANTS):
        for subject in SUBJECTS:
            means[v, subject] = context.study.store(f"metrics/{subject}").read("value")[v].mean(-1)
            expected.append((subject, means[v, subject]))
        expected.append(("average of 2 subjects", np.mean([means[v, s] for s in SUBJECTS], axis=0)))
    labels = [label for label, _ in expected]
    found = [row for row in rows if row[0] in labels and len(row) == 2 + len(METRICS)]
    assert [row[0] for row in found] == labels
    for row, (_, values) in zip(found, expected, strict=True):
        assert [float(cell.replace("−", "-")) for cell in row[1:3]] == pytest.approx(values, abs=5.1e-4)
    assert ["Brain-Diffuser (Table 1)", "0.254", "0.356", "982"] in rows
    assert ["Gu et al. 2022 (Table 1)", "0.150", "0.325", "982"] in rows
    assert ["Brain-Diffuser, subj01 (Table 2)", "0.143", "0.302", "982"] in rows
    assert not any("Takagi" in row[0] for row in rows if row)
    assert "not comparable with this run" in Read(page).text


def test_a_run_of_real_networks_carries_no_notice(context: Context) -> None:
    stores = {path: context.study.store(path) for path in context.expected}
    assert "not comparable" not in report_tables.score_table(context, stores, comparable=True).note


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
    assert row[4] == f"{np.mean(r > report_tables.chance_r(len(TEST))):.0%}"
    ncsnr = np.delete(np.linspace(0.2, 1.6, 8), 6)
    ceiling = np.median(100 * ncsnr**2 / (ncsnr**2 + 1 / 3))
    assert ["subj02", "7", "1", "20", "3", "6", "3.00", f"{ceiling:.1f} %"] in rows


def test_chance_correlation_is_exceeded_in_five_percent() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20_000, 12))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    r = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    assert np.mean(r > report_tables.chance_r(12)) == pytest.approx(0.05, abs=0.005)
    assert np.isnan(report_tables.chance_r(2))


def test_text_is_escaped_and_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    source, read = page.read_text(), Read(page)
    assert source.count("<script") == 1
    assert EVIL in read.text
    for _, attrs in read.tags:
        for name in ("src", "href", "srcset", "data", "poster"):
            assert not re.match(r"\s*(\w+:|//)", attrs.get(name, "")), attrs
    assert "http" not in source
    assert "url(" not in source
    assert "@import" not in source


def test_how_it_was_made(context: Context, page: Path) -> None:
    read = Read(page)
    row = next(row for row in read.rows if row[:2] == ["reconstruct", "guesses"])
    assert row[2:] == ["ray: 2 workers × 1 thread × 1 GPU", "3 batches", "4.0 s", "7.0 s", "0.75 /s", "0"]
    for path, provenance in context.expected.items():
        assert [path, "stage", provenance.fingerprint] in read.rows
    assert "Time, over 2 runs" in read.text
    configuration = yaml.safe_dump(context.config.model_dump(mode="json"), sort_keys=False)
    assert configuration in read.text
    files = list(page.parent.rglob("*.webp"))
    assert f"{len(files)} pictures, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB" in read.text
    stated = re.search(r"This page weighs (\d+) KiB", read.text)
    assert stated
    assert float(stated[1]) == pytest.approx(page.stat().st_size / 2**10, abs=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_written_twice_it_is_the_same_and_leaves_nothing_beside(context: Context, page: Path) -> None:
    before = contents(page.parent)
    (page.parent / "images" / "left over.webp").write_bytes(b"")
    assert report.write(context) == page
    assert contents(page.parent) == before
    assert sorted(p.name for p in page.parent.parent.iterdir()) == ["report", "study.zarr"]


def test_a_report_that_fails_leaves_the_old_one(context: Context, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(page.parent)

    def fail(*_: object) -> bytes:
        raise RuntimeError("killed")

    monkeypatch.setattr(report, "thumbnail", fail)
    with pytest.raises(RuntimeError, match="killed"):
        report.write(context)
    assert contents(page.parent) == before
    assert not (page.parent.parent / "report.partial").exists()


def test_leftovers_of_a_killed_run_are_cleared(context: Context, page: Path) -> None:
    before = contents(page.parent)
    partial = page.parent.with_name("report.partial")
    partial.mkdir()
    (partial / report.MARKER).write_text("{}")
    page.parent.rename(page.parent.with_name("report.replaced"))
    report.write(context)
    assert contents(page.parent) == before
    assert sorted(p.name for p in page.parent.parent.iterdir()) == ["report", "study.zarr"]


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    context = build(tmp_path)
    folder = context.config.report.path
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a report of bdflow"):
        report.write(context)
    assert contents(folder) == {"thesis.txt": b"mine"}
    (folder / "thesis.txt").unlink()
    assert report.write(context).is_file()


def test_a_study_inside_the_report_is_refused(tmp_path: Path) -> None:
    context = build(tmp_path, study=str(tmp_path / "report" / "study.zarr"))
    (tmp_path / "report" / report.MARKER).write_text("{}")
    with pytest.raises(InputError, match="inside `report"):
        report.write(context)
    assert context.study.exists


def test_only_the_subjects_asked_for(tmp_path: Path) -> None:
    whole = build(tmp_path)
    page = report.write(Context(whole.config, whole.study, whole.expected, ("subj02",)))
    body = page.read_text().partition("<pre>")[0]
    assert "subj02" in body
    assert "subj01<" not in body
    assert not (page.parent / "images" / "subj01").exists()


def test_a_store_that_is_not_ready_is_named(tmp_path: Path) -> None:
    context = build(tmp_path)
    context.study.store("guesses/subj02").forget(0)
    with pytest.raises(NotReady, match="guesses/subj02"):
        report.write(context)
    assert not context.config.report.path.exists()


def test_a_flat_picture_has_no_score_and_comes_last(tmp_path: Path) -> None:
    context = build(tmp_path)
    for subject in SUBJECTS:
        store = context.study.store(f"metrics/{subject}")
        value = store.read("value")
        value[:, 0, 2] = np.nan
        store.arrays["value"][...] = value
    read = Read(report.write(context))
    assert list(read.articles)[-1] == TEST[2]
    assert "4 scores are undefined" in read.text
    assert not any("nan" in cell for row in read.rows for cell in row)


def test_thumbnails_never_grow() -> None:
    image = Image.open(BytesIO(report.thumbnail(np.zeros((20, 40, 3), np.uint8), 32)))
    assert image.size == (32, 16)
    assert Image.open(BytesIO(report.thumbnail(np.zeros((20, 20, 3), np.uint8), 32))).size == (20, 20)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (12.4, "12 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert report_tables.duration(seconds) == words
