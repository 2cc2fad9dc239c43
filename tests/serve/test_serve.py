"""The service without Ray: what is read and refused, how batches form, what is done when a replica dies."""

import asyncio
import io
import json
import threading
import zipfile

import numpy as np
import pytest
import yaml
from ray.exceptions import ActorDiedError
from typer.testing import CliRunner

from bdflow.cli.main import app as command
from bdflow.errors import InputError
from bdflow.serve import dispatcher, http
from bdflow.serve.bodies import JSON, NPY, NPZ, Refusal
from bdflow.serve.dispatcher import Capacity, Counts, Dispatcher, Health
from bdflow.serve.replicas import Answer, Batcher
from bdflow.serve.requests import Capabilities, latents, patterns
from bdflow.serve.service import MIB, ServeOptions
from bdflow.stores import NotReady

SPACES = {"vdvae": (6,), "clip_vision": (3, 2), "clip_text": (2, 2)}
VARIANTS = {"full": tuple(SPACES), "only_vdvae": ("vdvae",), "no_vdvae": ("clip_vision", "clip_text")}
UNITS = dict.fromkeys(SPACES, "percent signal change")
CAPABILITIES = Capabilities(
    {"subj01": 5}, SPACES, UNITS, VARIANTS, {"subj01": ("test_set", "none")}, "test_set", items=4, nbytes=4096
)
PATTERN = {"subject": "subj01", "pattern": [[1, 2, 3, 4, 5.5]] * 2}
LATENTS = {name: np.ones((2, *shape), np.float32) for name, shape in SPACES.items()}
TOKEN = "a-token-of-some-length"


def npy(array, **how) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **how)
    return out.getvalue()


def npz(arrays, save=np.savez) -> bytes:
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()


def text(content) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize("values", [np.ones((2, 5)), np.ones((2, 5), "f2", order="F"), np.ones(5, "i4")])
def test_patterns_as_npy_are_those_of_json(values):
    query = [("subject", "subj01"), ("seed", "3"), ("variant", "no_vdvae")]
    checked = patterns(CAPABILITIES, NPY, query, npy(values))
    same = patterns(
        CAPABILITIES, JSON + "; charset=utf-8", [], text(dict(query) | {"seed": 3, "pattern": values.tolist()})
    )
    np.testing.assert_array_equal(checked.values, same.values)
    assert checked.rule == same.rule == "test_set"
    assert checked.draws == same.draws == ("3",) * len(np.atleast_2d(values))
    assert (checked.subject, checked.variant, checked.noise) == ("subj01", "no_vdvae", "serve")


def test_numbers_of_noise():
    query = [("subject", "subj01"), ("stimulus_id", "00007"), ("stimulus_id", "00009")]
    checked = patterns(CAPABILITIES, NPY, query, npy(np.ones((2, 5))))
    assert (checked.noise, checked.draws) == ("subj01", ("00007", "00009"))
    assert patterns(CAPABILITIES, JSON, [], text(PATTERN | {"seed": [1, 2]})).draws == ("1", "2")


def test_latents_of_what_the_variant_uses():
    checked = latents(CAPABILITIES, NPZ, [], npz(LATENTS))
    assert {name: array.shape for name, array in checked.values.items()} == {n: (2, *s) for n, s in SPACES.items()}
    assert (checked.subject, checked.rule, checked.draws) == ("", "none", ("0", "0"))
    one = {"latents": {"vdvae": [1] * 6}, "variant": "only_vdvae"}
    assert latents(CAPABILITIES, JSON, [], text(one)).values["vdvae"].shape == (1, 6)
    packed = latents(
        CAPABILITIES, NPZ, [("standardise", "test_set"), ("subject", "subj01")], npz(LATENTS, np.savez_compressed)
    )
    assert packed.rule == "test_set"


REFUSED = {
    "not json": (patterns, 400, JSON, b"{"),
    "deep": (patterns, 400, JSON, b"[" * 100_000),
    "not an object": (patterns, 400, JSON, b"[]"),
    "bytes": (patterns, 400, JSON, b"\xff\xfe"),
    "kind": (patterns, 415, "text/plain", b""),
    "other's kind": (patterns, 415, NPZ, npz({"a": np.ones(1)})),
    "unknown key": (patterns, 422, JSON, text(PATTERN | {"patern": 1})),
    "subject": (patterns, 404, JSON, text(PATTERN | {"subject": "subj09"})),
    "no subject": (patterns, 422, JSON, text({"pattern": [[1] * 5]})),
    "variant": (patterns, 422, JSON, text(PATTERN | {"variant": "all"})),
    "seed": (patterns, 422, JSON, text(PATTERN | {"seed": -1})),
    "seeds": (patterns, 422, JSON, text(PATTERN | {"seed": [1, 2, 3]})),
    "both": (patterns, 422, JSON, text(PATTERN | {"seed": 1, "stimulus_id": "00002"})),
    "rule": (patterns, 422, JSON, text(PATTERN | {"standardise": "other"})),
    "rule not stored": (patterns, 422, JSON, text(PATTERN | {"standardise": "held_out"})),
    "voxels": (patterns, 422, JSON, text(PATTERN | {"pattern": [[1] * 6]})),
    "ragged": (patterns, 422, JSON, text(PATTERN | {"pattern": [[1], [1, 2]]})),
    "words": (patterns, 422, JSON, text(PATTERN | {"pattern": [["1"] * 5]})),
    "nothing": (patterns, 422, JSON, text(PATTERN | {"pattern": [[]]})),
    "none": (patterns, 422, JSON, text(PATTERN | {"pattern": None})),
    "huge": (patterns, 422, JSON, text(PATTERN | {"pattern": [[10**400] * 5]})),
    "items": (patterns, 413, JSON, text(PATTERN | {"pattern": [[1] * 5] * 5})),
    "no npy": (patterns, 400, NPY, b"hello"),
    "short npy": (patterns, 400, NPY, npy(np.ones((2, 5)))[:-8]),
    "lying npy": (patterns, 400, NPY, npy(np.ones((2, 5))).replace(b"(2, 5)", b"(9, 9)")),
    "objects": (patterns, 422, NPY, npy(np.array([{}]), allow_pickle=True)),
    "complex": (patterns, 422, NPY, npy(np.ones((2, 5), complex))),
    "negative sizes": (patterns, 400, NPY, npy(np.ones((2, 5))).replace(b"(2, 5)", b"(-2,-5)")),
    "one negative size": (patterns, 400, NPY, npy(np.ones((2, 5))).replace(b"(2, 5)", b"(-1,5)")),
    "sizes without values": (
        patterns,
        400,
        NPY,
        npy(np.ones((0, 5))).replace(b"(0, 5), }", b"(0, 99999999999999999999), }"),
    ),
    "no values": (patterns, 422, NPY, npy(np.ones((0, 5)))),
    "endless header": (patterns, 400, NPY, npy(np.ones(5)).replace(b"(5,), }", b"(5,+    ")),
    "unhashable header": (patterns, 400, NPY, npy(np.ones(5)).replace(b"{'descr'", b"{{}:   1")),
    "key twice": (patterns, 400, JSON, b'{"subject": "subj01", "seed": 1, "seed": 2, "pattern": [1, 2, 3, 4, 5]}'),
    "a truth for a number": (patterns, 422, JSON, text(PATTERN | {"seed": True})),
    "no npz": (latents, 400, NPZ, b"PK\x03\x04 hello"),
    "bomb": (latents, 413, NPZ, npz({"vdvae": np.zeros((4, 10_000))}, np.savez_compressed)),
    "space": (latents, 422, NPZ, npz(LATENTS | {"vdave": np.ones(1)})),
    "missing space": (latents, 422, NPZ, npz({"vdvae": LATENTS["vdvae"]})),
    "shape": (latents, 422, NPZ, npz(LATENTS | {"clip_text": np.ones((2, 2, 3))})),
    "unequal": (latents, 422, NPZ, npz(LATENTS | {"clip_text": np.ones((1, 2, 2))})),
    "overflow in json": (latents, 422, JSON, text({"latents": {"vdvae": [1e39] * 6}, "variant": "only_vdvae"})),
    "not finite": (latents, 422, NPZ, npz(LATENTS | {"clip_text": np.full((2, 2, 2), 1e300)})),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    read, status, kind, body = REFUSED[case]
    with pytest.raises(Refusal) as caught:
        read(CAPABILITIES, kind, [] if read is latents or kind == JSON else [("subject", "subj01")], body)
    assert caught.value.status == status, caught.value
    assert caught.value.action


def test_a_query_beside_json_and_a_rule_without_a_subject_are_refused():
    with pytest.raises(Refusal, match="beside a JSON body"):
        patterns(CAPABILITIES, JSON, [("seed", "1")], text(PATTERN))
    with pytest.raises(Refusal, match="subject"):
        latents(CAPABILITIES, NPZ, [("standardise", "test_set")], npz(LATENTS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "0.0.0.0"},
        {"host": "example.org"},
        {"host": "::"},
        {"host": "0.0.0.0", "token": None},
        {"token": "short"},
        {"token": "a token with\na line break"},
        {"items": 0},
        {"waiting": 3},
    ],
)
def test_options_that_are_refused(wrong):
    with pytest.raises(InputError):
        ServeOptions(**wrong)


def test_options_that_are_not():
    for host in ("127.0.0.1", "localhost", "::1", "127.8.0.1"):
        assert ServeOptions(host=host).host == host
    assert ServeOptions(host="0.0.0.0", token=TOKEN).token == TOKEN


# --- batches --------------------------------------------------------------------------------------------------


def test_batches_fill_while_one_is_worked_and_hold_one_kind():
    seen, go = [], threading.Event()

    def work(kind, items):
        seen.append((kind, list(items)))
        go.wait(10)
        if kind == "bad":
            raise ValueError("no")
        return [item * 2 for item in items]

    async def main():
        batch = Batcher(work, 3)
        first = asyncio.ensure_future(batch("a", 0))
        while not seen:
            await asyncio.sleep(0.01)
        rest = [asyncio.ensure_future(batch(kind, i)) for i, kind in enumerate("aababb", 1)]
        bad = asyncio.ensure_future(batch("bad", 9))
        gone = asyncio.ensure_future(batch("a", 10))
        await asyncio.sleep(0.02)
        gone.cancel()
        go.set()
        answers = await asyncio.gather(first, *rest)
        failed = await bad
        again = await batch("a", 50)
        return answers, failed, again

    answers, failed, again = asyncio.run(main())
    assert [answer.value for answer in answers] == [0, 2, 4, 6, 8, 10, 12]
    assert seen[:4] == [("a", [0]), ("a", [1, 2, 4]), ("b", [3, 5, 6]), ("bad", [9])]
    assert (failed.failure, failed.value) == ("ValueError: no", None)
    assert again.value == 100
    assert [answer.batch for answer in answers] == [1, 3, 0, 3, 0, 0, 0]


# --- over HTTP ------------------------------------------------------------------------------------------------


class Handle:
    """A replica's method as Ray Serve's handle shows it."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def remote(self, *asked):
        self.calls += 1

        async def answered():
            found = self.answer(self.calls, *asked)
            if isinstance(found, Exception):
                raise found
            return found

        return answered()


class Replica:
    def __init__(self, **methods):
        for name, answer in methods.items():
            setattr(self, name, Handle(answer))


class NoStores:
    subjects = ()
    config = None


def service(paint=None, *, capacity_for=8, token="", replicas=None):
    counts = Counts()
    capacity = Capacity(capacity_for, 1 * MIB, counts)
    paint = paint or (lambda call, row, variant, noise, number: Answer(f"png {number}".encode(), batch=1, seconds=0.5))
    dispatcher = Dispatcher(NoStores(), VARIANTS, Replica(), Replica(paint=paint), capacity, counts)
    health = Health(lambda: replicas or {"decode": 1, "paint": 1})
    app = http.app_of(CAPABILITIES, dispatcher, capacity, counts, health, token)
    app.app.state.dispatcher = dispatcher
    return app, capacity


async def _ask(app, method, path, body=b"", headers=(), parts=None):
    sent = []
    parts = [body] if parts is None else list(parts)

    async def receive():
        if not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "headers": [(k.lower().encode(), v.encode()) for k, v in headers],
        "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def ask(app, *args, **how):
    return asyncio.run(_ask(app, *args, **how))


POST = ("POST", "/v1/latents?seed=4")
KIND = [("Content-Type", NPZ)]


def test_one_picture_is_a_png_and_several_are_a_zip():
    app, capacity = service()
    one = {name: array[:1] for name, array in LATENTS.items()}
    status, headers, body = ask(app, *POST, npz(one), KIND)
    assert (status, headers["content-type"], body) == (200, "image/png", b"png 4")
    status, headers, body = ask(app, "POST", "/v1/latents?seed=4&seed=5", npz(LATENTS), KIND)
    assert (status, headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"000.png": b"png 4", "001.png": b"png 5"}
    assert (capacity.taken_items, capacity.taken_bytes) == (0, 0)
    shown = ask(app, "GET", "/metrics")[2].decode()
    for line in (
        'bdflow_items_total{path="/v1/latents"} 3.0',
        'bdflow_batch_size_count{worker="paint"} 3.0',
        'bdflow_requests_total{path="/v1/latents",status="200"} 2.0',
    ):
        assert line in shown


def test_refusals_say_what_to_do_in_json():
    app, capacity = service()
    status, _, body = ask(app, *POST, b"nonsense", KIND)
    assert status == 400
    assert set(json.loads(body)["error"]) == {"where", "found", "expected", "what_to_do"}
    assert ask(app, "POST", "/v1/other")[0] == 404
    assert ask(app, "GET", "/v1/latents")[0] == 405
    assert capacity.taken_bytes == 0
    assert 'bdflow_errors_total{status="400"} 1.0' in ask(app, "GET", "/metrics")[2].decode()


def test_bodies_are_limited_before_they_are_read():
    app, capacity = service()
    status, headers, _ = ask(app, *POST, b"x" * 8000, [*KIND, ("Content-Length", "8000")])
    assert (status, headers["connection"]) == (413, "close")
    assert ask(app, *POST, headers=KIND, parts=[b"x" * 3000] * 3)[0] == 413
    assert capacity.taken_bytes == 0


def test_a_body_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(http, "READING", 0.05)
    app, capacity = service()

    async def main():
        held = asyncio.Event()
        sent = []

        async def receive():
            await held.wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/latents", "query_string": b"", "headers": []}
        await app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(main()) == 408
    assert capacity.taken_bytes == 0


def test_what_waits_is_bounded():
    async def main():
        go = asyncio.Event()

        class Slow:
            def remote(self, *asked):
                async def answered():
                    await go.wait()
                    return Answer(b"png")

                return answered()

        app, capacity = service(capacity_for=4)
        dispatcher = Dispatcher(NoStores(), VARIANTS, None, Replica(paint=None), capacity, Counts())
        dispatcher.pictures.paint = Slow()
        app = http.app_of(CAPABILITIES, dispatcher, capacity, dispatcher.counts, Health(dict), "")
        capacity.worked(2, 60)
        ask = [asyncio.ensure_future(_ask(app, "POST", "/v1/latents", npz(LATENTS), KIND)) for _ in range(2)]
        while capacity.taken_items < 4:
            await asyncio.sleep(0.01)
        refused = await _ask(app, "POST", "/v1/latents", npz(LATENTS), KIND)
        go.set()
        return refused, await asyncio.gather(*ask), capacity

    refused, answered, capacity = asyncio.run(main())
    assert refused[0] == 503
    assert int(refused[1]["retry-after"]) >= 60
    assert [status for status, _, _ in answered] == [200, 200]
    assert capacity.taken_items == 0


def test_an_item_whose_replica_died_is_tried_again(monkeypatch):
    monkeypatch.setattr(dispatcher, "PAUSES", (0.01, 0.01))
    died = ActorDiedError()
    app, _ = service(lambda call, *asked: died if call < 3 else Answer(b"png"))
    one = npz({name: array[:1] for name, array in LATENTS.items()})
    assert ask(app, *POST, one, KIND)[0] == 200
    assert "bdflow_retries_total 2.0" in ask(app, "GET", "/metrics")[2].decode()
    app, capacity = service(lambda call, *asked: died)
    assert ask(app, *POST, one, KIND)[0] == 500
    assert capacity.taken_items == 0


def test_work_that_fails_is_said_and_not_tried_again():
    app, _ = service(lambda call, *asked: Answer(failure="ValueError: no", batch=1, seconds=1))
    status, _, body = ask(app, *POST, npz(LATENTS), KIND)
    assert status == 500
    assert "ValueError: no" in json.loads(body)["error"]["found"]


def test_an_unexpected_error_is_an_answer_too():
    app, capacity = service(lambda call, *asked: KeyError("surprise"))
    status, _, body = ask(app, *POST, npz(LATENTS), KIND)
    assert (status, b"surprise" in body) == (500, False)
    assert capacity.taken_items == 0


def test_the_token_guards_all_but_health():
    app, _ = service(token=TOKEN)
    for path in ("/metrics", "/docs", "/openapi.json", "/v1/study", "/elsewhere"):
        assert ask(app, "GET", path)[0] == 401
    for given in ("", TOKEN, f"Bearer {TOKEN}x", f"bearer {TOKEN}", "Bearer "):
        status, headers, _ = ask(app, *POST, npz(LATENTS), [*KIND, ("Authorization", given)])
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert ask(app, *POST, npz(LATENTS), [*KIND, ("Authorization", f"Bearer {TOKEN}")])[0] == 200
    assert ask(app, "GET", "/healthz")[0] == 200


def test_health_is_that_of_every_kind_of_replica():
    app, _ = service(replicas={"decode": 1, "paint": 0})
    status, _, body = ask(app, "GET", "/healthz")
    assert (status, json.loads(body)) == (503, {"replicas": {"decode": 1, "paint": 0}})


def test_the_description_is_whole_and_needs_no_network():
    app, _ = service()
    spec = json.loads(ask(app, "GET", "/openapi.json")[2])
    assert set(spec["paths"]) == {"/healthz", "/metrics", "/v1/study", "/v1/patterns", "/v1/latents"}
    for path, kind in (("/v1/patterns", NPY), ("/v1/latents", NPZ)):
        post = spec["paths"][path]["post"]
        assert set(post["requestBody"]["content"]) == {JSON, kind}
        assert {"200", "400", "401", "404", "408", "413", "415", "422", "500", "503"} == set(post["responses"])
        names = {"subject", "variant", "seed", "stimulus_id", "standardise", *["units"][: path == "/v1/patterns"]}
        assert names == {p["name"] for p in post["parameters"]}
    page = ask(app, "GET", "/docs")[2].decode()
    assert "POST /v1/patterns" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    study = json.loads(ask(app, "GET", "/v1/study")[2])
    assert (study["voxels"], study["units"]) == ({"subj01": 5}, UNITS)


def test_the_command_refuses_an_open_host_without_a_token(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("BDFLOW_TOKEN", raising=False)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path), sort_keys=False))
    done = CliRunner().invoke(command, ["serve", str(file), "--host", "0.0.0.0"])
    assert isinstance(done.exception, InputError)
    assert "BDFLOW_TOKEN" in done.exception.action
    done = CliRunner().invoke(command, ["serve", str(file), "--max-body", "much"])
    assert "--max-body" in str(done.exception)
    done = CliRunner().invoke(command, ["serve", str(file)])
    assert isinstance(done.exception, NotReady), "before anything is started"
