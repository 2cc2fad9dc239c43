"""Text is UTF-8 whatever the locale: no file is opened in the locale's encoding, and commands work under others."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = [file for top in ("bdflow", "stores", "cluster", "benchmarks", "docs") for file in (ROOT / top).rglob("*.py")]
BDFLOW = Path(sys.executable).with_name("bdflow")
RUNS = ("run", "Popen", "check_output", "check_call", "call")
TEXTS = ("TextIOWrapper", "fdopen", "NamedTemporaryFile", "TemporaryFile", "loadtxt", "genfromtxt", "savetxt")


def unnamed(tree: ast.AST) -> Iterator[int]:
    """Lines of the calls that read or write text in the locale's encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {word.arg: word.value for word in node.keywords}
        if "encoding" in given or None in given:
            continue
        of_module = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
        module = node.func.value.id if of_module else ""
        if name in ("read_text", "write_text") and not (name == "read_text" and node.args):
            yield node.lineno
        elif (name == "open" and module not in ("os", "Image", "webbrowser", "zarr", "tarfile")) or name in TEXTS:
            modes = [arg.value for arg in [*node.args[:2], given.get("mode")] if isinstance(arg, ast.Constant)]
            binary = any(isinstance(mode, str) and "b" in mode and len(mode) <= 3 for mode in modes)
            archive = name == "open" and module in ("archive", "self")
            if not binary and not archive:
                yield node.lineno
        elif (module, name) == ("parser", "read") or (
            module == "subprocess" and name in RUNS and {"text", "universal_newlines"} & set(given)
        ):
            yield node.lineno


def test_no_text_is_read_or_written_in_the_locales_encoding():
    assert len(FILES) > 180
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in FILES
        for line in unnamed(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "open(p)",
        "p.open()",
        "p.open('w')",
        "Path(p).read_text()",
        "p.write_text(x)",
        "subprocess.run(c, text=True)",
        "os.fdopen(1, 'w')",
        "io.TextIOWrapper(s)",
        "np.loadtxt(p)",
        "parser.read(p)",
    ],
)
def test_the_search_finds_them(text):
    assert list(unnamed(ast.parse(text))) == [1]


@pytest.mark.parametrize(
    "text", ["open(p, encoding='utf-8')", "p.open('rb')", "subprocess.run(c)", "p.write_bytes(b)", "os.open(p, 0)"]
)
def test_the_search_finds_nothing_else(text):
    assert not list(unnamed(ast.parse(text)))


@pytest.fixture(params=["ASCII", "Latin-1"])
def elsewhere(request, tmp_path_factory) -> dict[str, str]:
    """The environment of a process under a locale that is not UTF-8."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    variables |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    if request.param == "Latin-1":
        folder = tmp_path_factory.mktemp("locales")
        command = ["localedef", "-i", "fr_FR", "-f", "ISO-8859-1", str(folder / "fr_FR.ISO-8859-1")]
        if shutil.which("localedef") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("localedef has no Latin-1 locale to make here")
        variables |= {"LOCPATH": str(folder), "LC_ALL": "fr_FR.ISO-8859-1"}
    asked = [sys.executable, "-c", "import locale; print(locale.getpreferredencoding(False))"]
    encoding = subprocess.run(asked, capture_output=True, encoding="ascii", env=variables, check=True).stdout.strip()
    assert encoding == {"ASCII": "ANSI_X3.4-1968", "Latin-1": "ISO-8859-1"}[request.param]
    return variables


@pytest.fixture(scope="module")
def config(undisturbed, settings, tmp_path_factory) -> Path:
    """Of a finished study; its file has letters beyond ASCII."""
    root = tmp_path_factory.mktemp("locale")
    shutil.copytree(undisturbed, root / "study.zarr")
    file = root / "config.yaml"
    text = yaml.safe_dump(settings(root, execution={}), sort_keys=False, allow_unicode=True)
    file.write_text("# naïve Größe – é\n" + text, encoding="utf-8")
    return file


def report(config: Path, variables: dict[str, str], *commands: str) -> tuple[str, bytes]:
    """What the commands leave as the report: its page, and its pictures."""
    for command in commands:
        done = subprocess.run([BDFLOW, *command.split(), config], capture_output=True, env=variables, check=False)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    where = config.parent / "report"
    return (where / "index.html").read_text(encoding="utf-8"), (where / "gallery.js").read_bytes()


@pytest.fixture(scope="module")
def usual(config) -> tuple[str, bytes]:
    return report(config, os.environ | {"PYTHONUTF8": "1"}, "report")


@pytest.mark.slow(kind="locales")
def test_commands_up_to_the_report_under_another_locale(elsewhere, config, usual):
    """A configuration with letters beyond ASCII is read as UTF-8, and the report is the same text."""
    page, gallery = report(config, elsewhere, "status", "run", "status --timings")
    assert gallery == usual[1]
    script = (ROOT / "bdflow/report/report.js").read_text(encoding="utf-8")
    assert script in page
    assert script in usual[0]


def test_a_name_that_the_locale_cannot_write_is_said(settings, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path, study="Früh.zarr"), allow_unicode=True), encoding="utf-8")
    variables = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in (["status", file], ["status", "demo", "--set", "study=Früh.zarr"]):
        done = subprocess.run([BDFLOW, *command], capture_output=True, env=variables, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (1, False), done.stderr
        assert b"PYTHONUTF8=1" in done.stderr
