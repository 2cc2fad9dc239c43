"""The files that bring bdflow onto a cluster: SLURM's batch scripts, Kubernetes' manifests, for a configuration."""

from __future__ import annotations

import math
import re
import shlex
from importlib.resources import files
from pathlib import Path, PurePosixPath

import yaml

from bdflow.config import OF_DATASET, Config, StageExecution
from bdflow.config.values import ARRAY
from bdflow.errors import InputError
from bdflow.user_paths import new_folder
from bdflow.version import __version__

KINDS = ("slurm", "kubernetes")
VOLUME = PurePosixPath("/data")  # where pods see the volume
IMAGE, PODS, POD_CPUS = "bdflow:0.1.0", 2, 8  # what the shipped manifests say


def write(kind: str, folder: Path, config: Config | None = None, *, image: str = "") -> list[Path]:
    """Write the deployment files of a kind of cluster into a new folder; return them.

    Parameters
    ----------
    kind : `slurm` or `kubernetes`.
    config : its partition, account, set-up lines and subjects go into the scripts; its settings and the number of its
        workers into the manifests. None: the files as they ship.
    image : of every pod; `bdflow:VERSION` by default.

    Raises
    ------
    InputError : an unknown kind, something at `folder`, or an image's name with spaces.
    """
    if kind not in KINDS:
        raise InputError("deployment", found=repr(kind), expected=" or ".join(KINDS), action="name one of these")
    if re.search(r"[\s'\"{}]", image):
        raise InputError(
            "image", found=repr(image), expected="a name such as registry/bdflow:0.1.0", action="correct it"
        )
    image = image or f"bdflow:{__version__}"
    inside = (files("bdflow") / "cluster" / kind).iterdir()
    shipped = sorted((file for file in inside if file.is_file()), key=lambda file: file.name)
    with new_folder(folder) as partial:
        for file in shipped:
            text = file.read_text(encoding="utf-8")
            if kind == "slurm":
                text = _script(text, folder, config)
            else:
                text = _manifest(file.name, text, folder, config, image)
            (partial / file.name).write_text(text, encoding="utf-8")
    return [folder / file.name for file in shipped]


# --- SLURM ------------------------------------------------------------------------------------------------------------


def _script(text: str, folder: Path, config: Config | None) -> str:
    text = text.replace("cluster/slurm/", shlex.quote(str(folder)) + "/")
    if config is None:
        return text
    slurm = config.cluster.slurm
    named = [f"--{key}={value}" for key, value in (("partition", slurm.partition), ("account", slurm.account)) if value]
    options = "".join(f"#SBATCH {option}\n" for option in (*named, *slurm.options))
    text = text.replace("#SBATCH --job-name=bdflow\n", f"#SBATCH --job-name=bdflow\n{options}")
    setup = "".join(f"{line}\n" for line in slurm.setup)
    text = text.replace("set -euo pipefail\n", f"{setup}set -euo pipefail\n")
    if "subject=$(printf" in text:
        last = len(config.subjects) - 1
        text = text.replace("--array=1,2,5,7", f"--array=0-{last}")
        names = " ".join(shlex.quote(name) for name in config.subjects)
        text = re.sub(
            r"subject=\$\(printf .*\)\n",
            lambda _: f"subjects=({names})\nsubject=${{subjects[$SLURM_ARRAY_TASK_ID]}}\n",
            text,
        )
    return text


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def _manifest(name: str, text: str, folder: Path, config: Config | None, image: str) -> str:
    text = text.replace(IMAGE, image).replace("cluster/kubernetes/", shlex.quote(str(folder)) + "/")
    if config is None or not name.endswith(".yaml"):
        return text
    if name == "study.yaml":
        before, start, _ = text.partition("  config.yaml: |\n")
        settings = yaml.safe_dump(_in_pods(config), sort_keys=False, allow_unicode=True)
        return before + start + "".join(f"    {line}\n" for line in settings.splitlines())
    stages = [stage for _, stage in config.execution if isinstance(stage, StageExecution)]
    gpus = max(math.ceil(stage.workers * stage.gpus) for stage in stages)
    pods = gpus or max(stage.workers for stage in stages)
    cpus = max(POD_CPUS, *(math.ceil(stage.workers / pods) * stage.threads for stage in stages))
    text = re.sub(rf"((?:minR|maxR|r)eplicas): {PODS}\b", rf"\1: {pods}", text)
    text = text.replace(f'cpu: "{POD_CPUS}"', f'cpu: "{cpus}"')
    return text if gpus else text.replace(', nvidia.com/gpu: "1"', "")


def _in_pods(config: Config) -> dict[str, object]:
    """The settings as every pod reads them: what lies on this machine lies on the volume, by its last name; work runs
    on Ray at the address `auto`.
    """
    found = config.model_dump(mode="json", exclude_defaults=True)

    def placed(path: object) -> object:
        return path if "://" in str(path) else str(VOLUME / PurePosixPath(str(path)).name)

    found["study"] = placed(found["study"])
    found["dataset"]["root"] = placed(found["dataset"]["root"])
    found["report"]["path"] = placed(found["report"]["path"])
    for section, key in (("dataset", "captions"), ("evaluate", "weights"), ("networks", "bundle")):
        value = found.get(section, {}).get(key)
        if value is not None and value != "tiny":
            found[section][key] = placed(value)
    split = found["dataset"].get("split", "shared")
    if split != "shared" and not split.startswith(OF_DATASET):
        found["dataset"]["split"] = placed(split)
    for of in found.get("roi", {}).get("masks", {}).values():
        of.update({subject: placed(path) for subject, path in of.items()})
    for space in found["spaces"].values():
        if space["encoder"].startswith(ARRAY):
            space["encoder"] = ARRAY + str(placed(space["encoder"].removeprefix(ARRAY)))
    found["execution"] = {
        name: stage.model_dump(mode="json", exclude_defaults=True) | {"executor": "ray"}
        for name, stage in config.execution
        if isinstance(stage, StageExecution)
    }
    found["cluster"] = {"kind": "address", "address": {"ray": "auto"}}
    return found
