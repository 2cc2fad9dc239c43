"""What benchmarks say beforehand and print at the end; what they refuse before they begin."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from bdflow import api
from bdflow.benchmarks import machine, ridge_trials
from bdflow.benchmarks.machine import Needs, announce, check_output, fitted, write_json
from bdflow.cli.main import app
from bdflow.errors import InputError


def test_start_up_is_told_from_the_rate():
    start, rate = fitted([10, 40, 100], [3 + 10 / 5, 3 + 40 / 5, 3 + 100 / 5])
    assert (start, rate) == pytest.approx((3, 5))
    start, rate = fitted([10, 100], [1, 20])
    assert start == 0, "never below 0"
    assert 5 < rate < 10
    start, rate = fitted([10, 100], [4, 2])
    assert (start, rate) == (0, pytest.approx(26.25)), "times that fall are noise: the median rate, no start"


TWO_PROCESSES = """
import mmap, os, signal
shared = mmap.mmap(-1, 2**26)  # of both processes
shared.write(b"x" * 2**26)
child = os.fork()
if child == 0:
    shared.seek(0)
    shared.read()
    print("ready", flush=True)
    signal.pause()
held = []
for line in iter(lambda: os.read(0, 1), b"q"):
    held = [b"x" * 2**26] if line == b"+" else []
    print("done", flush=True)
os.kill(child, signal.SIGKILL)
"""


def test_memory_of_several_processes_is_counted_once(monkeypatch):
    counted, full = [], psutil.Process.memory_full_info
    monkeypatch.setattr(psutil.Process, "memory_full_info", lambda of: counted.append(of.pid) or full(of))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with psutil.Popen([sys.executable, "-c", TWO_PROCESSES], **pipes) as process:
        process.stdout.readline()
        memory = machine.PeakMemory(process)
        memory.look(memory.members())
        before, mapped = memory.peak, 2**26
        assert mapped < before < 1.9 * mapped, "pages of both processes count once"
        for _ in range(3):
            memory.look(memory.members())
        assert len(counted) == 2, "pages are counted again only when more are held"
        for key, more in ((b"+", 2**26), (b"-", 2**26)):
            process.stdin.write(key)
            process.stdout.readline()
            memory.look(memory.members())
            assert memory.peak - before == pytest.approx(more, rel=0.1), "the largest stays when it is given back"
        process.stdin.write(b"q")
    assert memory.members() == []
    memory.look([process])
    assert memory.peak - before == pytest.approx(2**26, rel=0.1), "what is gone is no error"


def test_the_time_of_the_processors_is_divided_up():
    with machine.ProcessorTime() as processors:
        began, until = time.perf_counter(), time.process_time() + 0.5
        while time.process_time() < until:
            sum(range(100_000))
        seconds = time.perf_counter() - began
    assert set(processors.shares) == {"programs", "system", "host", "idle"}
    assert sum(processors.shares.values()) == pytest.approx(1)
    assert processors.shares["programs"] > 0.4 * 0.5 / (seconds * psutil.cpu_count()), "at least this one program"


def test_it_says_what_it_will_take(tmp_path, capsys):
    announce("a benchmark", Needs(2**20, 1e6, (60, 300)), tmp_path)
    said = capsys.readouterr().out
    for words in ("a benchmark", "memory  about 0.0 GiB of", "disk    about 0.0 GB of", "60 s to 5 min 00 s"):
        assert words in said


@pytest.mark.parametrize(
    ("needs", "words"), [(Needs(0, 1e18, (1, 2)), "GB free"), (Needs(2**60, 0, (1, 2)), "GiB free")]
)
def test_what_does_not_fit_is_refused_beforehand(tmp_path, needs, words):
    with pytest.raises(InputError, match=words):
        announce("a benchmark", needs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_that_could_not_be_written_are_refused_beforehand(tmp_path):
    for file in (tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(InputError, match="file in a folder that is there"):
            check_output(file)
    check_output(tmp_path / "x.json")
    write_json(tmp_path / "x.json", {"a": 1})
    assert [(file.name, json.loads(file.read_text())) for file in tmp_path.iterdir()] == [("x.json", {"a": 1})]


def test_figures_stand_beside_limits_in_80_columns():
    shown = machine.table(
        [("whole stage", "135 GFLOP/s", "sgemm 159 GFLOP/s", 0.85), ("disk write", "0.39 GB/s", "", None)]
    )
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[-1] == "85%"
    assert lines[1].index("sgemm") == lines[0].index("limit")


def helped(name):
    done = CliRunner().invoke(app, ["bench", name, "--help"])
    assert done.exit_code == 0
    assert f"usage: bdflow bench {name}" in done.output
    assert "--json" in done.output


def test_every_benchmark_is_a_command_with_its_own_options():
    listed = CliRunner().invoke(app, ["bench", "--help"]).output
    assert all(name in listed for name in api.BENCHMARKS)
    helped("ingest")
    helped("gpu")
    assert CliRunner().invoke(app, ["bench", "ingest", "--no-such-option"]).exit_code == 2
    with pytest.raises(InputError, match="one of ridge, diffusion, ingest, gpu"):
        api.benchmark("rigde")


def test_without_a_gpu_it_says_so_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    report = tmp_path / "gpu.json"
    with pytest.raises(InputError, match="no GPU"):
        api.benchmark("gpu", ["--json", str(report), "--dir", str(tmp_path / "large")])
    assert list(tmp_path.iterdir()) == []
    api.benchmark("gpu", ["--list"])


def test_the_plot_has_a_tick_at_each_batch_size(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from bdflow.benchmarks.diffusion_plot import check_plot, plot

    seen = []
    set_xticks = Axes.set_xticks
    monkeypatch.setattr(Axes, "set_xticks", lambda self, *a, **k: seen.append(a) or set_xticks(self, *a, **k))
    rows = [
        {"switches": name, "dtype": "float32", "batch_size": batch, "images_a_second": rate * batch**0.5}
        for name, rate in (("plain", 1.0), ("all", 1.5), ("plain + channels_last", 1.1))
        for batch in (1, 3, 16)
    ]
    plot(rows, tmp_path / "plot.svg")
    assert seen == [([1, 3, 16], ["1", "3", "16"])]
    assert (tmp_path / "plot.svg").stat().st_size > 5000
    with pytest.raises(InputError, match=r"expected \.png, \.svg or \.pdf"):
        check_plot(tmp_path / "plot.gif")


@pytest.mark.slow(kind="benchmarks")
def test_painting_on_a_gpu_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU that torch can use"):
        api.benchmark("diffusion", ["--device", "cuda", "--json", str(tmp_path / "x.json")])
    assert list(tmp_path.iterdir()) == []


SMALLEST = {
    "ridge": ["--scale", "tiny", "--executor", "serial", "--runs", "1", "--no-comparison", "--dir", "{dir}"],
    "ingest": ["--trials", "64", "--shape", "50", "50", "40", "--voxels", "2000", "--rounds", "2", "--dir", "{dir}"],
    "diffusion": ["--steps", "4", "--batch-sizes", "1", "2", "--images", "2", "--no-switches"],
}
LIMITS = {"ridge": "sgemm", "ingest": "merely unpacked", "diffusion": "matrix products"}


@pytest.mark.slow(kind="benchmarks")
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_run_prints_limits_and_writes_what_a_plan_takes(name, settings, tmp_path, capsys):
    import yaml

    helped(name)
    capsys.readouterr()
    file, folder = tmp_path / f"{name}.json", tmp_path / "large"
    found = api.benchmark(name, [*(word.replace("{dir}", str(folder)) for word in SMALLEST[name]), "--json", str(file)])
    printed = capsys.readouterr()
    assert json.loads(file.read_text())["benchmark"] == name
    assert found["device"]["name"] in printed.out or name == "diffusion"
    assert LIMITS[name] in printed.out
    assert max(len(line) for line in printed.out.splitlines() if str(tmp_path) not in line) <= 96
    first = printed.out.splitlines()
    assert first[0].startswith(f"{name}: " if name != "ridge" else "ridge, ")
    assert ("% programs, " in printed.out) == (name == "ridge")
    assert "about" in first[1], "what it takes is said before anything is measured"
    assert not folder.exists() or not list(folder.iterdir()), "nothing is left behind"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(settings(tmp_path), default=str))))
    before, after = api.plan(config), api.plan(config, [file])
    measured = {key for key, rate in after.figures.rates.items() if rate.measured}
    assert (
        measured
        == {
            "ridge": {"core", "write", "start regress"},
            "ingest": {"unpack"},
            "diffusion": {"start reconstruct"},
        }[name]
    )
    assert (after.figures.image is not None) == (name == "diffusion")
    assert after.hours != before.hours
    assert Path(file).name in "\n".join(api.plan_text(after)[1])


@pytest.mark.slow(kind="benchmarks")
@pytest.mark.parametrize("method", ["k_fold", "k_fold_rows"])
def test_ridge_on_single_trials_of_two_spaces_in_one_run(method, tmp_path, capsys):
    """Both spaces of every subject, by the stage, from voxels of two regions."""
    words = ["--scale", "tiny", "--subjects", "2", "--method", method, "--threads", "1", "--dir", str(tmp_path)]
    found = ridge_trials.main([*words, "--json", str(tmp_path / "found.json")])
    counts = {space: sum(chosen.values()) for space, chosen in found["penalties"].items()}
    assert counts == {"z": 2 * 64, "c": 2 * 3 * 32}
    assert list(found["works"]) == ["systems", "cross-validation", "penalties", "hat matrices", "predictions"]
    assert json.loads((tmp_path / "found.json").read_text()) == found
    printed = capsys.readouterr().out
    for words in (
        "250 trials of each of 2 subjects, 7 penalties",
        "z: 60 voxels, 64 latents",
        "sgemm before and after",
    ):
        assert words in printed
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"], "nothing is left behind"
