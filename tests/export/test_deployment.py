"""`bdflow deploy`: files that ship, filled in for a configuration, into a new folder."""

import subprocess

import pytest
import yaml

from bdflow import __version__, api
from bdflow.config import load, parse, recipes
from bdflow.errors import InputError
from tests.cluster.test_kubernetes import FOLDER, problems

SLURM = FOLDER.parent / "slurm"


def documents(folder) -> list[dict]:
    return [one for file in sorted(folder.glob("*.yaml")) for one in yaml.safe_load_all(file.read_text())]


def test_without_a_configuration_files_are_as_they_ship(tmp_path):
    for kind, shipped in (("slurm", SLURM), ("kubernetes", FOLDER)):
        made = api.deploy(kind, tmp_path / kind)
        assert [file.name for file in made] == sorted(file.name for file in shipped.iterdir() if file.is_file())
        for file in made:
            text = (shipped / file.name).read_text(encoding="utf-8")
            assert file.read_text(encoding="utf-8") == text.replace(f"cluster/{kind}", str(tmp_path / kind))


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/node.sbatch").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="something there"):
        api.deploy("slurm", tmp_path / "there")
    assert (tmp_path / "there/node.sbatch").read_text(encoding="utf-8") == "mine"
    for wrong in ({"kind": "pbs"}, {"kind": "kubernetes", "image": "a b"}):
        with pytest.raises(InputError):
            api.deploy(folder=tmp_path / "new", **wrong)
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_scripts_have_the_sites_names_and_the_subjects(tmp_path):
    own = ["cluster.slurm.partition=gpu", "cluster.slurm.account=mine", "cluster.slurm.options=[--constraint=a100]"]
    own += ['cluster.slurm.setup=["module load cuda"]', "subjects=[subj02, subj07]"]
    for file in api.deploy("slurm", tmp_path / "of site", "brain_diffuser", own):
        subprocess.run(["bash", "-n", file], check=True)
        lines = file.read_text(encoding="utf-8").splitlines()
        for option in ("--partition=gpu", "--account=mine", "--constraint=a100"):
            assert f"#SBATCH {option}" in lines
        first = next(at for at, line in enumerate(lines) if line and not line.startswith("#"))
        assert lines[first] == "module load cuda", "SLURM reads no option after the first command"
    script = tmp_path / "of site/subjects.sbatch"
    assert "#SBATCH --array=0-1" in script.read_text(encoding="utf-8")
    for number, subject in enumerate(("subj02", "subj07")):
        text = 'python() { echo "$@"; }\nexec() { "$@"; }\nmodule() { :; }\n' + script.read_text(encoding="utf-8")
        done = subprocess.run(
            ["bash", "-c", text, "script", "c.yaml", "out"],
            env={"SLURM_ARRAY_TASK_ID": str(number), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"bdflow run c.yaml --set cluster.kind=local --set subjects=[{subject}]" in done.stdout
        assert f"study=out/{subject}.zarr" in done.stdout


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_manifests_hold_the_recipe_and_are_valid(recipe, tmp_path):
    changes = ["dataset.split=lists/test.txt", "evaluate.weights=weights/judges", "study=s3://bucket/a.zarr"]
    made = api.deploy("kubernetes", tmp_path / "k", recipe, changes, image="registry:5000/lab/bdflow:7")
    found = documents(tmp_path / "k")
    assert [(one["kind"], problems(one)) for one in found if problems(one)] == []
    held = next(one for one in found if one["kind"] == "ConfigMap")["data"]["config.yaml"]
    inside, outside = parse(yaml.safe_load(held)), load(recipe, changes)
    assert inside.science() == outside.science(), "the same study"
    assert (str(inside.study), str(inside.dataset.root)) == ("s3://bucket/a.zarr", f"/data/{outside.dataset.root.name}")
    assert (inside.dataset.split, str(inside.evaluate.weights)) == ("/data/test.txt", "/data/judges")
    assert (inside.cluster.kind, inside.cluster.address.ray) == ("address", "auto")
    text = "".join(file.read_text(encoding="utf-8") for file in made)
    assert f"bdflow:{__version__}" not in text.replace("registry:5000/lab/bdflow:7", "")
    stages = [of for _, of in inside.execution]
    for group in (one["spec"] for one in found if one["kind"] == "RayCluster"):
        (workers,) = group["workerGroupSpecs"]
        limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus, cpus = int(limits.get("nvidia.com/gpu", 0)), int(limits["cpu"])
        for stage in stages:
            assert stage.executor == "ray"
            assert workers["replicas"] * cpus >= stage.workers * stage.threads
            assert workers["replicas"] * gpus >= stage.workers * stage.gpus
        assert bool(gpus) == any(stage.gpus for stage in stages)
