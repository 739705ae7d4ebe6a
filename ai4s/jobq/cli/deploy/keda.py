"""`deploy keda`: workers on Kubernetes, as many as there are messages, none while there are none.

As a Deployment, from which the cluster takes workers away when messages grow few, also ones that work: they hand back what they
run. Or, with `--job`, as Jobs, which end by themselves. In both, invisible messages count, which are being worked on.

Next: `workers.py` for what the command line says.
"""

from __future__ import annotations

from typing import Any

import click

from ...errors import ConfigurationError
from ..target import Chosen
from ..values import Size
from ..worker import PREEMPTED
from .workers import IMAGE, MIB, Workers, checked, options, planned

Document = dict[str, Any]

LONGEST_NAME = 52
"""KEDA names what it makes after it: an autoscaler `keda-hpa-NAME`, Jobs `NAME-xxxxx`; labels hold 63 characters."""

NAME = rf"(?=.{{1,{LONGEST_NAME}}}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?"
ANY_NAME = r"(?=.{1,63}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?"
CLIENT_ID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

IDLE = "2m"
"""After so long without work a Job's worker ends. Not `--until-empty`: it would wait for the calls that others run."""


@click.command("keda")
@click.option("--image", required=True, callback=checked(IMAGE, "image"), help="The container image; see `deploy docker`.")
@click.option("--job", is_flag=True, help="A Job for each worker, for long calls: it ends when idle; none is taken away at work.")
@click.option("--max-workers", type=click.IntRange(1), default=10, show_default=True, help="Workers at most.")
@click.option(
    "--messages-per-worker",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="A worker for each so many messages; one message may be a pack of thousands of calls.",
)
@click.option(
    "--client-id",
    callback=checked(CLIENT_ID, "client id, as in 00000000-0000-0000-0000-000000000000"),
    help="The client id of the managed identity that may use the account; a service account for it is in the file.",
)
@click.option(
    "--service-account",
    callback=checked(ANY_NAME, "name of a service account"),
    help="Instead: a service account that is there, and is bound to such an identity.",
)
@click.option(
    "--name",
    callback=checked(NAME, f"name of at most {LONGEST_NAME} small letters, digits and hyphens"),
    help="What all of it is called; APP-worker unless given.",
)
@click.option("--namespace", callback=checked(ANY_NAME, "name of a namespace"), help="Unless given, kubectl says.")
@click.option("--memory", type=Size(), default="2g", show_default=True, help="Memory of a worker.")
@click.option("--gpus", type=click.IntRange(1), help="NVIDIA GPUs of a worker.")
@options
@click.pass_obj
def keda(chosen: Chosen, /, **given: Any) -> None:
    """Print workers for Kubernetes that KEDA starts while there are messages, with workload identity.

    \b
    Examples:
      jobq myproj.tasks:app deploy keda --image myregistry.azurecr.io/myproj:1 --client-id ID > workers.yaml
      jobq myproj.tasks:app deploy keda --job --image myproj:1 --service-account jobs --grace 5m --gpus 1
    """
    if bool(given["client_id"]) == bool(given["service_account"]):
        raise click.UsageError("Name the identity: --client-id of a managed one, or --service-account that is bound to one.")
    workers = planned(chosen, given, *(["--until-idle", IDLE] if given["job"] else ["--forever"]))
    if workers.place.blob_url != f"https://{workers.place.account}.blob.core.windows.net":
        raise ConfigurationError("This account is outside the public cloud, where workload identity does not lead to it yet.")
    click.echo(_header(workers, given), nl=False)
    click.echo(_as_yaml(_documents(workers, given)), nl=False)


def _header(workers: Workers, given: Document) -> str:
    lines = [
        "Workers of ai4s-jobq, started and ended by KEDA with the number of messages, invisible ones included.",
        "The identity needs the roles Storage Queue Data Contributor and Storage Blob Data Contributor on the account. It has to",
        "trust two service accounts: the one that is named here, and keda:keda-operator, which counts the messages.",
    ]
    if workers.signed:
        name = _secret(workers, given) + (f" --namespace {given['namespace']}" if given["namespace"] else "")
        lines.append(f'Once: kubectl create secret generic {name} --from-literal=JOBQ_SIGNING_KEYS="$JOBQ_SIGNING_KEYS"')
    return "".join(f"# {line}\n" for line in lines)


def _as_yaml(documents: list[Document]) -> str:
    import yaml

    return "".join(f"---\n{yaml.safe_dump(document, sort_keys=False, width=120)}" for document in documents)


def _documents(workers: Workers, given: Document) -> list[Document]:
    found = [] if given["service_account"] else [_service_account(workers, given)]
    found.append(_document("keda.sh/v1alpha1", "TriggerAuthentication", workers, given, spec=_identity(given)))
    if given["job"]:
        return [*found, _scaled_job(workers, given)]
    return [*found, _deployment(workers, given), _scaled_object(workers, given)]


def _name(workers: Workers, given: Document) -> str:
    name = given["name"] or f"{workers.app}-worker"
    if len(name) > LONGEST_NAME:
        raise click.UsageError(f"{name!r} is too long a name for KEDA: give one of at most {LONGEST_NAME} characters with --name.")
    return str(name)


def _secret(workers: Workers, given: Document) -> str:
    return f"{_name(workers, given)}-keys"


def _document(api: str, kind: str, workers: Workers, given: Document, **content: Any) -> Document:
    metadata: Document = {"name": _name(workers, given)}
    if given["namespace"]:
        metadata["namespace"] = given["namespace"]
    return {"apiVersion": api, "kind": kind, "metadata": metadata | content.pop("metadata", {}), **content}


def _service_account(workers: Workers, given: Document) -> Document:
    annotations = {"azure.workload.identity/client-id": given["client_id"]}
    return _document("v1", "ServiceAccount", workers, given, metadata={"annotations": annotations})


def _identity(given: Document) -> Document:
    identity = {"provider": "azure-workload"}
    if given["client_id"]:
        identity["identityId"] = given["client_id"]
    return {"podIdentity": identity}


def _triggers(workers: Workers, given: Document) -> list[Document]:
    return [
        {
            "type": "azure-queue",
            "metadata": {
                "accountName": workers.place.account,
                "queueName": queue,
                "queueLength": str(given["messages_per_worker"]),
                "queueLengthStrategy": "all",
            },
            "authenticationRef": {"name": _name(workers, given)},
        }
        for queue in workers.queues
    ]


def _scaled_object(workers: Workers, given: Document) -> Document:
    spec = {
        "scaleTargetRef": {"name": _name(workers, given)},
        "minReplicaCount": 0,
        "maxReplicaCount": given["max_workers"],
        # Messages come and go faster than workers should: who is taken away hands back what it runs.
        "cooldownPeriod": 300,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}}}},
        "triggers": _triggers(workers, given),
    }
    return _document("keda.sh/v1alpha1", "ScaledObject", workers, given, spec=spec)


def _scaled_job(workers: Workers, given: Document) -> Document:
    ignored = {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}}
    spec = {
        "jobTargetRef": {
            "backoffLimit": 3,
            "podFailurePolicy": {"rules": [ignored]},
            "template": _pod(workers, given, restart="Never"),
        },
        "maxReplicaCount": given["max_workers"],
        "successfulJobsHistoryLimit": 5,
        "failedJobsHistoryLimit": 5,
        # Applying a changed file must not end the Jobs that work.
        "rollout": {"strategy": "gradual"},
        # Messages that are being worked on are in the count, so those who work are to be subtracted.
        "scalingStrategy": {"strategy": "default"},
        "triggers": _triggers(workers, given),
    }
    return _document("keda.sh/v1alpha1", "ScaledJob", workers, given, spec=spec)


def _deployment(workers: Workers, given: Document) -> Document:
    # Without `replicas`, which are KEDA's: applying the file again must not end workers.
    labels = {"app.kubernetes.io/name": _name(workers, given)}
    spec = {"selector": {"matchLabels": labels}, "template": _pod(workers, given, restart="Always")}
    return _document("apps/v1", "Deployment", workers, given, spec=spec)


def _pod(workers: Workers, given: Document, *, restart: str) -> Document:
    labels = {"app.kubernetes.io/name": _name(workers, given), "azure.workload.identity/use": "true"}
    spec = {
        "serviceAccountName": given["service_account"] or _name(workers, given),
        # Tasks have no business with the cluster; the identity's token comes another way.
        "automountServiceAccountToken": False,
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": workers.gone_seconds,
        # The pause container collects what tasks leave behind, as an init process would.
        "shareProcessNamespace": True,
        "containers": [_container(workers, given)],
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def _container(workers: Workers, given: Document) -> Document:
    memory = f"{given['memory'] // MIB}Mi"
    limits = {"memory": memory} | ({"nvidia.com/gpu": str(given["gpus"])} if given["gpus"] else {})
    return {
        "name": "worker",
        "image": given["image"],
        # A list, not a shell's line: SIGTERM reaches the worker itself.
        "command": workers.command,
        "env": _environment(workers, given),
        "resources": {"requests": {"cpu": str(workers.concurrency), "memory": memory}, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False},
    }


def _environment(workers: Workers, given: Document) -> list[Document]:
    found: list[Document] = [{"name": "JOBQ_URL", "value": workers.place.label}]
    if workers.signed:
        key = {"name": _secret(workers, given), "key": "JOBQ_SIGNING_KEYS"}
        found.append({"name": "JOBQ_SIGNING_KEYS", "valueFrom": {"secretKeyRef": key}})
    return found
