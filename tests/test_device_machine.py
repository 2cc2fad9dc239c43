"""What is checked on a machine with a GPU works where many packages are missing: they are loaded only where used."""

import argparse
import ast
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from bdflow.models.diffusion.kernels import BACKENDS, PARTS
from tests.support import cupy_on_numpy

ROOT = Path(__file__).parents[1]
LACKING = ("nibabel", "isal", "obstore", "dask", "distributed", "ray")


def script(name: str) -> types.ModuleType:
    return importlib.import_module(f"bdflow.benchmarks.{name}")


def imported(node: ast.AST) -> set[str]:
    """Packages that are imported when a module is; what types alone need is not."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return set()
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {str(node.module).split(".")[0]} if not node.level else set()
    return set().union(*map(imported, ast.iter_child_nodes(node)))


def test_no_module_needs_them_to_be_imported():
    files = [file for top in ("bdflow", "stores", "cluster") for file in (ROOT / top).rglob("*.py")]
    files += [
        ROOT / "benchmarks" / f"{name}.py"
        for name in ("gpu", "gpu_paint", "gpu_ridge", "ridge", "ridge_stores", "given", "diffusion")
    ]
    assert len(files) > 200
    found = {str(f.relative_to(ROOT)): imported(ast.parse(f.read_text(encoding="utf-8"))) for f in files}
    assert {file: lacks for file, names in found.items() if (lacks := names & set(LACKING))} == {}


BLOCKED = """
import importlib, sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LACKING:
            raise ModuleNotFoundError(f"no package {name}")
LACKING = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Lacking())
for name in sys.argv[2:]:
    importlib.import_module(name)
from bdflow.cluster import Resources, open_executor
done = []
with open_executor("serial") as executor:
    executor.run(lambda: lambda task: 2 * task, range(3), on_done=lambda one: done.append(one.result))
assert done == [0, 2, 4]
print(sorted(LACKING & set(sys.modules)))
"""


@pytest.mark.slow(kind="long checks")
def test_what_the_checks_need_is_imported_without_them():
    modules = ["bdflow.pipeline", "bdflow.api", "bdflow.stages.encode.stage"]
    modules += [f"bdflow.benchmarks.{name}" for name in ("gpu", "gpu_ridge", "ridge", "diffusion")]
    path = {"PYTHONPATH": f"{ROOT}", "PATH": "", "HOME": "/nonexistent"}
    command = [sys.executable, "-c", BLOCKED, ",".join(LACKING), *modules]
    done = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.slow(kind="a GPU that is played")
def test_the_checks_of_ridge_agree_on_a_gpu_that_is_played(monkeypatch):
    machine = cupy_on_numpy.installed(monkeypatch)
    checks = script("gpu_ridge")
    found = checks.differences((90, 120), (120, 60))
    assert len(found) > 20
    assert {name: error for name, error in found.items() if not error < 2e-3} == {}
    assert checks.failures_seen()
    assert checks.wrong_sums(12, 8, 16) == 0
    assert all(value > 0 for value in checks.rates(*checks.SIZES["small"]).values())
    machine.end()


@pytest.mark.slow(kind="a GPU that is played")
def test_checks_that_would_not_see_a_failure_say_so(monkeypatch):
    cupy_on_numpy.installed(monkeypatch)
    checks = script("gpu_ridge")
    monkeypatch.setattr("bdflow.regression.ridge.failures_raised", lambda values: pytest.MonkeyPatch.context())
    assert not checks.failures_seen()


def test_each_check_ends_by_itself_and_is_written_down(tmp_path, monkeypatch):
    gpu = script("gpu")
    write = "import sys, json; json.dump({'a': 1}, open(sys.argv[1], 'w')); print('done')"
    checks = [
        gpu.Check("good", 1, ("-c", write, "{json}"), ()),
        gpu.Check("bad", 1, ("-c", "raise SystemExit('it failed')"), ()),
        gpu.Check("long", 0.02, ("-c", "print('begun', flush=True); import time; time.sleep(60)"), ()),
        gpu.Check("absent", 1, ("-c", ""), ("no_such_package",)),
    ]
    report = tmp_path / "report.json"
    gpu.run_all(checks, tmp_path / "large", 5, report)
    found = json.loads(report.read_text())
    assert {name: result["ended"].split(" after")[0] for name, result in found.items()} == {
        "good": "exit code 0",
        "bad": "exit code 1",
        "long": "stopped",
        "absent": "left out: no package no_such_package",
    }
    assert [result["ok"] for result in found.values()] == [True, False, False, False]
    assert found["good"]["found"] == {"a": 1}
    assert found["bad"]["output"] == ["it failed"]
    assert gpu.run_all(checks[:1], tmp_path, 0.1, None)["good"]["ended"] == "left out: no time left"


def options_of(monkeypatch, name, command):
    """What a script's own parser makes of the arguments; SystemExit where it refuses them."""
    module, found = script(name), []
    parse = argparse.ArgumentParser.parse_args

    class Parsed(Exception):
        pass

    def parsed(parser, args=None, namespace=None):
        found.append(parse(parser, args, namespace))
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    filled = [part.replace("{dir}", "large").replace("{json}", "found.json") for part in command]
    with pytest.raises(Parsed):
        module.main(filled)
    return found[0]


@pytest.mark.slow(kind="long checks")
def test_every_check_gives_arguments_that_its_script_takes(monkeypatch):
    gpu = script("gpu")
    commands = [command for check in gpu.CHECKS for command in (check.command, check.dry)]
    ours = [command for command in commands if command[:1] == ("-m",) and command[1] != "pytest"]
    assert len(ours) > 6
    for _, module, *arguments in ours:
        with monkeypatch.context() as patch:
            assert options_of(patch, module.rpartition(".")[2], arguments).json == Path("found.json")


@pytest.mark.slow(kind="long checks")
def test_painting_is_checked_dry_on_the_cpu():
    paint = script("gpu_paint")
    asked = paint.Asked(scenes=2)
    found = {name: check(asked) for name, check in paint.CHECKS.items()}
    exact = [row for row in found["levels"] if row["dtype"] == "float32"]
    assert max(row["levels"] for row in exact) <= 1
    assert max(row["levels"] for row in found["levels"]) > 1, "half precision moves pixels"
    kernels = {(row["part"], row["kernel"]) for row in found["attention"]}
    assert kernels == {(part, name) for part in PARTS for name in BACKENDS}
    assert sum(row["chosen"] for row in found["attention"]) == 2 * 3, "one for each part and dtype"
    assert [row["linear"] for row in found["linears"]] == ["exact", "fp8"]
    assert all(row["milliseconds_a_row"] > 0 for name in ("linears", "draws") for row in found[name])
    full, half, _ = found["scores"]
    assert abs(full["PixCorr"] - half["PixCorr"]) < 0.01
    assert full["levels"] == 0 < half["levels"]
    assert paint.table(found["draws"]).count("\n") == 3


def test_every_check_calls_what_there_is():
    gpu = script("gpu")
    assert sum(check.minutes for check in gpu.CHECKS) <= 30
    for check in gpu.CHECKS:
        names = [part.replace(".", "/") + ".py" for part in check.command if part.startswith("bdflow.")]
        files = names + [part for part in check.command if part.endswith(".py")]
        assert all((ROOT / file).is_file() for file in files), check.name
        text = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        if "pytest" not in check.command:
            options = [part for part in check.command if part.startswith("--")]
            assert all(f'"{option}"' in text for option in options), check.name
