"""What `bdflow plan` tells: formulas by hand, stores' sizes as on disk, figures of benchmarks, the demo."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bdflow.cli.main import app
from bdflow.config import load, parse
from bdflow.errors import InputError
from bdflow.estimate import sizes
from bdflow.estimate.devices import GPUS
from bdflow.estimate.figures import figures
from bdflow.estimate.plan import GIB, Machine, plan, ridge_flop
from bdflow.estimate.rates import DEFAULTS
from bdflow.estimate.sizes import PUBLISHED, PUBLISHED_STABLE, networks_of, sizes_of
from bdflow.estimate.stores import PlannedCounts, array_bytes, bytes_by_stage
from bdflow.estimate.table import lines, table
from bdflow.pipeline import STAGES, Pipeline, stages_until
from bdflow.stores import Store
from bdflow.study.graph import Graph
from tests.conftest import painter, spaces

MACHINE = Machine(cores=16, gpus=2, memory=128 * GIB, free=10**12)


def planned(*overrides, machine=MACHINE, files=(), judges=(), gpu=None):
    config = load("brain_diffuser", ["dataset.root=/nowhere", *overrides])
    networks = networks_of(config)
    found = figures(files, config, networks, gpu)
    return plan(graph_of(config), sizes_of(config), networks, found, machine, judges)


def graph_of(config):
    return Graph(config, [stage for stage in STAGES.values() if not stage.on_demand])


def stage(found, name):
    return next(row for row in found.stages if row.stage == name)


def test_the_paper_in_numbers():
    config = load("brain_diffuser", ["dataset.root=/nowhere"])
    sizes = sizes_of(config)
    assert sizes.stimuli == 982 + 4 * 8859 == 36_418
    assert sum(math.prod(shape) for shape in PUBLISHED.spaces.values()) == 347_680
    assert PUBLISHED.painting("full", 50, 0.75) == pytest.approx(92.7e12, rel=1e-3)
    assert PUBLISHED.painting("no_vdvae", 50, 0.75) == pytest.approx((100 * 1.203 + 2.51) * 1e12)
    assert PUBLISHED.painting("only_vdvae", 50, 0.75) == 0
    counts = PlannedCounts(config, sizes, PUBLISHED)
    targets = bytes_by_stage(graph_of(config), counts)["features"]
    exact = 36_418 * 347_680 * 2
    assert exact == pytest.approx(25.3e9, rel=1e-2)
    assert exact <= targets <= 1.07 * exact, "the last chunk of each part and block is whole"
    # benchmarks/ridge.py counts 34.2 TFLOP for these four subjects
    assert ridge_flop(config, counts) == pytest.approx(34.2e12, rel=5e-3)


def test_hours_follow_from_work_and_rate():
    found = planned()
    painting = stage(found, "reconstruct")
    guessed = 3928 * PUBLISHED.guessing / (2 * 0.45 * 0.8 * 19.5e12)  # in float32
    seconds = 3928 * PUBLISHED.painting("full", 50, 0.75) / (2 * 0.45 * 0.8 * 312e12) + guessed
    seconds += DEFAULTS["start"].value
    assert painting.hours == pytest.approx(seconds / 3600)
    assert painting.gpu_hours == pytest.approx(2 * seconds / 3600)
    assert "3,928 images" in painting.work
    assert found.hours == pytest.approx(sum(row.hours for row in found.stages))
    four = stage(planned("execution.reconstruct.workers=4"), "reconstruct")
    assert four.hours - DEFAULTS["start"].value / 3600 == pytest.approx(seconds / 7200, rel=0.05)


def test_what_is_asked_for_costs():
    plain = "painters.brain_diffuser.controls=[]"
    usual, all_parts = (
        planned(plain),
        planned(
            plain,
            "painters.brain_diffuser.variants=[full, only_vdvae, no_vdvae, no_clip_text, no_clip_vision]",
            "reconstruct.subject_mean=true",
            "reconstruct.upper_bound=true",
        ),
    )
    assert "23,568 images" in stage(all_parts, "reconstruct").work, "982 x 6 of everybody x 4 that are painted"
    assert stage(all_parts, "reconstruct").disk > 7 * stage(usual, "reconstruct").disk
    weights = planned(plain, "ridge.weights=true")
    controls = planned("painters.brain_diffuser.controls=[prior, retrieval, mean_image]")
    assert stage(controls, "reconstruct").disk > 3.5 * stage(usual, "reconstruct").disk, "thrice as many again"
    more = stage(weights, "regress").disk - stage(usual, "regress").disk
    assert more == pytest.approx(4 * 347_680 * (15724 + 14278 + 13039 + 12682), rel=0.1)
    config, chosen = (
        load("brain_diffuser", ["dataset.root=/nowhere", *more]) for more in ((), ["ridge.choose=per_space"])
    )
    counts = [PlannedCounts(of, sizes_of(of), PUBLISHED) for of in (config, chosen)]
    assert ridge_flop(chosen, counts[1]) > ridge_flop(config, counts[0])


def test_judges_without_weights_cost_nothing():
    assert stage(planned(judges=("CLIP",)), "evaluate").hours > stage(planned(), "evaluate").hours


def test_what_is_short_is_said():
    assert planned().warnings == ()
    short = planned(
        "execution.reconstruct.memory=1 GiB", machine=Machine(cores=2, gpus=1, memory=2 * GIB, free=10**9)
    ).warnings
    for words in ("execution.reconstruct.memory is 1.0 GiB", "2 GPUs asked for", "disk: up to", "take fewer workers"):
        assert any(words in warning for warning in short), words
    at_address = planned(
        "cluster={kind: address, address: {ray: host:6379}}", machine=replace(MACHINE, gpus=0)
    ).warnings
    assert not [warning for warning in at_address if "reconstruct" in warning]


def test_no_data_and_nothing_known_is_refused():
    for odd in ("subjects=[subj03]", "dataset.sessions=12", "dataset.mask=V1"):
        with pytest.raises(InputError, match="no NSD there"):
            planned(odd)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"benchmark": "diffusion", "rows": []}', '{"benchmark": "x"}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json"):
        planned(files=[tmp_path / "x.json"])


def test_a_range_from_best_to_worst():
    found = planned()
    for row in found.stages:
        assert 0 < row.least_hours < row.hours < row.most_hours
    painting = stage(found, "reconstruct")
    work, start = painting.hours - 6 / 3600, 6 / 3600
    factor = DEFAULTS["painting on gpu"].within * 1.25
    assert painting.most_hours == pytest.approx(work * factor + start * 2.5)
    assert painting.least_hours == pytest.approx(work / factor + start / 2.5)
    assert found.range[0] < found.hours < found.range[1]


def test_gpus_by_name():
    half = "networks.vdvae_dtype=float16"
    hours = {name: stage(planned(half, gpu=name), "reconstruct").hours - 6 / 3600 for name in GPUS}
    assert hours["3090"] / hours["a100"] == pytest.approx(312 / 71)
    assert hours["a100"] / hours["h100"] == pytest.approx(989 / 312)
    assert planned().figures.gpu == "A100"
    single = stage(planned("networks.dtype=float32", gpu="a100"), "reconstruct").hours - 6 / 3600
    assert single / hours["a100"] == pytest.approx(312 / 19.5)
    large = planned("painters.brain_diffuser.batch_size=64", gpu="3090").warnings
    assert any("of its GPU" in warning and "RTX 3090 has 24.0 GiB" in warning for warning in large)
    with pytest.raises(InputError, match="a100, 3090"):
        planned(gpu="abacus")


def test_the_vdvae_is_weighed_in_its_own_precision():
    """By hand: 125 million parameters of 4 instead of 2 bytes; its FLOP at the rate of float32."""
    assert load("brain_diffuser").networks.vdvae_dtype == "float32"
    single, half = planned(gpu="h100"), planned("networks.vdvae_dtype=float16", gpu="h100")
    vdvae = PUBLISHED.vdvae
    assert vdvae.parameters == 125_005_860
    for name, batch in (("reconstruct", 0), ("features", load("brain_diffuser").features.batch_size)):
        more = 2 * (vdvae.parameters + batch * vdvae.values)
        assert stage(single, name).gpu_memory - stage(half, name).gpu_memory == pytest.approx(more, abs=2)
    flop = 3928 * vdvae.decoding
    more = flop / (2 * 0.45 * 0.8) * (1 / 67e12 - 1 / 989e12) / 3600
    assert stage(single, "reconstruct").hours - stage(half, "reconstruct").hours == pytest.approx(more)
    large = "painters.brain_diffuser.batch_size=64"
    item = (stage(planned(large), "reconstruct").gpu_memory - stage(planned(), "reconstruct").gpu_memory) / 48
    assert item == GIB > 4 * vdvae.values, "the UNet's share of a batch is larger than the VDVAE's"


def test_the_command(tmp_path):
    done = CliRunner().invoke(app, ["plan", "brain_diffuser", "--set", "dataset.root=/nowhere"])
    assert done.exit_code == 0
    for words in ("ingest", "3,928 images", "assumed:", "NSD as published", "GPU-hours", "within a factor of", "A100"):
        assert words in done.output
    done = CliRunner().invoke(app, ["plan", "brain_diffuser", "--json", "--gpu=3090", "--set=dataset.root=/nowhere"])
    content = json.loads(done.stdout)
    assert [row["stage"] for row in content["stages"]] == ["ingest", "features", "regress", "reconstruct", "evaluate"]
    assert content["gpu"] == {"name": "RTX 3090", "source": "--gpu"}
    assert content["total"]["least_hours"] < content["total"]["hours"] < content["total"]["most_hours"]
    assert content["total"]["disk"] == sum(row["disk"] for row in content["stages"])


def test_sizes_come_from_the_files_where_they_are(settings, tmp_path):
    found = sizes_of(parse(settings(tmp_path)))
    assert (found.test, found.stimuli, found.photo) == (6, 46, (64, 64))
    of_each = {(of.train, of.test, of.sessions, of.train_trials) for of in found.subjects.values()}
    assert of_each == {(20, 6, 3, 60)}
    assert "files below" in found.source


@pytest.mark.slow(kind="whole studies from outside")
def test_small_networks_are_counted(settings, tmp_path):
    found = networks_of(parse(settings(tmp_path)))
    assert "counted" in found.source
    assert found.step > 0
    assert found.encoding > 0
    assert found.decoding > found.encoding
    assert found.painting("full", 8, 0.75) == pytest.approx(3.65e9, rel=0.03), "as counted when all of it is run"
    assert set(found.spaces) == set(sizes.PUBLISHED.spaces)


@pytest.mark.slow(kind="whole studies from outside")
@pytest.mark.parametrize("choose", ["fixed", "per_target"])
def test_stores_are_as_large_as_was_told(settings, tmp_path, choose):
    config = parse(
        settings(tmp_path, painters=painter(steps=2), reconstruct={"subject_mean": True, "upper_bound": True})
        | {"spaces": spaces(clip_text={"weights": True}), "ridge": {"choose": choose, "validation": {"stimuli": 8}}}
    )
    graph, counts = graph_of(config), PlannedCounts(config, sizes_of(config), networks_of(config))
    told = {key: decl.layout(counts) for key, decl in graph.decls.items()}
    Pipeline(config).run(tuple(stages_until("evaluate")))
    for path, (spec, axes) in told.items():
        store = Store(config.study, path)
        sizes = {dim: store.sizes[dim] for dim in axes if dim in store.sizes}
        assert {dim: n for dim, n in axes.items() if dim in sizes and dim != "metric"} == {
            dim: n for dim, n in sizes.items() if dim != "metric"
        }, path
        for array in spec.arrays:
            if array.codec == "raw" and array.dtype != "str" and "metric" not in array.dims:
                files = (Path(config.study) / path / array.name / "c").rglob("*")
                stored = sum(file.stat().st_size for file in files if file.is_file())
                assert stored == array_bytes(array, axes), (path, array.name)


TAKAGI = ("dataset.root=/nowhere", "dataset.mask=nsdgeneral", "spaces.z.ridge.regions=V1", "spaces.c.ridge.regions=hV4")


def test_stable_diffusion_costs_what_it_does():
    """By hand: 40 of 50 steps with both halves, two encodings and two decodings, five pictures; both systems add up."""
    config = load("takagi_nishimoto", TAKAGI)
    networks = networks_of(config)
    assert networks.painter("stable_diffusion") is PUBLISHED_STABLE
    found = plan(graph_of(config), sizes_of(config), networks, figures((), config, networks), MACHINE, ())
    painted = 1.12e12 + 80 * 0.803e12 + 2.51e12
    assert PUBLISHED_STABLE.painting("full", 50, 0.8) == pytest.approx(painted)
    assert PUBLISHED_STABLE.painting("only_c", 50, 0.8) == pytest.approx(100 * 0.803e12 + 2.51e12)
    assert f"{3928 * (5 * painted + 0.974e12) / 1e12:,.1f} TFLOP" in stage(found, "reconstruct").work
    assert f"{36_418 * (0.428e12 + 5 * 0.0133e12) / 1e12:,.1f} TFLOP" in stage(found, "features").work
    paper = load("brain_diffuser", ["dataset.root=/nowhere"])
    spaces = {name: of.model_dump() for each in (config, paper) for name, of in each.spaces.items()}
    painters = {name: of.model_dump() for each in (config, paper) for name, of in each.painters.items()}
    both = parse(config.model_dump() | {"spaces": spaces, "painters": painters})
    together, alone = (
        plan(graph_of(of), sizes_of(of), networks, figures((), of, networks), MACHINE, ())
        for of, networks in ((both, networks_of(both)), (paper, networks_of(paper)))
    )
    hours = [stage(each, "reconstruct").hours - DEFAULTS["start"].value / 3600 for each in (together, alone, found)]
    assert hours[0] == pytest.approx(hours[1] + hours[2])
    photo = PUBLISHED.features + PUBLISHED_STABLE.features
    assert f"{36_418 * photo / 1e12:,.1f} TFLOP" in stage(together, "features").work


def test_a_bundle_without_the_networks_that_are_used_is_refused():
    config, alone = load("takagi_nishimoto", TAKAGI), replace(PUBLISHED, stable=None)
    with pytest.raises(InputError, match="without Stable Diffusion"):
        plan(graph_of(config), sizes_of(config), alone, figures((), config, alone), MACHINE, ())


@pytest.mark.slow(kind="whole studies from outside")
def test_small_networks_of_stable_diffusion_are_counted(settings, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    from bdflow.config import PaintOptions, SpeedSettings
    from bdflow.models.stable_diffusion.painter import StablePainter

    found = networks_of(parse(settings(tmp_path))).painter("stable_diffusion")
    assert (found.guess, found.image, found.spaces) == (40, 64, {"sd_vae": (400,), "sd_text": (24, 96)})
    # torch counts nothing of fused attention on a CPU
    speed = SpeedSettings(joint_guidance=False, cached_conditions=False, attention="plain")
    painter = StablePainter("tiny", options=PaintOptions(steps=10, strength=0.8), speed=speed)
    z, c = np.zeros((1, 400), np.float32), np.zeros((1, 24, 96), np.float32)
    inputs = painter.paint_inputs(painter.decode_guesses(painter.guess_inputs(z, "plan", [0])), None, c, "plan", [0])
    with FlopCounterMode(display=False) as counter:
        painter.paint_prepared(inputs)
    assert found.painting("full", 10, 0.8) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_page_shows_what_is_planned_today():
    """On the machine that it names; a test of no rate, but whoever changes one prints the page's example anew."""
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    found = planned(machine=Machine(cores=2, gpus=0, memory=20 * GIB, free=50 * 10**9))
    rows = [re.split(r"\s{2,}", line.strip()) for line in page.splitlines()]
    cells = zip(*(list(column.cells) for column in table(found).columns), strict=True)
    for row in cells:
        assert [cell for cell in row if cell] in rows
    told = " ".join(page.split())
    for line in lines(found):
        assert " ".join(line.split()) in told
