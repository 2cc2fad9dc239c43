"""The graph of stores: what steps need and fill is what the stages declare."""

import pickle

import pytest

from bdflow.config import parse
from bdflow.pipeline import ON_DEMAND, STAGES, Pipeline
from bdflow.study import keys
from bdflow.study.graph import Graph, StoreDecl
from bdflow.study.stage import Context
from tests.conftest import painter, spaces


@pytest.fixture
def pipeline(settings, tmp_path) -> Pipeline:
    """Every kind of store."""
    content = settings(
        tmp_path,
        ridge={"choose": "per_space", "standardise": "held_out", "weights": True},
        spaces=spaces(clip_text={"choose": "per_target", "rows": "trials", "regions": "V1 | V2"}),
        painters=painter(variants=["full", "only_vdvae"]) | {"second": {"steps": 2, "variants": ["no_vdvae"]}},
        reconstruct={"subject_mean": True, "upper_bound": True},
        evaluate={"metrics": ["PixCorr", "CLIP (bundle)"]},
        roi={"sets": {"areas": ["V1"]}},
        encode={"sets": {"both": ["vdvae", "clip_text"]}},
    )
    return Pipeline(parse(content))


def test_every_declared_store_is_filled_by_one_step_that_needs_what_it_is_made_from(pipeline):
    context, graph = pipeline.context(), pipeline.graph()
    filled: dict[str, str] = {}
    for name, stage in STAGES.items():
        made: set[str] = set()
        for step in stage.steps(context):
            for key in step.fills:
                assert key not in filled, key
                assert graph.stages[key] == name
                filled[key] = step.label
                lacking = set(graph.decls[key].upstream) - {*step.needs, *step.fills}
                assert not lacking, f"{key} is made from {lacking}, which its step does not need"
            assert set(step.needs) <= {*filled}, "what a step needs is filled before"
            made |= set(step.fills)
    assert filled.keys() == graph.decls.keys()


def test_keys_are_unique_and_stages_declare_in_order(pipeline):
    class Twice:
        name, method = "twice", 1

        def stores(self, config):
            yield StoreDecl("a", None)
            yield StoreDecl("a", None)

    class Early(Twice):
        def stores(self, config):
            yield StoreDecl("a", None, upstream=("b",))

    for stage in (Twice(), Early()):
        with pytest.raises(ValueError, match="declares a, twice or before"):
            Graph(pipeline.config, [stage])


def test_a_mended_stage_makes_its_stores_and_all_that_follow_stale(pipeline, monkeypatch):
    before = pipeline.graph().provenances()
    monkeypatch.setattr(type(STAGES["features"]), "method", 2)
    after = pipeline.graph().provenances()
    stale = {key for key in before if before[key].fingerprint != after[key].fingerprint}
    kinds = {keys.kind(key) for key in stale}
    assert {"targets", "predictions", "guesses", "metrics", "encoding"} <= kinds
    assert not {"betas", "stimuli", "responses", "systems"} & kinds


def test_what_a_mended_method_means_is_said(pipeline, monkeypatch):
    pipeline.run(("ingest",))
    now = STAGES["ingest"].method
    monkeypatch.setattr(type(STAGES["ingest"]), "method", now + 1)
    (row,) = [row for row in pipeline.status() if row.path == "stimuli/shared"]
    assert row.state.why == [f"made by method {now} of the stage, which is now at {now + 1}: a mistake was mended"]


def test_a_context_travels_without_what_only_the_driver_needs(pipeline):
    context = pipeline.context()
    there: Context = pickle.loads(pickle.dumps(context))
    assert (there.config, there.subjects, there.expected) == (context.config, context.subjects, context.expected)
    assert (there.decls, there.counts) == ({}, None)
    with pytest.raises(ValueError, match="declared by the driver"):
        there.declare("stimuli/shared", {})


def test_stages_on_demand_are_left_out_of_a_run():
    assert ON_DEMAND == ("roi", "encoding_features", "encode")


@pytest.mark.slow(kind="recipes")
def test_two_painters_share_a_study_and_stand_side_by_side(pipeline, tmp_path):
    pipeline.run()
    states = {row.path: row.state.kind for row in pipeline.status()}
    assert set(states.values()) == {"sealed"}
    assert "reconstructions/second/subj01/no_vdvae" in states
    assert "guesses/second/subj01" not in states, "a variant without a guess needs none"
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "brain_diffuser/full" in page
    assert "second/no_vdvae" in page
