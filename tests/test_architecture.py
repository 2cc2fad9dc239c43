"""Who may import whom; what may not be imported early; words that do not belong in a room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("bdflow", "stores", "cluster")
STAGES = ("ingest", "features", "regress", "reconstruct", "evaluate", "roi", "report")
PURE = (
    "ridge",
    "ridge_blocks",
    "ridge_tiles",
    "ridge_plan",
    "metrics",
    "statistics",
    "average",
    "regions",
    "rescale",
    "noise",
    "errors",
    "config",
    "scenes",
    "scenes_background",
    "scenes_draw",
)
PURE_MAY = {"bdflow.errors", "bdflow.noise", "bdflow.scenes", "bdflow.scenes_background", "bdflow.scenes_draw"}


def modules() -> dict[str, Path]:
    found = {}
    for package in OURS:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Our own modules that a module imports, wherever in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {module for module in found if module.split(".")[0] in OURS and module in MODULES}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_import_rules(name):
    used = {module for module in imports(name) if module != name}
    package, last = name.split(".")[0], name.split(".")[-1]
    if package in ("stores", "cluster"):
        assert {module.split(".")[0] for module in used} <= {package}
    elif name.startswith("bdflow.models"):
        allowed = PURE_MAY | {m for m in used if m.startswith("bdflow.models") or m == "bdflow"}
        assert used <= allowed
    elif last in PURE:
        assert used <= PURE_MAY | {"bdflow"}
    elif last in STAGES:
        assert not {f"bdflow.{stage}" for stage in STAGES if stage != last} & used
        assert not [module for module in used if module.startswith(("cluster", "bdflow.pipeline", "bdflow.cli"))]
    elif last == "cli":
        assert "cluster" not in {module.split(".")[0] for module in used} | {"-"}
    if last not in ("pipeline",):
        assert not [module for module in used if module.startswith("cluster") and package == "bdflow"]


def test_the_executors_hold_no_word_of_the_domain():
    words = ("voxel", "fmri", "latent", "subject", "stimul", "nsd", "vdvae", "diffusion", "beta ")
    for file in (ROOT / "cluster").rglob("*.py"):
        text = file.read_text().lower()
        assert not [word for word in words if word in text], file


@pytest.mark.parametrize("module", ["bdflow.cli", "bdflow.config", "cluster", "bdflow.models.bundle"])
def test_heavy_packages_are_imported_where_they_are_used(module):
    heavy = ["torch", "ray", "diffusers", "transformers", "cupy", "distributed", "sklearn", "matplotlib"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_too_long_to_find_ones_way_in():
    assert not [name for name, file in MODULES.items() if len(file.read_text().splitlines()) > 450]
