"""What is installed: one import package, with everything it needs beside its code; as a wheel and from the sources."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

import bdflow

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
PYTHONS = ("3.11", "3.12", "3.13")
NEWER_PYTHONS = {"3.12": "0.27.7", "3.13": "0.29.0"}
"""The version of pyodide that carries each."""
TOPS = ("bdflow", "stores", "cluster", "benchmarks")


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of a source tree, without a network."""
    out.mkdir()
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("bdflow-*.whl")), next(out.glob("bdflow-*.tar.gz"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """Built from a copy of the repository's files."""
    root = tmp_path_factory.mktemp("archives")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tested = [f"tests/{name}" for name in ("conftest.py", "test_packaging.py")]  # to be left out; so are the others
    names = [name for name in listed.split("\0") if not name.startswith(("docs/", "tests/"))]
    for name in [*filter(None, names), *tested]:
        if (ROOT / name).exists():
            target = root / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return build(root / "source", root / "built")


@pytest.fixture(scope="module")
def wheel(archives) -> Path:
    return archives[0]


def contents(wheel: Path) -> dict[str, bytes]:
    """Files of a wheel, but the list of them."""
    with zipfile.ZipFile(wheel) as held:
        return {name: held.read(name) for name in held.namelist() if not name.endswith("/RECORD")}


def test_a_wheel_holds_one_import_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"bdflow"}
    for top in TOPS:
        for file in (ROOT / top).rglob("*.py"):
            parts = file.relative_to(ROOT).parts
            assert "/".join(parts if parts[0] == "bdflow" else ("bdflow", *parts)) in names, file


def test_a_wheel_holds_what_code_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ["configs/demo.yaml", "configs/brain_diffuser.yaml", "py.typed", "report/report.js", "report/report.css"]
    wanted += ["cluster/slurm/node.sbatch", "cluster/kubernetes/study.yaml", "models/tiny/manifest.json"]
    wanted += [f"report/{file.relative_to(ROOT / 'bdflow/report')}" for file in (ROOT / "bdflow/report").rglob("*.j2")]
    assert {f"bdflow/{name}" for name in wanted} <= names, sorted({f"bdflow/{name}" for name in wanted} - names)
    tiny = files("bdflow.models") / "tiny"
    assert {
        f"bdflow/models/tiny/{file.relative_to(str(tiny))}" for file in Path(str(tiny)).rglob("*") if file.is_file()
    } <= names


def test_the_sdist_holds_the_package_and_no_tests(archives):
    with tarfile.open(archives[1]) as held:
        names = {member.name.partition("/")[2]: member for member in held.getmembers() if member.isfile()}
        links = [member.name for member in held.getmembers() if member.issym() or member.islnk()]
    assert links == []
    tops = {name.split("/")[0] for name in names}
    assert tops >= {
        "bdflow",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "constraints.txt",
        "CHANGELOG.md",
    }
    assert not tops & {"tests", "docs", "benchmarks", "stores", "cluster", "configs"}
    assert {name for name in contents(archives[0]) if name.startswith("bdflow/")} <= set(names)


def test_the_metadata_says_what_it_is(wheel):
    held = contents(wheel)
    about = message_from_bytes(next(content for name, content in held.items() if name.endswith("/METADATA")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (about["Name"], about["Version"]) == ("bdflow", bdflow.__version__)
    assert about["Summary"] == project["description"]
    assert {"Programming Language :: Python :: " + version for version in PYTHONS} <= set(about.get_all("Classifier"))
    urls = dict(url.split(", ") for url in about.get_all("Project-URL"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert urls["Method: Brain-Diffuser"].endswith(citation["preferred-citation"]["doi"])
    assert all(url.startswith("https://") for url in urls.values())


def test_there_is_one_version():
    """Where it has to stand a second time it is the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    version = bdflow.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    for file in (*(ROOT / "cluster/kubernetes").iterdir(), ROOT / "docs/kubernetes.md"):
        named = re.findall(r"\bbdflow:(\d[\w.]*\w)", file.read_text(encoding="utf-8"))
        assert set(named) <= {version}, file


GONE = (
    "asyncore|asynchat|smtpd|imp|distutils|aifc|audioop|cgi|cgitb|chunk|crypt|imghdr|mailcap|msilib|nis|nntplib|"
    "ossaudiodev|pipes|sndhdr|spwd|sunau|telnetlib|uu|xdrlib|lib2to3"
)
"""Modules of 3.11 that 3.12 and 3.13 lack."""


def test_no_module_is_used_that_newer_pythons_lack():
    """Below two newer Pythons run what needs no compiled library; this asks all of it."""
    gone = re.compile(rf"^\s*(?:import|from) (?:{GONE})\b", re.MULTILINE)
    assert gone.search("    from imp import load_module")
    assert not gone.search("import importlib")
    texts = {file: file.read_text(encoding="utf-8") for top in TOPS for file in (ROOT / top).rglob("*.py")}
    assert len(texts) > 150
    assert {str(file): found[0] for file, text in texts.items() if (found := gone.search(text))} == {}


@pytest.mark.slow(kind="packaging")
def test_a_wheel_from_the_sdist_is_the_wheel(archives, tmp_path):
    wheel, sdist = archives
    with tarfile.open(sdist) as held:
        held.extractall(tmp_path, filter="data")
    again, _ = build(next(tmp_path.glob("bdflow-*")), tmp_path / "built")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


@pytest.mark.slow(kind="packaging")
@pytest.mark.timeout(600)
def test_an_installed_wheel_works_without_the_repository(wheel, tmp_path):
    """In an environment of its own; dependencies are those of the environment that tests run in."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False)
    python = place / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    site = next(place.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def said(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = str(place / "bin/bdflow")
    assert said(command, "--version") == f"bdflow {bdflow.__version__}\n"
    recipes = said(command, "recipes").splitlines()
    assert [line.split()[0] for line in recipes] == ["brain_diffuser", "demo", "takagi_nishimoto"]
    assert all(line.split()[1].startswith(str(site)) for line in recipes)
    said(command, "deploy", "slurm", "scripts")
    script = "import json, bdflow; from bdflow import api; "
    script += "found = {name: str(getattr(bdflow, name)) for name in bdflow.__all__}; "
    script += "print(json.dumps([bdflow.__file__, api.check_bundle('tiny').problems, found]))"
    where, problems, found = json.loads(said(str(python), "-c", script))
    assert where.startswith(str(site))
    assert problems == []
    assert set(found) == set(bdflow.__all__)


NODE = Path(__file__).with_name("support") / "newer_python.mjs"


@pytest.mark.slow(kind="packaging")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("python", NEWER_PYTHONS)
def test_the_wheel_is_installed_and_runs_on_newer_pythons(wheel, python, tmp_path):
    """CPython 3.12 and 3.13 as WebAssembly, which npm's package pyodide carries: every module is compiled, with
    warnings as errors, those that need no compiled library are imported, and the command answers.
    """
    if shutil.which("npm") is None:
        pytest.skip("needs npm and node, which bring the newer Pythons")
    package = f"pyodide@{NEWER_PYTHONS[python]}"
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(tmp_path)]
    subprocess.run([*install, package], check=True, timeout=300)
    shutil.copy(NODE, tmp_path / NODE.name)
    command = ["node", NODE.name, str(wheel), sysconfig.get_path("purelib")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["python"] == [int(part) for part in python.split(".")]
    assert found["version"] == found["installed"] == bdflow.__version__
    assert found["said"] == f"bdflow {bdflow.__version__}"
    assert found["compiled"] > 300
    assert found["imported"] > 40
    assert {name for name in found["lacking"].values() if name.split(".")[0] in ("bdflow", *GONE.split("|"))} == set()
    assert found["failed"] == {}


@pytest.mark.slow(kind="packaging")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("python", PYTHONS[1:])
def test_every_dependency_has_a_wheel_for_newer_pythons(wheel, python, tmp_path):
    """As pip resolves them, pinned. Nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-"]
    command += ["--python-version", python, "--only-binary=:all:", "--target", str(tmp_path), str(wheel)]
    command += ["-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    chosen = json.loads(done.stdout)["install"]
    names = {one["metadata"]["name"].lower() for one in chosen}
    assert {"torch", "ray", "dask", "zarr", "xarray", "pydantic", "bdflow"} <= names
    assert len(names) > 60
