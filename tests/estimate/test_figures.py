"""Figures of benchmarks in a plan: used where they are of the same thing, scaled by FLOP or refused where not."""

import copy
import json

import pytest

from bdflow.config import load
from bdflow.errors import InputError
from bdflow.estimate.figures import figures
from bdflow.estimate.rates import DEFAULTS
from bdflow.estimate.sizes import PUBLISHED

SWITCHES = {"joint_guidance": True, "cached_conditions": True, "channels_last": True, "attention": "fused"}
CPU, A100 = (
    {"kind": "cpu", "name": "AMD EPYC", "count": 2},
    {"kind": "gpu", "name": "NVIDIA A100-SXM4-80GB", "count": 1},
)
RIDGE = {
    "benchmark": "ridge", "device": CPU, "scale": "full", "sgemm (FLOP/s)": 160e9, "rate (FLOP/s)": 120e9,
    "start (s)": 9, "plain store reading (B/s)": 1e9, "disk write, disk read (B/s)": [4e8, 2e9],
    "arithmetic (FLOP)": 34e12,
}  # fmt: skip
INGEST = {
    "benchmark": "ingest", "device": {**CPU, "count": 1}, "trials": 750, "unpacked (B)": 1e9, "rate (B/s)": 5e8
}  # fmt: skip
DIFFUSION = {
    "benchmark": "diffusion", "device": A100, "matrix_flops": {"float16": 250e12}, "flop_an_image": 92.7e12,
    "steps": 50, "strength": 0.75, "bundle": {"name": "published size", "digest": None, "image": 512},
    "rows": [
        {"switches": name, "speed": {**SWITCHES, "compile": mode}, "dtype": "float16", "batch_size": batch,
         "seconds_an_image": seconds, "start_s": start, "peak_bytes": 5e9}
        for name, mode, batch, seconds, start in (
            ("defaults", "none", 1, 1.0, 20), ("defaults", "none", 16, 0.5, 20), ("defaults", "none", 64, 0.4, 20),
            ("compiled", "default", 16, 0.3, 200),
        )
    ],
}  # fmt: skip


def changed(content, **changes):
    """A copy with other values: of keys, of parts of keys (`device__name`), or of all rows (`rows__dtype`)."""
    found = copy.deepcopy(content)
    for path, value in changes.items():
        key, _, part = path.partition("__")
        for holder in found[key] if key == "rows" else [found[key]] if part else [found]:
            holder[part or key] = value
    return found


@pytest.fixture
def read(tmp_path):
    def make(*contents, overrides=(), gpu=None):
        files = []
        for number, content in enumerate(contents):
            files.append(tmp_path / f"{number}.json")
            files[-1].write_text(json.dumps(content))
        config = load("brain_diffuser", ["dataset.root=/nowhere", *overrides])
        return figures(files, config, PUBLISHED, gpu)

    return make


def test_figures_take_the_place_of_assumptions(read):
    found = read(RIDGE, INGEST, DIFFUSION)
    value = {name: rate.value for name, rate in found.rates.items() if rate.measured}
    assert value == {
        "core": 80e9, "ridge": 0.75, "read": 1e9, "write": 4e8, "start regress": 9, "unpack": 5e8,
        "gpu": 250e12, "start reconstruct": 20,
    }  # fmt: skip
    assert found.image is not None
    assert found.image.value == 0.5, "the row whose batch is that of the configuration"
    assert found.flop == pytest.approx(92.7e12, rel=1e-3)
    assert (found.gpu, found.why_gpu, found.peak_bytes) == ("NVIDIA A100-SXM4-80GB", "2.json", 5e9)
    assert found.notes == ()
    assert all(rate.within < DEFAULTS["start"].within for rate in found.rates.values() if rate.measured)


TINY = {"name": "tiny", "digest": "0", "image": 64}


@pytest.mark.parametrize(
    ("content", "gpu", "overrides", "words"),
    [
        (changed(DIFFUSION, device=CPU), None, (), "figures of a CPU .AMD EPYC.*those of a GPU"),
        (changed(RIDGE, device=A100), None, (), "figures of a GPU .*those of a CPU"),
        (RIDGE, None, ("execution.regress.gpus=1",), "figures of a CPU"),
        (DIFFUSION, "3090", (), "another GPU .NVIDIA A100.*RTX 3090 that --gpu names"),
        (changed(DIFFUSION, bundle=TINY, flop_an_image=0.02e12), None, (), "other networks .tiny: 64 px, 0.02 TFLOP"),
        (changed(DIFFUSION, flop_an_image=50e12), None, (), "other networks .published size: 512 px, 50 TFLOP"),
        (changed(DIFFUSION, rows__dtype="bfloat16"), None, (), "dtype bfloat16; expected those of float16"),
        (DIFFUSION, None, ("networks.dtype=float32",), "dtype float16; expected those of float32"),
        (DIFFUSION, None, ("networks.speed.compile=max_autotune",), "speed.compile default, none; .*max_autotune"),
    ],
)  # fmt: skip
def test_figures_of_something_else_are_refused(read, content, gpu, overrides, words):
    with pytest.raises(InputError, match=words) as error:
        read(content, gpu=gpu, overrides=overrides)
    assert "not scaled" in str(error.value)
    assert "leave this file out" in str(error.value)


def test_the_way_of_compiling_is_that_of_the_configuration(read):
    found = read(DIFFUSION, overrides=("networks.speed.compile=default",))
    assert (found.image.value, found.rates["start reconstruct"].value) == (0.3, 200)


def test_what_is_taken_for_another_thing_is_said(read):
    other = changed(DIFFUSION, rows__speed={**SWITCHES, "channels_last": False, "compile": "none"})
    notes = read(other, overrides=("painters.brain_diffuser.steps=20", "painters.brain_diffuser.batch_size=24")).notes
    assert len(notes) == 3
    assert "no row has all switches" in notes[0]
    assert "batch 16 is the nearest to painters.batch_size 24" in notes[1]
    assert "measured with 50 steps, scaled by FLOP to 20" in notes[2]


def test_what_took_too_little_to_tell_a_rate_is_not_used(read):
    small = changed(RIDGE, **{"scale": "tiny", "arithmetic (FLOP)": 6e8, "rate (FLOP/s)": 1e8})
    short = changed(INGEST, **{"unpacked (B)": 1e5})
    found = read(small, short)
    assert found.rates["ridge"] == DEFAULTS["ridge"]
    assert found.rates["read"] == DEFAULTS["read"]
    assert found.rates["unpack"] == DEFAULTS["unpack"]
    assert found.rates["core"].value == 80e9
    assert [note.split(":")[0] for note in found.notes] == ["0.json", "1.json"]


def test_checks_of_a_gpu_hold_figures(read):
    checks = {
        "graphs": {"ok": True, "found": None},
        "ridge-full-1": {"ok": True, "found": changed(RIDGE, device=A100)},
        "paint-eager": {"ok": True, "found": DIFFUSION},
        "paint-compiled": {"ok": False, "found": changed(DIFFUSION, rows__seconds_an_image=9)},
    }
    found = read(checks)
    assert found.image.value == 0.5
    assert len(found.notes) == 1
    assert "figures of a GPU" in found.notes[0], "ridge of this configuration runs on CPUs"
    found = read(checks, overrides=("execution.regress.gpus=1",))
    assert found.rates["gpu ridge"].value == 120e9
    with pytest.raises(InputError, match="none that measures passed"):
        read({"paint-eager": {"ok": False, "found": DIFFUSION}})
