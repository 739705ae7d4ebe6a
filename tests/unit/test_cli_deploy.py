"""`deploy` prints files that those accept for whom they are: the schemas of Kubernetes and KEDA, a Dockerfile's parser, bash.

Schemas come from packages: those of Kubernetes as they are published, those of KEDA's resources made of models.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ai4s.jobq import cli
from ai4s.jobq.cli import worker

KUBERNETES = "1.31"
IDENTITY = "12345678-9abc-def0-1234-56789abcdef0"
ACCOUNT_KEY = "bm90IGEgcmVhbCBrZXksIGJ1dCBsb25nIGVub3VnaA=="
WITH_KEY = f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={ACCOUNT_KEY};EndpointSuffix=core.windows.net"
SIGNING_KEY = "0123456789abcdef0123"
KEDA = ("keda", "--image", "registry.example/jobs@sha256:" + "0" * 64, "--client-id", IDENTITY)

MODULE = """
from ai4s.jobq import App

print("FROM a module, which may print")
app = App("proj")


@app.task(queue="gpu")
def train(): ...


@app.task
def report(): ...
"""

AZURE_QUEUE_METADATA = {
    "queueName", "queueLength", "queueLengthStrategy", "activationQueueLength", "connectionFromEnv", "accountName", "cloud",
    "endpointSuffix",
}  # fmt: skip
"""What KEDA's azure-queue scaler knows, by its documentation: its schema leaves this part open."""


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module, and an environment that says nothing."""
    for name in [name for name in os.environ if name.startswith("JOBQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "deployed_tasks.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "deployed_tasks", raising=False)


def deploy(*words: str, target: str = "acct/proj", code: int = 0) -> str:
    """What `jobq TARGET deploy …` prints, or its error."""
    done = CliRunner().invoke(cli.jobq, [target, "deploy", *words])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def documents(text: str) -> dict[str, Any]:
    """The documents of a YAML stream by their kind, once the schemas have accepted each."""
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    for kind, document in found.items():
        if document["apiVersion"] == "keda.sh/v1alpha1":
            keda_schema(kind).validate(document)
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    return found


@cache
def keda_schema(kind: str) -> jsonschema.Draft202012Validator:
    """What KEDA takes under this name."""
    import cloudcoil.models.keda.v1alpha1 as keda_models  # takes seconds, in every process that collects tests

    return jsonschema.Draft202012Validator(closed(getattr(keda_models, kind).model_json_schema()))


def closed(schema: Any) -> Any:
    """A schema that allows nothing that it does not name, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {"additionalProperties": False} if "properties" in schema else {}
    return rest | {name: closed(value) for name, value in schema.items()}


def pod(found: dict[str, Any]) -> dict[str, Any]:
    """The pod of the workers."""
    job = found.get("ScaledJob")
    return (job["spec"]["jobTargetRef"] if job else found["Deployment"]["spec"])["template"]


def environment_of(template: dict[str, Any]) -> dict[str, Any]:
    """The variables of the worker's container."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in template["spec"]["containers"][0]["env"]}


def tool(name: str, text: str, *options: str) -> None:
    """Have a checker that came as a package read `text`; it must have nothing to say."""
    program = Path(sys.executable).with_name(name)
    done = subprocess.run([program, *options, "-"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


class TestKeda:
    """Workers on Kubernetes."""

    def test_workers_are_a_deployment_that_follows_the_queue(self) -> None:
        """All messages count, also those that are being worked on; the pod may use the account without any secret."""
        found = documents(deploy(*KEDA))
        assert list(found) == ["ServiceAccount", "TriggerAuthentication", "Deployment", "ScaledObject"]
        (trigger,) = found["ScaledObject"]["spec"]["triggers"]
        assert trigger["type"] == "azure-queue"
        assert trigger["metadata"] == {
            "accountName": "acct",
            "queueName": "proj",
            "queueLength": "1",
            "queueLengthStrategy": "all",
        }
        assert trigger["metadata"].keys() <= AZURE_QUEUE_METADATA
        assert found["TriggerAuthentication"]["spec"]["podIdentity"] == {"provider": "azure-workload", "identityId": IDENTITY}
        assert pod(found)["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        assert environment_of(pod(found)) == {"JOBQ_URL": "azure://acct"}

    def test_names_of_the_documents_fit_together(self) -> None:
        """What refers to another document names one that is there."""
        found = documents(deploy(*KEDA, "--name", "night-shift", "--namespace", "jobs"))
        assert {(each["metadata"]["name"], each["metadata"]["namespace"]) for each in found.values()} == {("night-shift", "jobs")}
        scaled = found["ScaledObject"]["spec"]
        assert scaled["scaleTargetRef"]["name"] == scaled["triggers"][0]["authenticationRef"]["name"] == "night-shift"
        assert pod(found)["spec"]["serviceAccountName"] == "night-shift"
        selected = found["Deployment"]["spec"]["selector"]["matchLabels"]
        assert selected.items() <= pod(found)["metadata"]["labels"].items()
        assert "replicas" not in found["Deployment"]["spec"]

    def test_sigterm_reaches_the_worker_and_leaves_it_its_grace(self) -> None:
        """The container's process is the worker itself, which lives on for ever, and is killed only after its grace period."""
        spec = pod(documents(deploy(*KEDA, "--grace", "2m")))["spec"]
        command = spec["containers"][0]["command"]
        assert command[:2] == ["jobq-worker", "azure://acct/proj"]
        assert "--forever" in command
        assert spec["terminationGracePeriodSeconds"] == 125
        assert "args" not in spec["containers"][0]

    def test_grace_after_the_dashes_counts(self) -> None:
        """What the worker will read is what the pod is made for."""
        spec = pod(documents(deploy(*KEDA, "--", "--grace", "5m", "-n", "3")))["spec"]
        assert spec["terminationGracePeriodSeconds"] == 305
        assert spec["containers"][0]["resources"]["requests"]["cpu"] == "3"

    def test_jobs_end_when_idle_and_are_never_taken_away(self) -> None:
        """A ScaledJob's workers end by themselves; an end by preemption is no failure; a changed file lets them work on."""
        found = documents(deploy(*KEDA, "--job", "--gpus", "2", "--memory", "16g"))
        job = found["ScaledJob"]["spec"]
        container = pod(found)["spec"]["containers"][0]
        assert container["command"][-2:] == ["--until-idle", "2m"]
        assert container["resources"]["limits"] == {"memory": "16384Mi", "nvidia.com/gpu": "2"}
        assert pod(found)["spec"]["restartPolicy"] == "Never"
        (rule,) = job["jobTargetRef"]["podFailurePolicy"]["rules"]
        assert rule == {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [worker.PREEMPTED]}}
        assert job["rollout"] == {"strategy": "gradual"}
        assert {"Deployment", "ScaledObject"}.isdisjoint(found)

    def test_all_queues_of_a_module_are_watched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker of a module serves the queues that its tasks name: so each has a trigger."""
        monkeypatch.setenv("JOBQ_URL", "azure://acct")
        found = documents(deploy(*KEDA, target="deployed_tasks:app"))
        watched = [trigger["metadata"]["queueName"] for trigger in found["ScaledObject"]["spec"]["triggers"]]
        assert watched == ["proj", "proj-gpu"]
        assert pod(found)["spec"]["containers"][0]["command"][1] == "deployed_tasks:app"

    def test_a_module_that_is_only_named_is_watched_where_it_is_told(self) -> None:
        """It is not imported: its workers and their triggers have the same queues, told or not."""
        for words, queues in (((), ["default"]), (("--queue", "gpu,default:3"), ["gpu,default:3"])):
            found = documents(deploy(*KEDA, "--module", "not_here.tasks:app", *words))
            command = pod(found)["spec"]["containers"][0]["command"]
            assert command[1:4] == ["not_here.tasks:app", "--queue", *queues]
        watched = [trigger["metadata"]["queueName"] for trigger in found["ScaledObject"]["spec"]["triggers"]]
        assert watched == ["proj-gpu", "proj"]

    def test_an_account_outside_the_public_cloud_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`azure://ACCOUNT` would mean another one there."""
        monkeypatch.setenv("JOBQ_CONNECTION_STRING", WITH_KEY.replace("windows.net", "chinacloudapi.cn"))
        assert "outside the public cloud" in deploy(*KEDA, code=2)

    @pytest.mark.parametrize("words", [(), ("--client-id", IDENTITY, "--service-account", "jobs")])
    def test_one_identity_must_be_named(self, words: tuple[str, ...]) -> None:
        """Without one nothing would work, and with two nobody knows which."""
        assert "--service-account" in deploy("keda", "--image", "x", *words, code=2)

    def test_a_service_account_that_is_there_is_used(self) -> None:
        """It is not made again, and KEDA takes the identity that its own operator has."""
        found = documents(deploy("keda", "--image", "x", "--service-account", "jobs"))
        assert "ServiceAccount" not in found
        assert pod(found)["spec"]["serviceAccountName"] == "jobs"
        assert found["TriggerAuthentication"]["spec"]["podIdentity"] == {"provider": "azure-workload"}

    def test_a_name_that_keda_cannot_lengthen_is_refused(self) -> None:
        """Kubernetes would refuse what KEDA makes of it, long after."""
        assert "--name" in deploy(*KEDA, target=f"acct/{'a' * 56}", code=2)


class TestDocker:
    """An image for workers."""

    def instructions(self, text: str) -> list[tuple[str, Any]]:
        """A Dockerfile's instructions; lists are read as Docker reads them."""
        tool("hadolint", text)
        lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
        pairs = (line.partition(" ") for line in lines)
        return [(name, json.loads(rest) if rest.startswith("[") else rest) for name, _, rest in pairs]

    def test_the_image_runs_the_worker_as_nobody_special(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In exec form behind an init process, with the module, by a user that is not root."""
        monkeypatch.setenv("JOBQ_URL", "azure://acct")
        Path("requirements.txt").write_text("numpy\n")
        text = deploy(
            "docker", "-n", "4", "--requirements", "requirements.txt", "--", "--until-idle", "1h", target="deployed_tasks:app"
        )
        found = self.instructions(text)
        assert found[0] == ("FROM", f"python:{sys.version_info.major}.{sys.version_info.minor}-slim")
        assert ("ENTRYPOINT", ["tini", "--", "jobq-worker", "deployed_tasks:app"]) in found
        assert found[-1][1][:2] == ["--concurrency", "4"]
        assert found[-1][1][-2:] == ["--until-idle", "1h"]
        assert ("COPY", ["deployed_tasks.py", "./deployed_tasks.py"]) in found
        assert ("STOPSIGNAL", "SIGTERM") in found
        assert ("ENV", "JOBQ_URL=azure://acct") in found
        user = next(rest for name, rest in found if name == "USER")
        assert user.isdigit()
        assert user != "0"
        assert "--stop-timeout 30 " in text

    def test_workers_without_a_module_copy_nothing(self) -> None:
        """Shell commands and calls by value bring along what they need."""
        found = self.instructions(deploy("docker"))
        assert "COPY" not in [name for name, _ in found]

    def test_a_package_is_copied_as_a_folder(self) -> None:
        """What is copied goes to where it was."""
        Path("pkg").mkdir()
        assert ("COPY", ["pkg/", "./pkg/"]) in self.instructions(deploy("docker", "--module", "pkg.tasks:app"))

    def test_a_module_that_is_not_here_is_told(self) -> None:
        """The image would have no tasks."""
        assert "--copy" in deploy("docker", "--module", "elsewhere.tasks:app", code=2)

    @pytest.mark.parametrize("path", ["../secret", "*", "$HOME", "a b", "/etc/passwd", "missing.py", "x\nUSER root", "--from=x"])
    def test_no_path_leaves_the_folder_or_means_something_else(self, path: str) -> None:
        """Docker reads patterns and variables in paths."""
        assert "is not to be found" in deploy("docker", f"--copy={path}", code=2)

    @given(st.text(min_size=1, max_size=40))
    def test_a_package_is_a_word_whatever_it_holds(self, package: str) -> None:
        """What pip installs stands in a list: it ends in no other instruction, and no shell reads it."""
        done = CliRunner().invoke(cli.jobq, ["acct/proj", "deploy", "docker", f"--package={package}"])
        assert done.exit_code == 0
        runs = [line for line in done.stdout.splitlines() if line.startswith("RUN [")]
        assert json.loads(runs[-1].removeprefix("RUN "))[-1] == package
        assert [line.partition(" ")[0] for line in done.stdout.splitlines() if line[:1].isupper()] == [
            "FROM", "RUN", "ENV", "WORKDIR", "RUN", "ENV", "USER", "STOPSIGNAL", "ENTRYPOINT", "CMD",
        ]  # fmt: skip


FAKE_WORKER = """#!/bin/bash
echo "$@" > asked
trap 'exit 75' TERM
{act}
while :; do sleep 0.02; done
"""


class TestSlurm:
    """A script for sbatch."""

    def directives(self, text: str) -> dict[str, str]:
        """The options of sbatch in a script that bash and ShellCheck accept; all stand before the first command."""
        subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=60)
        lines = text.splitlines()
        assert lines[0] == "#!/bin/bash"
        first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
        pairs = [(n, *line.removeprefix("#SBATCH --").partition("=")) for n, line in enumerate(lines) if line.startswith("#SBATCH")]
        assert all(number < first_command for number, *_ in pairs)
        return {name: value for _, name, _, value in pairs}

    def run(self, text: str, act: str, *, tell: signal.Signals | None = None) -> tuple[int, str]:
        """Run the script with a stand-in for the worker and for scontrol: its exit code, and what scontrol was asked."""
        programs = Path("programs")
        programs.mkdir()
        for name, source in (("jobq-worker", FAKE_WORKER.format(act=act)), ("scontrol", '#!/bin/bash\necho "$@" > requeued\n')):
            (programs / name).write_text(source)
            (programs / name).chmod(0o755)
        os.mkfifo("ready")
        environ = {"PATH": f"{programs.resolve()}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
        with subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, env=environ) as script:
            assert script.stdin
            script.stdin.write(text.encode())
            script.stdin.close()
            if tell is not None:
                Path("ready").read_text()
                script.send_signal(tell)
            code = script.wait(60)
        return code, Path("requeued").read_text().strip() if Path("requeued").exists() else ""

    def test_the_script_asks_for_what_its_workers_need(self) -> None:
        """Every option; the notice before the time limit leaves time for the grace period, and goes to the script alone."""
        words = (
            "--array",
            "20",
            "--time",
            "1d",
            "-n",
            "8",
            "--memory",
            "32g",
            "--gpus",
            "2",
            "--partition",
            "gpu",
            "--grace",
            "1m",
        )
        text = deploy("slurm", *words, "--setup", "module load python")
        tool("shellcheck", text)
        assert self.directives(text) == {
            "job-name": "proj-worker",
            "array": "1-20",
            "ntasks": "1",
            "cpus-per-task": "8",
            "mem": "32768M",
            "gpus-per-node": "2",
            "partition": "gpu",
            "time": "1-00:00:00",
            "signal": "B:USR1@75",
            "requeue": "",
            "open-mode": "append",
            "output": "%x-%A_%a.log",
        }
        assert "\nexport JOBQ_URL=azure://acct\n" in text
        assert "--concurrency 8 --cpus 8 --gpus auto --grace 60s --until-idle 5m" in text

    def test_a_worker_that_the_time_limit_ended_is_queued_again(self) -> None:
        """By the name that means this task, and not by the number that may mean the whole array."""
        assert self.run(deploy("slurm"), "echo > ready", tell=signal.SIGUSR1) == (75, "requeue 7_3")

    def test_a_worker_that_was_cancelled_is_not_queued_again(self) -> None:
        """SIGTERM is scancel's, or Slurm requeues by itself: the worker hears of it, and that is all."""
        assert self.run(deploy("slurm"), "echo > ready", tell=signal.SIGTERM) == (75, "")

    @pytest.mark.parametrize("code", [0, 2, 75])
    def test_a_worker_that_ended_by_itself_is_not_queued_again(self, code: int) -> None:
        """Its work is done, or it cannot begin."""
        assert self.run(deploy("slurm"), f"exit {code}") == (code, "")

    def test_the_right_comes_from_the_environment_of_sbatch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a key opens the account, and calls are signed, the script asks for both, and ends without them."""
        monkeypatch.setenv("JOBQ_CONNECTION_STRING", WITH_KEY)
        monkeypatch.setenv("JOBQ_SIGNING_KEYS", SIGNING_KEY)
        text = deploy("slurm")
        tool("shellcheck", text)
        code, _ = self.run(text, "exit 0")
        assert code != 0
        assert not Path("asked").exists()

    @pytest.mark.parametrize(
        "words",
        [("--partition", "a b"), ("--name", "x\n#SBATCH --uid=0"), ("--account", "$(id)"), ("--time", "60s"), ("--grace", "1d")],
    )
    def test_what_sbatch_would_misread_is_refused(self, words: tuple[str, ...]) -> None:
        """Directives have no quotes; and a worker that is told to end as soon as it begins does nothing."""
        assert words[0] in deploy("slurm", *words, code=2)


ALL = (KEDA, (*KEDA, "--job"), ("docker",), ("slurm",))
kinds = pytest.mark.parametrize("words", ALL, ids=["keda", "job", "docker", "slurm"])


@kinds
def test_no_secret_is_printed(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the account's key nor those that sign; where workers need them is said."""
    monkeypatch.setenv("JOBQ_URL", WITH_KEY)
    monkeypatch.setenv("JOBQ_SIGNING_KEYS", SIGNING_KEY)
    text = deploy(*words)
    assert ACCOUNT_KEY not in text
    assert SIGNING_KEY not in text
    assert "JOBQ_SIGNING_KEYS" in text
    if words[0] == "keda":
        secret = {"secretKeyRef": {"name": "proj-worker-keys", "key": "JOBQ_SIGNING_KEYS"}}
        assert environment_of(pod(documents(text)))["JOBQ_SIGNING_KEYS"] == secret


@kinds
@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("local:///tmp/jobs/proj", "only there for this machine"),
        ("azurite/proj", "only there for this machine"),
        ("deployed_tasks:app", "only there for this machine"),
        ("acct/Not An App", "An app's name"),
        ("acct$(id)/proj", "storage account's name"),
        ("not_here:app", "no module"),
    ],
)
def test_a_target_that_others_cannot_reach_is_an_error(words: tuple[str, ...], target: str, says: str) -> None:
    """One line that says what is wrong, and nothing on standard output."""
    assert says in deploy(*words, target=target, code=2)


@kinds
@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (("--queue", "a b"), "queue's name"),
        (("--module", "os:system('x')"), "MODULE:APP"),
        (("--", "--no-such-option"), "--no-such-option"),
        (("--", "; rm -rf /"), "argument"),
        (("--", "--queue", "x$(id)"), "queue's name"),
    ],
)
def test_options_that_no_worker_takes_are_an_error(words: tuple[str, ...], tail: tuple[str, ...], says: str) -> None:
    """Found where the file is made, and not by each of a hundred workers."""
    assert says in deploy(*words, *tail, code=2)


@pytest.mark.parametrize("image", ["a b", "x\nUSER root", "$IMAGE", "--platform=x", "é"])
def test_an_image_is_one_word(image: str) -> None:
    """It stands where no quotes are, in a Dockerfile."""
    assert "is no image" in deploy("keda", "--image", image, "--client-id", IDENTITY, code=2)
    assert "is no image" in deploy("docker", f"--base={image}", code=2)
