"""The notebooks of docs/notebooks run from top to bottom on the demo's study, and are committed as they are written."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
DEMO = Path(os.environ.get("BDFLOW_DEMO", ROOT / "demo"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_committed_without_outputs(path):
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    assert path.stat().st_size < 300_000
    assert not [cell for cell in content.cells if cell.get("outputs") or cell.get("execution_count")]
    assert content.cells[0].cell_type == "markdown"


@pytest.mark.slow(kind="pages and notebooks")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    study = DEMO / "study.zarr"
    assert study.is_dir(), f"{study} is not there: `make demo` makes it, and notebooks run on it"
    for name, value in {
        "BDFLOW_STUDY": study,
        "BDFLOW_DATA": DEMO / "nsd",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": ROOT,
        "JUPYTER_RUNTIME_DIR": tmp_path,
        "IPYTHONDIR": tmp_path,
    }.items():
        monkeypatch.setenv(name, str(value))
    content = nbformat.read(path, as_version=4)
    done = NotebookClient(
        content, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    plots = [out for cell in done.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(plots) >= 1
