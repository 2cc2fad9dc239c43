"""Bodies that nobody should send: whatever is in them, the answer says that it is the sender's fault."""

import io
import json
import zipfile
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdflow.serve.bodies import JSON, NPY, NPZ, Refusal
from bdflow.serve.replicas import Answer
from bdflow.serve.requests import latents, patterns
from tests.serve.test_serve import CAPABILITIES, LATENTS, PATTERN, Replica, ask, npy, npz, service, text


def status_of(read, kind, query, body) -> int:
    try:
        read(CAPABILITIES, kind, query, body)
    except Refusal as error:
        return error.status
    return 200


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=6), st.sampled_from([np.savez, np.savez_compressed]))
def test_a_damaged_body_is_a_refusal_or_a_request(at, other, save):
    """Whatever bytes come, nothing is raised but what has a status of the sender's."""
    for read, kind, query, body in (
        (latents, NPZ, [], npz(LATENTS, save)),
        (patterns, NPY, [("subject", "subj01")], npy(np.ones((2, 5)))),
        (patterns, JSON, [], text(PATTERN)),
    ):
        start = at % len(body)
        damaged = body[:start] + other + body[start + len(other) :]
        assert status_of(read, kind, query, damaged) in (200, *range(400, 500))


class Responses:
    """The rows of a subject whose third voxel is not decoded from."""

    path, sizes = "responses/subj01/averaged", {"voxel": 5}
    values: ClassVar = {
        "voxel_mean": np.zeros(5, np.float32),
        "voxel_scale": np.full(5, 0.01, np.float32),
        "valid": np.array([1, 1, 0, 1, 1]),
    }
    arrays: ClassVar = {"voxel_mean": SimpleNamespace(attrs={"units": "percent signal change"})}

    def read(self, name):
        return self.values[name]


def test_patterns_that_overflow_are_the_senders_fault():
    app, capacity = service()
    dispatcher = app.app.state.dispatcher
    dispatcher.responses = {"subj01": {"averaged": Responses()}}
    post, query = ("POST", "/v1/patterns"), "?subject=subj01&variant=only_vdvae"
    for body, kind in (
        (text({"subject": "subj01", "pattern": [1e39, 1, 1, 1, 1]}), JSON),
        (text({"subject": "subj01", "pattern": [3e38, 1, 1, 1, 1]}), JSON),  # overflows when it is z-scored
        (npy(np.full((2, 5), 1e300)), NPY),
    ):
        status, _, answer = ask(app, post[0], post[1] + (query if kind == NPY else ""), body, [("Content-Type", kind)])
        assert (status, b"not finite in float32" in answer) == (422, True)
    dispatcher.decoder = Replica(latents=lambda call, *asked: Answer({"vdvae": np.array([np.inf])}, batch=1, seconds=1))
    status, _, answer = ask(app, post[0], post[1] + query, npy(np.ones((1, 5))), [("Content-Type", NPY)])
    assert (status, b"not finite in float32" in answer) == (422, True)
    dispatcher.decoder = Replica(latents=lambda call, *asked: Answer({"vdvae": np.ones(6)}, batch=1, seconds=1))
    unused = npy(np.array([[1, 1, np.inf, 1, 1]]))
    assert ask(app, post[0], post[1] + query, unused, [("Content-Type", NPY)])[0] == 200
    assert (capacity.taken_items, capacity.taken_bytes) == (0, 0)


def test_patterns_in_another_unit_than_the_rows_are_refused():
    """And, of rows in two units, variants that need both."""
    body = text(PATTERN | {"units": "percent signal change"})
    assert patterns(CAPABILITIES, JSON, [], body).subject == "subj01"
    with pytest.raises(Refusal, match=r"'z'.*'percent signal change'") as caught:
        patterns(CAPABILITIES, JSON, [], text(PATTERN | {"units": "z"}))
    assert caught.value.status == 422
    two = replace(CAPABILITIES, units=CAPABILITIES.units | {"vdvae": "z"})
    for units in ("z", "percent signal change"):
        with pytest.raises(Refusal, match="in different units: vdvae z"):
            patterns(two, JSON, [], text(PATTERN | {"units": units}))
    assert patterns(two, JSON, [], text(PATTERN | {"units": "z", "variant": "only_vdvae"})).variant == "only_vdvae"
    with pytest.raises(Refusal, match=r"'percent signal change'.*'z'"):
        patterns(two, JSON, [], text(PATTERN | {"units": "percent signal change", "variant": "only_vdvae"}))


def test_text_that_no_encoding_holds_is_refused_too():
    app, _ = service()
    for content in ({"subject": "\ud800"}, {"\ud800": 1}, {"variant": "\udfff"}):
        body = json.dumps(PATTERN | content).encode()
        status, _, answer = ask(app, "POST", "/v1/patterns", body, [("Content-Type", JSON)])
        assert 400 <= status < 500
        json.loads(answer)


def test_two_arrays_of_one_name_are_refused():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("vdvae", "vdvae.npy"):
            archive.writestr(name, npy(LATENTS["vdvae"]))
    assert status_of(latents, NPZ, [("variant", "only_vdvae")], out.getvalue()) == 400
