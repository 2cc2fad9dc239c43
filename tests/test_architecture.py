"""Who may import whom; what may not be imported early; words that do not belong in a package."""

import ast
import builtins
import importlib
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import grimp
import pytest
from importlinter import api

import bdflow
import bdflow.api

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


@cache
def parsed() -> dict[str, ast.Module]:
    """Every module of the package, by its file."""
    files = [file for top in ("bdflow", "stores", "cluster", "benchmarks") for file in (ROOT / top).rglob("*.py")]
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in files}


KEYS = ROOT / "bdflow/study/keys.py"
KINDS = (*re.findall(r'return f"(\w+)/', KEYS.read_text()), "rois")
"""First parts of the paths of stores."""
IN_A_PATH = re.compile(rf"(^|[\s/])({'|'.join(KINDS)})/(?! )")
ELSES_PATHS = {
    "bdflow/datasets/arrays/opening.py": {"stimuli/image: "},
    "bdflow/datasets/glmsingle/options.py": {
        "derivatives/rois/{subject}/{subject}_space-T1w", "stimuli/stimuli.tsv", "stimuli/captions.tsv",
    },
    "bdflow/datasets/laion_fmri/layout.py": {"root / 'stimuli'"},
    "bdflow/datasets/nsd/coco.py": {"nsddata_stimuli/stimuli/nsd/annotations"},
    "bdflow/datasets/nsd/files.py": {"nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"},
    "bdflow/datasets/nsd/imagery.py": {"nsddata_stimuli/stimuli/nsdimagery/allstim"},
    "bdflow/datasets/nsd/synthetic.py": {"nsddata_stimuli/stimuli/nsdsynthetic"},
    "bdflow/serve/requests.py": {
        "(n, voxels) or (voxels,), in the order of betas/<subject> and the unit that /v1/study names.",
    },
    "bdflow/study/opening.py": {"/metrics/"},
}  # fmt: skip
"""Files of datasets, a text for users, and the one place that looks at the stores of a kind by their paths."""


def paths_of_stores(tree: ast.Module) -> set[str]:
    """What in a module's code looks like a store's path, or like one being put together."""
    found: set[str] = set()
    words = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words:
            found |= {node.value} if IN_A_PATH.search(node.value) else set()
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            sides = (node.left, node.right)
            found |= {ast.unparse(node)} if any(getattr(side, "value", "") in KINDS for side in sides) else set()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            way = ast.unparse(node.func) if node.func.attr in ("join", "joinpath") else ""
            given = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} if way else set()
            joins = way.endswith(("'/'.join", "path.join", ".joinpath")) and given & set(KINDS)
            asks = node.func.attr in ("ready", "store", "is_sealed", "declare") and node.args
            if joins or (asks and isinstance(node.args[0], ast.Constant)):
                found.add(ast.unparse(node))
    return found


def test_paths_of_stores_are_made_in_one_place():
    """No other module than `study/keys.py` puts a store's path together."""
    assert len(KINDS) >= 15
    others = {name: tree for name, tree in parsed().items() if name.startswith("bdflow/") and ROOT / name != KEYS}
    found = {name: paths for name, tree in others.items() if (paths := paths_of_stores(tree))}
    assert found == ELSES_PATHS


@pytest.mark.parametrize(
    "code",
    [
        'f"betas/{s}"', '"betas/" + s', '"/".join(("betas", s))', '"attention/brain_diffuser"', '"betas/{}".format(s)',
        '"betas/%s" % s', 'f"rois/{s}/patterns"', 'study.ready("any")', 'root / "predictions" / s',
        'f"{root}/judges/{s}"',
        'root.joinpath("betas", s)',
    ],
)  # fmt: skip
def test_a_new_path_of_a_store_would_be_seen(code):
    assert paths_of_stores(ast.parse(f"def of(s, root, study):\n    return {code}\n"))


def test_few_signatures_say_any():
    """`Any` in the annotations of functions, counted as names; at least halved since issue 13, which found 225."""
    trees = [tree for name, tree in parsed().items() if not name.startswith("benchmarks/")]
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    said = 0
    for one in functions:
        given = [part.annotation for part in ast.walk(one.args) if isinstance(part, ast.arg)]
        for annotation in (annotation for annotation in (*given, one.returns) if annotation is not None):
            said += sum(isinstance(part, ast.Name) and part.id == "Any" for part in ast.walk(annotation))
    assert len(functions) > 2000
    assert said <= 112


SIGNALS = {
    "bdflow.config.yaml_text._Problem", "bdflow.datasets.glmsingle.pickles.UnusualPickle",
    "bdflow.models.weights.pickled.UnusualPickle", "bdflow.models.weights.reading.FileEnds",
    "cluster.worker.NotLoaded", "stores.every_chunk.NotStored", "stores.metadata.Unreadable",
}  # fmt: skip
"""Exceptions by which one module tells another something; they become errors for users where they are caught."""


def test_exceptions_have_one_root():
    """Each class of exceptions derives from BdflowError, but for signals, and these are caught by their names."""
    bases, home, caught = {}, {}, set()
    for name, tree in parsed().items():
        module = name.removesuffix(".py").replace("/", ".")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                direct = {ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases} - {node.name}
                bases[node.name] = bases.get(node.name, set()) | direct
                home.setdefault(node.name, set()).add(f"{module}.{node.name}")
            elif isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught |= set(re.findall(r"\w+", ast.unparse(node.type)))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                caught |= set(re.findall(r"\w+", ast.unparse(node.args[1])))

    def above(name: str) -> set[str]:
        return {name}.union(*(above(base) for base in bases.get(name, ())))

    own = {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    errors = {name for name in bases if above(name) & own}
    assert len(errors) >= 15
    others = {name for name in errors if "BdflowError" not in above(name)}
    assert set().union(*(home[name] for name in others)) == SIGNALS
    assert others <= caught


def test_the_command_line_uses_public_names_alone():
    """Those of `bdflow` and `bdflow.api`; of the rest only the words of errors and of paths that users write."""
    for file in (ROOT / "bdflow/cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "bdflow":
                module, names = str(node.module), {alias.name for alias in node.names}
                allowed = {"bdflow": {*bdflow.__all__, "api"}, "bdflow.api": {*bdflow.api.__all__}}.get(module, names)
                assert names <= allowed, (file.name, names)
                homes = ("bdflow", "bdflow.api", "bdflow.errors", "bdflow.user_paths")
                assert module in homes or module.startswith("bdflow.cli"), (file.name, module)
            elif isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("bdflow")], file.name
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "api":
                assert node.attr in bdflow.api.__all__, (file.name, node.attr)


def test_files_of_pictures_are_opened_upright():
    """By one function, which turns them as their EXIF tag says; else a camera's picture would lie on its side."""
    opens = re.compile(r"(PIL\.)?Image\.open|.*\b(imread|read_image|decode_image)")
    libraries, found = ("imageio", "cv2", "skimage.io", "torchvision.io", "matplotlib.image"), set()
    for file, tree in parsed().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            home = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            read = home.startswith(libraries) or any(
                f"{home}.{name}".strip(".").startswith(libraries) for name in names
            )
            read |= home == "PIL.Image" and "open" in names
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
            read |= called and opens.fullmatch(ast.unparse(node.func)) is not None
            found |= {file} if read else set()
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
