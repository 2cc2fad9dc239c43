"""Manifests against schemas: Kubernetes' own for pods, volumes and maps (kubernetes-validate), the operator's for
Dask (the CRD that ships in dask-kubernetes), and for KubeRay the documented fields of its API, strictly, below.
"""

import copy
import functools
from importlib.metadata import distribution
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

import bdflow
from bdflow.config import parse

FOLDER = Path(__file__).parents[2] / "cluster" / "kubernetes"
KUBERNETES = "1.35"
TEXT, COUNT, TRUTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def strict(required: list[str], **properties) -> dict:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


GROUP = {"rayStartParams": TEXTS, "template": strict(["spec"], metadata={"type": "object"}, spec={"type": "object"})}
WORKERS = strict(
    ["groupName", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    suspend=TRUTH,
    **GROUP,
)
HEAD = strict(
    ["template"], serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, enableIngress=TRUTH, **GROUP
)
CLUSTER = strict(
    ["headGroupSpec"],
    rayVersion=TEXT,
    suspend=TRUTH,
    enableInTreeAutoscaling=TRUTH,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
JOB = strict(
    ["entrypoint"],
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=TRUTH,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    suspend=TRUTH,
    rayClusterSpec=CLUSTER,
)


def ray_schema(kind: str, spec: dict) -> dict:
    meta = strict(["name"], name=TEXT, labels=TEXTS, annotations=TEXTS, namespace=TEXT)
    return strict(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=meta,
        spec=spec,
    )


@functools.cache
def dask_schema() -> dict:
    file = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds/daskjob.yaml"
    crd = yaml.load(Path(str(distribution("dask-kubernetes").locate_file(file))).read_text(), yaml.CSafeLoader)
    return closed(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])


def closed(schema: dict) -> dict:
    """The same with unknown keys refused, as `kubectl apply` does (field validation), where the schema lists any."""
    schema = copy.copy(schema)
    for name in ("properties", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            inner = schema[name]
            schema[name] = (
                {key: closed(value) for key, value in inner.items()} if name == "properties" else closed(inner)
            )
    if isinstance(schema.get("items"), dict):
        schema["items"] = closed(schema["items"])
    if schema.get("properties") and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def documents() -> list[tuple[str, dict]]:
    files = sorted(FOLDER.glob("*.yaml"))
    return [(file.name, document) for file in files for document in yaml.safe_load_all(file.read_text())]


def problems(document: dict) -> list[str]:
    """What is wrong with a manifest; empty if nothing."""
    kind = document["kind"]
    if kind in ("RayJob", "RayCluster"):
        schema = ray_schema(kind, JOB if kind == "RayJob" else CLUSTER)
        found = list(jsonschema.Draft7Validator(schema).iter_errors(document))
    elif kind == "DaskJob":
        found = list(jsonschema.Draft7Validator(dask_schema()).iter_errors(document["spec"]))
    else:
        found = []
        document = {"plain": document}
    said = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
    for name, spec in pods(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        said += checked(pod)
    return said + (checked(document["plain"]) if "plain" in document else [])


def checked(document: dict) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def pods(node: object, name: str = "pod") -> list[tuple[str, dict]]:
    """Every pod's specification in a document."""
    if isinstance(node, list):
        return [found for item in node for found in pods(item, name)]
    if not isinstance(node, dict):
        return []
    if "containers" in node:
        return [(name, node)]
    return [found for key, value in node.items() for found in pods(value, key.lower())]


def test_every_manifest_is_there():
    assert {document["kind"] for _, document in documents()} == {
        "PersistentVolumeClaim", "ConfigMap", "RayJob", "RayCluster", "DaskJob",
    }  # fmt: skip


@pytest.mark.parametrize(("file", "document"), documents())
def test_manifests_fit_their_schemas(file, document):
    assert problems(document) == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob", ("spec", "entryPoint"), "x"),
        ("RayJob", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "two"),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "imag"), "x"),
        ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("DaskJob", ("spec", "cluster", "spec", "worker", "replica"), 2),
        ("DaskJob", ("spec", "job", "spec", "containers", 0, "args"), "bdflow"),
        ("ConfigMap", ("data", "config.yaml"), {"study": 1}),
    ],
)
def test_the_schemas_find_what_is_wrong(kind, path, value):
    document = copy.deepcopy(next(document for _, document in documents() if document["kind"] == kind))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert problems(document)


def test_the_configuration_is_one_and_fits_the_pods():
    found = {document["kind"]: document for _, document in documents()}
    config = parse(yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"]))
    assert (config.cluster.kind, config.cluster.address.ray) == ("address", "auto")
    for spec in (found["RayJob"]["spec"]["rayClusterSpec"], found["RayCluster"]["spec"]):
        (group,) = spec["workerGroupSpecs"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus, gpus = group["replicas"] * int(limits["cpu"]), group["replicas"] * int(limits["nvidia.com/gpu"])
        for stage in ("ingest", "features", "regress", "reconstruct", "evaluate"):
            asked = getattr(config.execution, stage)
            assert asked.workers * asked.threads <= cpus
            assert asked.workers * asked.gpus <= gpus
            assert (asked.memory or 0) <= int(limits["memory"].removesuffix("Gi")) * 2**30
        images = {spec["containers"][0]["image"] for _, spec in pods(spec)}
        assert images == {f"bdflow:{bdflow.__version__}"}
        assert f"ray=={spec['rayVersion']}" in (FOLDER.parents[1] / "constraints.txt").read_text().splitlines()
