"""Who may import whom; what may not be imported early; words that do not belong in a package."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import grimp
import pytest
from importlinter import api

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Our own modules and the imports between them, wherever in a module's text they stand."""
    return grimp.build_graph("bdflow", cache_dir=None)


def test_the_order_of_imports(monkeypatch):
    """The contracts of pyproject.toml hold, none of them with an exception."""
    monkeypatch.chdir(ROOT)
    contracts = api.read_configuration()["contracts_options"]
    assert len(contracts) == 4
    assert not [contract for contract in contracts if "ignore_imports" in contract]
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_module_is_in_the_graph(graph):
    """Also those of `stores` and `cluster`, which lie beside the package."""
    files = [file for top in ("bdflow", "stores", "cluster", "benchmarks") for file in (ROOT / top).rglob("*.py")]
    names = set()
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "bdflow" else ("bdflow", *parts)
        names.add(".".join(parts).removesuffix(".__init__"))
    assert graph.modules == names


def test_no_circle_of_imports(graph):
    """Modules can be put in a row in which each imports only earlier ones."""
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while True:
        free = {module for module, needs in left.items() if not needs & left.keys()}
        if not free:
            break
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left


def test_one_import_package():
    """`stores` and `cluster` are imported as parts of bdflow alone: the bare names belong to other distributions."""
    for top in ("bdflow", "stores", "cluster", "tests", "benchmarks"):
        for file in (ROOT / top).rglob("*.py"):
            lines = [line.strip().split()[:2] for line in file.read_text().splitlines()]
            roots = [words[1].split(".")[0] for words in lines if len(words) == 2 and words[0] in ("import", "from")]
            assert not {"stores", "cluster"} & set(roots), file


def test_paths_of_stores_are_made_in_one_place():
    """No other module than `study/keys.py` puts a store's path together."""
    keys = ROOT / "bdflow/study/keys.py"
    kinds = re.findall(r'return f"(\w+)/', keys.read_text())
    assert len(kinds) >= 14
    start = re.compile(rf"(^|[\s/])({'|'.join(kinds)}|rois)/$")
    readers, found = ("ready", "store", "is_sealed", "declare"), []
    for file in (ROOT / "bdflow").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())) if file != keys else ():
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                for text, value in pairwise(node.values):
                    before = text.value if isinstance(text, ast.Constant) else ""
                    found += [where] if isinstance(value, ast.FormattedValue) and start.search(before) else []
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in readers:
                found += [where for given in node.args[:1] if isinstance(given, ast.Constant)]
    assert not found


def test_files_of_pictures_are_opened_upright():
    """By one function, which turns them as their EXIF tag says; else a camera's picture would lie on its side."""
    opens = re.compile(r"(PIL\.)?Image\.open|.*\b(imread|read_image|decode_image)")
    libraries, found = ("imageio", "cv2", "skimage.io", "torchvision.io", "matplotlib.image"), set()
    for file in (file for top in ("bdflow", "stores", "cluster", "benchmarks") for file in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            home = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            read = home.startswith(libraries) or any(
                f"{home}.{name}".strip(".").startswith(libraries) for name in names
            )
            read |= home == "PIL.Image" and "open" in names
            read |= isinstance(node, ast.Call) and opens.fullmatch(ast.unparse(node.func)) is not None
            found |= {f"{file.relative_to(ROOT)}"} if read else set()
    assert found == {"bdflow/datasets/formats/pictures.py"}


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("cluster", ("voxel", "fmri", "latent", "subject", "stimul", "nsd", "vdvae", "diffusion", "beta ")),
        ("stores", ("voxel", "fmri", "natural-scenes", "vdvae", "diffusion", "beta ")),
    ],
)
def test_no_word_of_the_domain(folder, words):
    for file in (ROOT / folder).rglob("*.py"):
        text = file.read_text().lower()
        assert not [word for word in words if word in text], file


@pytest.mark.parametrize(
    "module", ["bdflow.cli.main", "bdflow.config", "bdflow.cluster", "bdflow.models.weights.bundle"]
)
def test_heavy_packages_are_imported_where_they_are_used(module):
    heavy = ["torch", "ray", "diffusers", "transformers", "cupy", "distributed", "sklearn", "matplotlib"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_too_long_to_find_ones_way_in():
    files = [file for top in ("bdflow", "stores", "cluster", "benchmarks") for file in (ROOT / top).rglob("*.py")]
    assert not [file for file in files if len(file.read_text().splitlines()) > 450]


TEXTS = ("*.md", "*.py", "*.sbatch", "*.yaml", "*.json", "*.toml", "Makefile", "*.j2")
"""What may name a module or a file of the project."""
ELSEWHERE = (
    "my_encoders.py", "my_painter.py", "write.py",
    "eval_extract_features.py", "img2feat_decoded.py", "make_subjmri.py", "make_subjstim.py",
)  # fmt: skip
"""A user's file, and those of the papers' code."""


def _texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "-z", *TEXTS], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: (ROOT / name).read_text() for name in listed.stdout.split("\0") if name}


def test_modules_that_are_named_for_a_command_exist():
    """`python -m MODULE`, in scripts, pages and code: an old name in a batch script fails on a cluster alone."""
    known, found = grimp.build_graph("bdflow", cache_dir=None).modules, {}
    for name, text in _texts().items():
        for module in re.findall(r"-m[\", ]+((?:bdflow|cluster|stores|benchmarks)(?:\.\w+)*)", text):
            found[module] = name
    assert len(found) >= 4
    assert {module: name for module, name in found.items() if module not in known} == {}


def test_files_that_are_named_in_words_exist():
    """A path of code in a page or a docstring, such as `regression/ridge.py`, is the end of a path that exists."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wrong = []
    for name, text in _texts().items():
        if name.startswith("docs/decisions/") or name == "CHANGELOG.md":  # records of their day
            continue
        marked = re.findall(r"`([\w./-]+\.py)`", text) if name.endswith((".md", ".py")) else []
        slashed = re.findall(r"(?<![\w./-])((?:[\w-]+/)+[\w-]+\.py)\b", text) if name.endswith(".md") else []
        for path in {*marked, *slashed}:
            at = {path, f"{Path(name).parent}/{path}"}
            if not any(file in at or file.endswith(f"/{path}") for file in listed) and path not in ELSEWHERE:
                wrong.append(f"{name}: {path}")
    assert wrong == []


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.name)
def test_what_benchmarks_import_is_there(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bdflow"):
            module = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), (file.name, name)
