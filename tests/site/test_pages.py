"""The task pages, as a reader follows them: every block runs, on a small study in the reader's folder."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from bdflow.cli.main import app
from bdflow.cluster.limits import idle_gpus
from bdflow.config import load, parse, recipes
from bdflow.models.painters import painter_kind
from bdflow.pipeline import Pipeline
from bdflow.runner import resources_of
from bdflow.stores import Store
from tests.conftest import SUBJECTS
from tests.support import pages

FOLLOWED = ("mindeye.md", "new_painter.md", "nilearn.md", "pandas.md", "quickstart.md", "sessions.md", "subjects.md")
ELSEWHERE = ("new_space.md", "own_data.md", "score.md", "slurm.md")


def test_every_block_is_of_a_kind_that_is_run():
    for page in FOLLOWED:
        found = pages.blocks(page)
        assert found, page
        assert pages.text_of(page).count("\n```") == 2 * len(found), f"{page}: a fence that is not read"
        for block in found:
            assert block.file or block.kind in ("python", "console"), f"{page}: {block.kind}"


def test_every_task_page_is_followed_by_a_test():
    nav = (pages.DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    tasks = nav[nav.index("  - Tasks:") : nav.index("  - Notebooks:")]
    named = {line.rpartition(": ")[2] for line in tasks.splitlines() if line.endswith(".md")}
    assert named == {*FOLLOWED, *ELSEWHERE} - {"quickstart.md"}


def test_mindeyes_tensors_are_scored_as_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.follow("mindeye.md")


def test_the_settings_of_the_slurm_page_are_read_as_it_says():
    """Its commands need a SLURM: tests/cluster/test_slurm.py."""
    _, block = pages.blocks("slurm.md", "yaml")
    rest = {"study": "s", "dataset": {"root": "nsd"}, "spaces": {"v": {"encoder": "vdvae"}}, "report": {"path": "r"}}
    config = parse({**rest, **yaml.safe_load(block.text)})
    assert config.cluster.kind == "slurm"
    wanted = ["--partition=gpu", "--account=mine", "--time=04:00:00", "--constraint=a100"]
    assert config.cluster.slurm.job_options() == wanted
    assert config.execution.reconstruct.gpus == 1


def test_the_node_of_the_slurm_page_is_used_whole_and_not_more(tmp_path, monkeypatch):
    """Its 8 GPUs, 64 cores and 400 GB; its scripts are written, and `plan` reads the recipe. No job is submitted."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(recipes()["brain_diffuser"].read_text(encoding="utf-8"))
    content |= yaml.safe_load(pages.blocks("slurm.md", "yaml")[0].text)
    Path("mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    config = load("mine.yaml")
    asked = {
        stage: resources_of(getattr(config.execution, stage), config.cluster)
        for stage in ("ingest", "features", "regress", "reconstruct", "evaluate", "roi")
    }
    assert {stage: need.workers * need.gpus for stage, need in asked.items() if need.gpus} == dict.fromkeys(
        ("features", "reconstruct", "evaluate", "roi"), 8
    )
    assert idle_gpus({stage: need for stage, need in asked.items() if need.gpus}, 8) == ""
    for need in asked.values():
        assert need.workers * need.threads <= 64
        assert need.workers * (need.memory or 0) <= 400e9
    assert CliRunner().invoke(app, ["deploy", "slurm", "scripts", "mine.yaml"]).exit_code == 0
    lines = [line.strip() for line in pages.text_of("slurm.md").splitlines() if line.startswith("    ")]
    (submitted,) = [line for line in lines if line.startswith("sbatch") and "--gpus=8 --time" in line]
    *options, script, named = submitted.split()[1:]
    assert Path(script).is_file()
    assert (named, all(option.startswith("--") for option in options)) == ("mine.yaml", True)
    assert "bdflow plan mine.yaml --gpu a100" in lines


@pytest.fixture
def painting(tmp_path, monkeypatch):
    """The page's files, in a working folder where Python finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    pages.follow("new_painter.md")
    yield tmp_path
    sys.modules.pop("my_painter", None)


def test_the_painter_of_the_page_keeps_the_contract(painting):
    page = yaml.safe_load(Path("painter.yaml").read_text())
    config = parse({"study": "study.zarr", "dataset": {"root": "nsd"}, "report": {"path": "report"}, **page})
    kind = painter_kind(config, "mosaic")
    painter = kind.load()
    latents = np.linspace(0, 1, 3 * 192, dtype="f4").reshape(3, 192)
    each = [painter.guess_inputs(latents[[row]], "subj01", [str(row)]) for row in range(3)]
    guesses = painter.decode_guesses(type(each[0]).join(each))
    assert guesses.shape == (3, kind.guess_size, kind.guess_size, 3)
    assert guesses[0, 0, 0].tolist() == [0, 0, 0]
    assert guesses[2, -1, -1].tolist() == [255, 255, 255]
    painted = painter.paint_prepared(painter.paint_inputs(guesses, None, None, "subj01", ["0", "1", "2"]))
    assert (painted.shape, painted.dtype) == ((3, 64, 64, 3), np.uint8)
    assert np.array_equal(painter.enlarged(guesses, 3).numpy(), painted)


@pytest.mark.slow(kind="pages and notebooks")
def test_the_painter_of_the_page_paints_a_study(painting, settings):
    config = parse(settings(painting, **yaml.safe_load(Path("painter.yaml").read_text())))
    Pipeline(config).run()
    for subject in SUBJECTS:
        guesses = Store(config.study, f"guesses/mosaic/{subject}").read("image")
        pictures = Store(config.study, f"reconstructions/mosaic/{subject}/full").read("image")
        assert guesses.shape[1:] == (8, 8, 3)
        assert pictures.shape == (len(guesses), 1, 64, 64, 3)
        assert len(np.unique(guesses.reshape(len(guesses), -1), axis=0)) == len(guesses)
    assert "mosaic" in (painting / "report/index.html").read_text(encoding="utf-8")


@pytest.mark.slow(kind="pages and notebooks")
@pytest.mark.timeout(900)
def test_subjects_sessions_tables_and_maps_by_the_pages(tmp_path, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / "demo"
    demo.mkdir()
    Path("mine.yaml").write_text(yaml.safe_dump(settings(demo, evaluate={"metrics": ["PixCorr", "SSIM"]})))
    pages.follow("sessions.md")
    assert not (demo / "study.zarr").exists(), "a check makes no study"
    pages.follow("subjects.md")
    pages.follow("quickstart.md")
    left = pages.follow("pandas.md")
    assert set(left["table"].index.get_level_values("subject")) == set(SUBJECTS)
    assert len(left["scores"]) == len(SUBJECTS) * 2 * 6, "two metrics of six test stimuli"
    assert left["scores"].stimulus_id.nunique() == 6
    pages.follow("nilearn.md")
    assert Path("ceiling.png").stat().st_size > 1000
