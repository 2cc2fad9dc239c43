"""The versions that pyproject.toml promises: all dependencies are named, and the lowest of each work together."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import yaml

from bdflow.stores import Store, Study
from tests.conftest import execution
from tests.support.lowest import PROJECT, lowest

ROOT = PROJECT.parent
PYTHON = Path(sys.prefix) / "lowest/bin/python"
BY_HAND = {"cupy", "cupyx", "dask_cuda", "torchvision"}  # optional, and not installed here or not by pip's own rules
OF_OTHERS = {"_typeshed", "pydantic_core", "starlette"}  # parts of what is named: mypy, pydantic, fastapi


def test_every_import_is_a_dependency():
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(line for of in project["optional-dependencies"].values() for line in of)]
    known = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in named}
    owners, lacking = packages_distributions(), {}
    for file in (file for top in ("bdflow", "stores", "cluster") for file in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - BY_HAND - OF_OTHERS:
                owner = {found.lower().replace("_", "-") for found in owners.get(name, [])}
                if name != "bdflow" and not owner & known:
                    lacking[name] = str(file.relative_to(ROOT))
    assert lacking == {}


@pytest.mark.slow(kind="lowest versions")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("executor", ["serial", "dask", "ray"])
def test_the_lowest_versions_run_a_study_to_its_report(settings, undisturbed, tmp_path, executor):
    """In an environment of their own, the whole pipeline; its latents and pictures are those of the newest."""
    assert PYTHON.exists(), f"{PYTHON} is not there: `make slow` makes it, an environment of the lowest versions"
    script = (
        "import json, sys\nfrom importlib.metadata import version\nprint(json.dumps(list(map(version, sys.argv[1:]))))"
    )
    names = [name for name in lowest() if name != "torch"]
    found = json.loads(subprocess.check_output([PYTHON, "-c", script, *names], text=True))
    for name, version in zip(names, found, strict=True):
        assert (version + ".0.0").startswith(lowest()[name] + "."), f"{name} {version} is not the lowest"

    content = settings(tmp_path, execution=execution(executor, 1 if executor == "serial" else 2))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    command = [PYTHON, "-m", "bdflow.cli.main", "run", tmp_path / "config.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report/index.html").is_file()
    study = Study(tmp_path / "study.zarr")
    for path in study.paths():
        store, expected = study.store(path), Store(undisturbed, path)
        assert store.sealed
        for name in ("latent", "image", "response"):
            if name in store.attrs["data"]:
                a, b = store.read(name).astype(float), expected.read(name).astype(float)
                assert np.abs(a - b).max() <= (2 if name == "image" else 1e-3 * np.abs(b).max())
    look = "import bdflow, sys\nprint(bdflow.open_study(sys.argv[1])['predictions/subj01/vdvae'].latent.shape)"
    shown = subprocess.check_output([PYTHON, "-c", look, study.path], text=True)
    assert shown.split()[0].startswith("(6,")
