"""The public API: light to import, typed, the same as what the command line does; studies opened by names."""

import subprocess
import sys

import numpy as np
import pytest
import xarray

import bdflow
from bdflow import api
from bdflow.config import parse
from bdflow.datasets.nsd import NSD


def test_importing_it_is_light_and_every_name_is_there():
    code = """
import sys, bdflow, bdflow.api
heavy = {"torch", "ray", "dask", "distributed", "sklearn", "xarray", "zarr", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in bdflow.__all__:
        assert getattr(bdflow, name) is not None
    assert set(bdflow.__all__) <= set(dir(bdflow))
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        bdflow.paint


@pytest.fixture(scope="module")
def decoded(settings, tmp_path_factory):
    """A configuration whose study is filled up to `regress`, by the API."""
    config = parse(settings(tmp_path_factory.mktemp("api")))
    bdflow.run(config, until="regress")
    return config


def test_status_and_plan(decoded):
    states = {row.path: row.state.kind for row in bdflow.status(decoded)}
    assert states["betas/subj01"] == states["predictions/subj02/clip_text"] == "sealed"
    assert states["guesses/brain_diffuser/subj01"] == "absent"
    assert {timing.stage for timing in api.timings(decoded)} == {"ingest", "features", "regress"}
    assert bdflow.plan(decoded).as_json()
    assert not api.verify(decoded)


def test_stages_that_are_none_are_refused(decoded):
    for options, words in (
        ({"only": "paint"}, "a stage: ingest"),
        ({"until": "report", "only": "ingest"}, "found both"),
    ):
        with pytest.raises(bdflow.InputError, match=words):
            bdflow.run(decoded, **options)
    with pytest.raises(bdflow.InputError, match="subj09"):
        bdflow.run(decoded, subjects=["subj09"])


def test_decoding_test_responses_gives_the_stored_predictions(decoded):
    study = bdflow.open_study(decoded.study)
    latent = study["predictions/subj01/clip_vision"].latent
    responses = study["responses/subj01/averaged"].response.sel(stimulus_id=latent.stimulus_id.values)
    found = bdflow.decode(decoded, responses.values.astype("f4"), "subj01")
    assert set(found.children) == {"vdvae", "clip_vision", "clip_text"}
    np.testing.assert_allclose(found["clip_vision"].latent, latent, atol=2e-3)
    for space, names in {"vdvae": ("layer", "channel", "layer_y", "layer_x"), "clip_text": ("token_kind",)}.items():
        for name in names:
            stored = study[f"predictions/subj01/{space}"][name]
            assert found[space].latent[name].values.tolist() == stored.values.tolist()
    with pytest.raises(bdflow.InputError, match="test_set, held_out, none"):
        bdflow.decode(decoded, responses.values, "subj01", standardise="some")


def test_decoded_rows_keep_their_names_and_voxels_are_compared(decoded):
    study = bdflow.open_study(decoded.study)
    betas = study["betas/subj01"]
    rows = study["responses/subj01/averaged"].response.isel(stimulus_id=slice(3)).load()
    rows = rows.assign_coords({axis: ("voxel", betas[axis].values) for axis in "ijk"})
    rows = rows.assign_coords(shown=("stimulus_id", [3, 1, 2]), area="all")
    plain = bdflow.decode(decoded, rows.values, "subj01")
    found = bdflow.decode(decoded, rows.transpose(), "subj01")
    for space in ("vdvae", "clip_vision", "clip_text"):
        latent = found[space].latent
        np.testing.assert_array_equal(latent, plain[space].latent)
        assert plain[space].latent.dims == ("pattern", *latent.dims[1:])
        assert latent.dims[0] == "stimulus_id"
        assert latent.stimulus_id.values.tolist() == rows.stimulus_id.values.tolist()
        assert (latent.shown.values.tolist(), latent.area.item()) == ([3, 1, 2], "all")
        assert "i" not in latent.coords
        one = rows.stimulus_id.values[1]
        np.testing.assert_array_equal(latent.sel(stimulus_id=one), plain[space].latent[1])
    unnamed = bdflow.decode(decoded, xarray.DataArray(rows.values, dims=("run", "place")), "subj01")
    assert unnamed["clip_text"].latent.dims == ("run", "token", "feature")
    for patterns, words in (
        (rows.isel(voxel=slice(None, None, -1)), r"other voxels, or they are in another order"),
        (rows.rename(stimulus_id="token"), "rows along a dimension named `token`"),
        (rows.assign_coords(token_kind=("stimulus_id", [1, 2, 3])), "latents have too: token_kind"),
        (rows.isel(voxel=slice(1, None)), "an array of shape"),
        (rows[0], "an array of shape"),
    ):
        with pytest.raises(bdflow.InputError, match=words):
            bdflow.decode(decoded, patterns, "subj01")


def test_a_study_is_opened_lazily_by_ids_and_names(decoded, nsd):
    study = bdflow.open_study(decoded.study)
    assert isinstance(study, xarray.DataTree)
    assert "runs" not in study.children
    stimuli, betas = study["stimuli/subj01"], study["betas/subj01"]
    assert stimuli.image.chunks is not None
    one = str(stimuli.stimulus_id[3].values)
    np.testing.assert_array_equal(stimuli.image.sel(stimulus_id=one), stimuli.image[3])
    trials = betas.beta.sel(stimulus_id=one)
    assert (trials.stimulus_id == one).all()
    assert "written" not in betas
    area = betas.roi.sel(region="prf-visualrois/V1v")
    assert area.chunks is not None
    at = tuple(betas[axis].values for axis in "ijk")
    np.testing.assert_array_equal(area.values, NSD(nsd).roi("subj01", "prf-visualrois").data[at] == 1)
    assert area.values.any()


@pytest.mark.slow(kind="long checks")
def test_a_study_in_an_object_store_is_opened(settings, tmp_path, s3):
    config = parse(settings(tmp_path, study=f"{s3.bucket}/study.zarr"))
    bdflow.run(config, until="ingest")
    study = bdflow.open_study(str(config.study))
    assert study["betas/subj01"].beta.shape[0] == 78
    assert np.isfinite(study["betas/subj01"].beta.values).any()


def test_no_study_is_refused(tmp_path):
    with pytest.raises(bdflow.NotReady, match="found no study"):
        bdflow.open_study(tmp_path / "none.zarr")


def test_simulate_takes_options_or_sizes(tmp_path):
    from bdflow.simulation.dataset import SimulateOptions

    with pytest.raises(bdflow.InputError, match="one of them"):
        bdflow.simulate(tmp_path / "x", SimulateOptions(), shared=3)
