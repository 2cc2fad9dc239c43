"""The service as users start it: a small study, real replicas, many clients, replicas that are killed."""

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from bdflow.config import Config, parse
from bdflow.pipeline import Pipeline, stages_until
from bdflow.serve.bodies import NPY, NPZ
from bdflow.stores import Store
from bdflow.study.painting import painting
from bdflow.study.stage import Context
from tests.conftest import SPACES, painter
from tests.support.other_user import intrude, ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PICTURES = pytest.mark.slow(kind="pictures that are served")
TOKEN = "the token that the service made and showed"
CLIENTS = 64
WORDS = ("count", "sum")


@dataclass
class Service:
    config: Config
    context: Context
    process: subprocess.Popen
    port: int
    made: str

    def post(self, path, body, kind, token=TOKEN):
        """(status, type, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Content-Type": kind, "Authorization": f"Bearer {self.made if token == TOKEN else token}"}
        connection.request("POST" if body is not None else "GET", path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.getheader("content-type"), answer.read()
        connection.close()
        return found

    def patterns(self, subject, at, noise):
        out = io.BytesIO()
        np.save(out, self.context.ready(f"responses/{subject}/averaged").read("response")[at])
        return self.post(f"/v1/patterns?subject={subject}&{noise}", out.getvalue(), NPY)

    def replicas(self, kind):
        """The processes of one kind of replica."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in children if re.search(rf"ServeReplica:\S*-{kind}:", " ".join(_cmdline(p)))]


def _cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def service(settings, tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    content = settings(root, painters=painter(steps=2, batch_size=16))
    content["execution"] = {"reconstruct": {"workers": 2, "threads": 1}}
    config = parse(content)
    pipeline = Pipeline(config)
    pipeline.run(tuple(stages_until("regress")))
    serial = parse({**content, "execution": {}})
    Pipeline(serial).run(("reconstruct",))
    file = root / "config.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    command = [sys.executable, "-m", "bdflow.cli.main", "serve", str(file), "--port", "0", "--max-body", "1 MiB"]
    with (root / "log").open("w") as log:
        variables = {name: value for name, value in os.environ.items() if name != "BDFLOW_TOKEN"}
        process = subprocess.Popen(command, stderr=log, stdout=log, env=variables, start_new_session=True)
    until = time.monotonic() + 180
    while not (found := re.search(r"http://127.0.0.1:(\d+)", (root / "log").read_text())):
        assert process.poll() is None, (root / "log").read_text()
        assert time.monotonic() < until, (root / "log").read_text()
        time.sleep(0.2)
    try:
        made = re.search(r"Authorization: Bearer ([\w-]{32})`", (root / "log").read_text())
        yield Service(config, pipeline.context(), process, int(found[1]), made[1])
    finally:
        left = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (root / "log").read_text()
        _, alive = psutil.wait_procs(left, 20)
        assert not alive, "it stops everything it started"
        assert "Traceback" not in (root / "log").read_text()


def picture(body):
    return np.asarray(Image.open(io.BytesIO(body))).astype(int)


def pictures(body):
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return np.stack([picture(archive.read(name)) for name in sorted(archive.namelist())])


def assert_same(found, expected):
    """As a batch of another size may move float32: a level or two, seldom."""
    difference = np.abs(found - np.asarray(expected).astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.02


@PICTURES
@pytest.mark.parametrize("subject", ["subj01", "subj02"])
def test_pictures_of_test_stimuli_are_those_of_the_study(service, subject):
    store = Store(service.config.study, f"reconstructions/brain_diffuser/{subject}/full")
    ids = store.read("stimulus_id")
    rows = service.context.ready(f"responses/{subject}/averaged").rows("stimulus_id", ids)
    noise = "&".join(f"stimulus_id={number}" for number in ids)
    status, kind, body = service.patterns(subject, rows, noise)
    assert (status, kind) == (200, "application/zip")
    assert_same(pictures(body), store.read("image")[:, 0])
    out = io.BytesIO()
    np.savez(out, **{s: service.context.ready(f"predictions/{subject}/{s}").read("latent") for s in SPACES})
    path = f"/v1/latents?subject={subject}&standardise=test_set&{noise}"
    assert_same(pictures(service.post(path, out.getvalue(), NPZ)[2]), store.read("image")[:, 0])


@PICTURES
@pytest.mark.parametrize("variant", ["full", "only_vdvae", "no_vdvae", "no_clip_text", "no_clip_vision"])
def test_pictures_of_latents_are_the_painters(service, variant):
    latents = {s: service.context.ready(f"predictions/subj01/{s}").read("latent")[:2] for s in SPACES}
    content = {"latents": {s: values.tolist() for s, values in latents.items()}, "variant": variant, "seed": [3, 5]}
    status, _, body = service.post("/v1/latents", json.dumps(content).encode(), "application/json")
    assert status == 200, body
    paint = painting(service.config, "brain_diffuser")
    guess = paint.guess(latents["vdvae"], "serve", [3, 5]) if variant != "no_vdvae" else None
    if variant == "only_vdvae":
        size = (paint.image_size, paint.image_size)
        expected = np.stack([np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BICUBIC)) for g in guess])
    else:
        vision = latents["clip_vision"] if variant != "no_clip_vision" else None
        text = latents["clip_text"] if variant != "no_clip_text" else None
        expected = paint.paint(guess, vision, text, "serve", [3, 5])
    assert_same(pictures(body), expected)


def test_many_clients_are_answered_in_batches(service):
    def one(number):
        status, _, body = service.patterns("subj01", slice(number % 20, number % 20 + 1), f"seed={number % 3}")
        assert status == 200, body
        return number % 60, body

    def batches():
        """How many batches were painted so far, and of how many items, by the service's own count."""
        shown = service.post("/metrics", None, "")[2].decode()
        return [float(re.findall(rf'^bdflow_batch_size_{of}{{worker="paint"}} (\S+)', shown, re.M)[0]) for of in WORDS]

    one(0)
    alone = dict(one(number) for number in range(12))
    before = batches()
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(one, range(256)))
    count, items = (after - first for after, first in zip(batches(), before, strict=True))
    print(f"\n{items:.0f} pictures in {count:.0f} batches")
    for number, body in found:
        if number in alone:
            assert_same(picture(body), picture(alone[number]))
    assert items == 256
    assert items >= 4 * count, "many clients share batches"


def test_bad_requests_are_refused_while_good_ones_go_on(service):
    good = b'{"latents": %s, "variant": "only_vdvae"}' % json.dumps({"vdvae": [[0.0] * 1988]}).encode()
    small = b'{"latents": {"vdvae": [1]}, "variant": "only_vdvae"}'
    asked = {
        "good": (200, "/v1/latents", good, "application/json", TOKEN),
        "not json": (400, "/v1/latents", b"{" * 1000, "application/json", TOKEN),
        "not npy": (400, "/v1/patterns?subject=subj01", os.urandom(5000), NPY, TOKEN),
        "subject": (404, "/v1/patterns?subject=nobody", good, NPY, TOKEN),
        "too large": (413, "/v1/latents", b"x" * 3 * 2**20, NPZ, TOKEN),
        "much too large": (413, "/v1/latents", b"x" * 2**20 + b"x", "application/json", TOKEN),
        "kind": (415, "/v1/latents", good, "text/html", TOKEN),
        "shape": (422, "/v1/latents", small, "application/json", TOKEN),
        "token": (401, "/v1/latents", good, "application/json", "another"),
        "page": (200, "/docs", None, "", TOKEN),
        "no page": (404, "/nothing", None, "", TOKEN),
    }  # fmt: skip
    asked["subject"] = (404, "/v1/patterns?subject=nobody", _npy(np.ones((1, 4))), NPY, TOKEN)

    def one(name):
        wanted, *how = asked[name]
        return name, wanted, service.post(*how)[0]

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = Counter(pool.map(one, [*asked, "good"] * 12))
    assert {(wanted, status) for _, wanted, status in found} == {(s, s) for s in (200, 400, 401, 404, 413, 415, 422)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_nothing_but_that_it_is_alive(service):
    """At the service's port, and at all that its replicas and Ray listen on, while clients are answered."""
    at = ports(psutil.Process(service.process.pid))
    assert len(at) >= 5
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(service.patterns, "subj01", slice(0, 1), "seed=1")
        found = intrude(at)
        assert found.pop("asked") == sorted(at)
        assert found.pop(str(service.port), ["http /healthz: 200"]) == ["http /healthz: 200"], "or too busy to say so"
        assert found == {}
        assert answer.result()[0] == 200
    assert intrude([service.port])[str(service.port)] == ["http /healthz: 200"]
    assert "http /metrics: 200" in intrude([service.port], service.made)[str(service.port)]


def _npy(values):
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


@pytest.mark.slow(kind="a replica is killed")
@pytest.mark.parametrize("kind", ["paint", "decode"])
def test_a_killed_replica_costs_nobody_an_answer(service, kind):
    before = {p.pid for p in service.replicas(kind)}
    assert before

    def one(number):
        status, _, body = service.patterns("subj02", slice(number % 20, number % 20 + 1), "seed=1")
        return status, number % 20, body

    with ThreadPoolExecutor(CLIENTS) as pool:
        waiting = [pool.submit(one, number) for number in range(192)]
        while sum(future.done() for future in waiting) < 20:
            time.sleep(0.05)
        os.kill(min(before), signal.SIGKILL)
        found = [future.result() for future in waiting]
    assert Counter(status for status, _, _ in found) == {200: 192}
    for number in range(20):
        first, *others = [picture(body) for _, at, body in found if at == number]
        for other in others:
            assert_same(other, first)
    until = time.monotonic() + 120
    while True:
        status, _, body = service.post("/healthz", None, "")
        if status == 200 and json.loads(body)["replicas"] == {"decode": 1, "paint": 2}:
            break
        assert time.monotonic() < until, body
        time.sleep(0.5)
    assert {p.pid for p in service.replicas(kind)} != before
    assert one(0)[0] == 200
    shown = service.post("/metrics", None, "")[2].decode()
    retries = re.search(r"^bdflow_retries_total (\S+)", shown, re.M)
    assert retries
    print(f"\n{kind}: tried again {retries[1]} times so far")
