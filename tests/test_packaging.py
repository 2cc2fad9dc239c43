"""What is installed: one import package, with everything it needs beside its code."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the repository's files, without a network."""
    root = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in [name for name in listed.split("\0") if name and not name.startswith(("tests/", "docs/"))]:
        target = root / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        root,
        root / "source",
    ]
    subprocess.run(command, check=True)
    return next(root.glob("bdflow-*.whl"))


def test_a_wheel_holds_one_import_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"bdflow"}
    for top in ("bdflow", "stores", "cluster", "benchmarks"):
        for file in (ROOT / top).rglob("*.py"):
            parts = file.relative_to(ROOT).parts
            assert "/".join(parts if parts[0] == "bdflow" else ("bdflow", *parts)) in names, file


def test_a_wheel_holds_what_code_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ["configs/demo.yaml", "configs/brain_diffuser.yaml", "py.typed", "report/report.js", "report/report.css"]
    wanted += ["cluster/slurm/node.sbatch", "cluster/kubernetes/study.yaml", "models/tiny/manifest.json"]
    wanted += [f"report/{file.relative_to(ROOT / 'bdflow/report')}" for file in (ROOT / "bdflow/report").rglob("*.j2")]
    assert {f"bdflow/{name}" for name in wanted} <= names, sorted({f"bdflow/{name}" for name in wanted} - names)
