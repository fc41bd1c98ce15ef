"""The Kubernetes manifests are what an API server takes, to the last field, and agree with themselves."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from sora_jax.core import errors

ROOT = Path(__file__).parents[2]
GKE = ROOT / "launch" / "gke"
SCHEMA = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
KUBERNETES = "1.33"
JOB_SETS = ("tpu.yaml", "gpu.yaml")


def read(name):
    return yaml.safe_load((GKE / name).read_text())


def check(resource):
    """Raises for a field that does not exist, lacks, or is of the wrong type."""
    if resource["kind"] != "JobSet":
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        return
    jsonschema.validate(resource, SCHEMA)
    for job in resource["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", sorted(GKE.iterdir()), ids=lambda path: path.name)
def test_a_manifest_is_what_kubernetes_takes(path):
    check(read(path.name))


def job(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def container(jobset):
    return job(jobset)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        (lambda jobset: jobset["spec"], "replicatedJob", []),
        (lambda jobset: jobset["spec"]["failurePolicy"], "maxRestarts", "many"),
        (lambda jobset: jobset["spec"]["failurePolicy"]["rules"][0], "action", "Fail"),
        (job, "completion", 4),
        (lambda jobset: job(jobset)["podFailurePolicy"]["rules"][0]["onExitCodes"], "operator", 2),
        (lambda jobset: job(jobset)["template"]["spec"], "nodeSelectors", {}),
        (container, "image", 3),
        (container, "arguments", []),
    ],
)
def test_a_mistake_would_be_found(place, field, value):
    broken = copy.deepcopy(read("gpu.yaml"))
    place(broken)[field] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(broken)


@pytest.mark.parametrize("name", JOB_SETS)
def test_numbers_that_belong_together_are_equal(name):
    jobset = read(name)
    machines = job(jobset)["parallelism"]
    assert job(jobset)["completions"] == machines
    told = [entry["value"] for entry in container(jobset).get("env", []) if entry["name"] == "JAX_NUM_PROCESSES"]
    assert told == ([str(machines)] if name == "gpu.yaml" else [])
    limits = container(jobset)["resources"]["limits"]
    if name == "tpu.yaml":
        topology = job(jobset)["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        rows, columns = map(int, topology.split("x"))
        assert rows * columns == machines * limits["google.com/tpu"]
    else:
        assert jobset["spec"]["coordinator"]["replicatedJob"] == jobset["spec"]["replicatedJobs"][0]["name"]
    claims = [v.get("persistentVolumeClaim") for v in job(jobset)["template"]["spec"]["volumes"]]
    assert {"claimName": read("storage.yaml")["metadata"]["name"]} in claims


@pytest.mark.parametrize("name", JOB_SETS)
def test_only_what_starting_again_can_mend_is_started_again(name):
    (rule,) = job(read(name))["podFailurePolicy"]["rules"]
    kinds = (errors.UserError, errors.NumericsError, errors.DataError, errors.CommandError, errors.StorageError)
    assert rule["onExitCodes"]["values"] == sorted(kind.exit_code for kind in kinds)
    assert rule["onExitCodes"]["containerName"] == container(read(name))["name"]


@pytest.mark.parametrize("name", JOB_SETS)
def test_a_container_is_given_flags_that_there_are(name):
    source = (ROOT / "sora_jax" / "main.py").read_text()
    for flag in container(read(name))["args"]:
        assert re.search(rf'"{flag.removeprefix("--").split("=")[0]}"', source), flag
    assert "sora_jax.main" in (ROOT / "launch" / "Dockerfile").read_text().splitlines()[-1]
