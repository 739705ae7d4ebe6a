"""One app in one process: which place is meant, what is opened when, what a fork and a pickle may and may not carry."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from storage_spy import depth

from ai4s.jobq import App, ConfigurationError, Handle, JobQError
from ai4s.jobq.errors import NotFound, PlaceTaken
from ai4s.jobq.testing import temporary_place

KEY = "c2VjcmV0LWFjY291bnQta2V5LW5vYm9keS1tYXktc2Vl"
SAS = "sv=2025-01-05&ss=bq&srt=sco&sp=rwdlac&sig=c2VjcmV0LXNpZ25hdHVyZQ%3D%3D"
SIGNING_KEY = "a-signing-key-that-nobody-may-see"
CONNECTION_STRING = f"DefaultEndpointsProtocol=https;AccountName=someaccount;AccountKey={KEY};EndpointSuffix=core.windows.net"
CALL = "a" * 16 + "-" + "0" * 12

declared = App("client-tests")


@declared.task
def step(x: Any = None) -> Any:
    return x


@pytest.fixture
def app(jobq_place: Callable[[App], App]) -> App:
    """The app of this file, on an empty store."""
    return jobq_place(declared)


def made(*args: Any, **kwargs: Any) -> App:
    """An app that is used for nothing but to look at."""
    return App("client-tests", *args, **kwargs)


# which place


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and an environment that says nothing about a place."""
    for name in ("JOBQ_URL", "JOBQ_SIGNING_KEYS", "AZUREML_RUN_ID", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_without_any_word_a_folder_here_is_meant(nowhere: Path) -> None:
    """It is made when it is used, not before."""
    app = made()

    assert app.client.url == f"local://{nowhere}/.jobq"
    assert not (nowhere / ".jobq").exists()
    app.submit(len, "x")
    assert (nowhere / ".jobq").is_dir()
    app.close()


def test_the_nearest_folder_upward_is_meant(nowhere: Path) -> None:
    """So that all programs of a project meet, wherever in it they are started."""
    (nowhere.parent.parent / ".jobq").mkdir()
    (nowhere.parent / ".jobq").mkdir()

    assert made().client.url == f"local://{nowhere.parent}/.jobq"


def test_a_file_of_that_name_is_no_place(nowhere: Path) -> None:
    """Only a folder counts."""
    (nowhere.parent / ".jobq").write_text("notes")

    assert made().client.url == f"local://{nowhere}/.jobq"


def test_the_log_names_the_folder_that_is_meant(nowhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, when the app is first used."""
    caplog.set_level(logging.INFO, logger="ai4s.jobq")
    app = made()
    assert caplog.messages == []

    app.submit(len, "x")
    app.submit(len, "x")
    assert caplog.messages == [f"App client-tests uses the folder local://{nowhere}/.jobq (JOBQ_URL is not set)."]
    app.close()


@pytest.mark.parametrize("variable", ["AZUREML_RUN_ID", "SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"])
def test_on_a_cluster_a_folder_is_not_meant_silently(nowhere: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other machine would see it, and the calls would wait for ever; the error says why, and what to set."""
    monkeypatch.setenv(variable, "something")

    with pytest.raises(ConfigurationError, match=rf"{variable} says that this machine is one of many.* Set JOBQ_URL"):
        made().submit(len, "x")
    assert list(nowhere.iterdir()) == []


@pytest.mark.usefixtures("nowhere")
def test_on_a_cluster_a_folder_can_be_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By saying so: it may be one that all machines share, or a test."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert made(f"local://{tmp_path}/x").client.url == f"local://{tmp_path}/x"

    monkeypatch.setenv("JOBQ_URL", f"local://{tmp_path}/y")
    assert made().client.url == f"local://{tmp_path}/y"


def test_what_the_program_says_counts_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nowhere: Path
) -> None:
    """And the environment before the folder; an empty variable is none."""
    monkeypatch.setenv("JOBQ_URL", f"local://{tmp_path}/environment")
    assert made(f"local://{tmp_path}/program").client.url == f"local://{tmp_path}/program"
    assert made().client.url == f"local://{tmp_path}/environment"

    monkeypatch.setenv("JOBQ_URL", "")
    assert made().client.url == f"local://{nowhere}/.jobq"


def test_the_environment_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A notebook may set the variable after its imports."""
    app = made()
    monkeypatch.setenv("JOBQ_URL", f"local://{tmp_path}/later")

    assert app.client.url == f"local://{tmp_path}/later"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("local://relative", "wants an absolute folder, as in local:///tmp/jobs"),
        ("azure://Not_An_Account", "A storage account's name is 3 to 24 lower-case letters and digits"),
        ("sb://bus.example.com", "Service Bus"),
        ("nonsense", "This is no place that I know"),
        (f"AccountName=someaccount;AccountKey2={KEY}", "neither AccountKey nor SharedAccessSignature"),
        (f"https://example.com/?{SAS}", "must be https://ACCOUNT.blob.core.windows.net/?SAS"),
    ],
)
def test_a_bad_place_is_explained_without_its_secrets(url: str, says: str) -> None:
    """The forms that a place can take stand in the message; what was given may hold a key."""
    with pytest.raises(ConfigurationError) as caught:
        made(url).submit(len, "x")
    assert says in str(caught.value)
    assert KEY not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    """By name."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ConfigurationError, match="file/place"):
        made(f"local://{tmp_path}/file/place").submit(len, "x")


def test_an_app_keeps_out_of_another_ones_queue(app: App) -> None:
    """`one-two` has the queue that `one` would have as its queue `two`: the second of them is told."""
    here = app.client.url
    first, second = App("one-two", here), App("one", here)
    first.submit(len, "x")

    with pytest.raises(PlaceTaken, match="one-two"):
        second.task(len).options(queue="two").delay("x")
    first.close()
    second.close()


def test_without_the_right_to_create_nothing_is_created(app: App) -> None:
    """`create=False` is for those who may not; then somebody else has to have made queue and container."""
    careful = App("careful", app.client.url, create=False)
    with pytest.raises(NotFound):
        careful.task(step.function).delay(1)

    generous = App("careful", app.client.url)
    generous.task(step.function).delay(1)
    assert careful.task(step.function).delay(1).status() == "pending"
    careful.close()
    generous.close()


# connections


def client_of(handle: Handle[Any]) -> str:
    """The part of a call's id that names who sent it."""
    return handle.id.partition("-")[0]


def test_calls_of_one_process_are_numbered(app: App) -> None:
    """Their outcomes lie side by side, where one listing finds them."""
    first, second = step.delay(), step.delay()

    assert client_of(first) == client_of(second)
    assert [handle.id[-3:] for handle in (first, second)] == ["000", "001"]


def test_threads_share_one_client(app: App) -> None:
    """However many of them come first at the same time."""
    start = threading.Barrier(8)

    def send(n: int) -> Handle[Any]:
        start.wait()
        return step.delay(n)

    with ThreadPoolExecutor(8) as threads:
        handles = list(threads.map(send, range(8)))
    assert len({client_of(handle) for handle in handles}) == 1
    assert len(set(handles)) == 8


def test_a_closed_app_opens_again_when_used(app: App) -> None:
    """With a client id of its own, as numbers begin anew."""
    before = step.delay()
    app.close()
    app.close()

    after = step.delay()
    assert client_of(before) != client_of(after)
    assert before.status() == after.status() == "pending"


async def test_sync_calls_work_where_a_loop_runs(app: App) -> None:
    """As in a notebook. They block that loop, no more."""
    assert step.delay().status() == "pending"
    assert (await step.adelay()).status() == "pending"


def test_a_blocking_call_on_the_portals_own_thread_is_refused(app: App) -> None:
    """It would wait for itself."""
    handle = step.delay()

    async def block(_: object) -> bool:
        return handle.done()

    with pytest.raises(JobQError, match="await its async twin"):
        app.client.run(block)


def test_an_app_leaves_no_thread_behind(tmp_path: Path) -> None:
    """After `close`, nothing runs on."""
    app = made(f"local://{tmp_path}/place")
    before = set(threading.enumerate())
    app.submit(len, "x")
    assert set(threading.enumerate()) > before

    app.close()
    assert set(threading.enumerate()) <= before


# forks

FORKING = """
import json, multiprocessing, sys
from ai4s.jobq import App

app = App("forking", sys.argv[1])

def in_child(handle, answer):
    mine = app.submit(len, "child")
    answer.put((mine.id, handle.status(), mine.result(timeout=60)))

if __name__ == "__main__":
    first = app.submit(len, "parent")
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    children = [context.Process(target=in_child, args=(first, answer)) for _ in range(2)]
    for child in children:
        child.start()
    with app.worker(concurrency=1):
        answers = [answer.get(timeout=60) for _ in children]
        for child in children:
            child.join(60)
        last = app.submit(len, "parent again")
        result = last.result(timeout=60)
    codes = [child.exitcode for child in children]
    print(json.dumps({"parent": [first.id, last.id], "children": answers, "result": result, "codes": codes}))
"""


def test_a_forked_child_is_a_client_of_its_own(tmp_path: Path) -> None:
    """It has ids and connections of its own and leaves its parent's alone; both go on working."""
    program = tmp_path / "forking.py"
    program.write_text(FORKING)
    command = [sys.executable, program, f"local://{tmp_path}/place"]

    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    clients = [call.partition("-")[0] for call in (*said["parent"], *(child[0] for child in said["children"]))]
    assert clients[0] == clients[1]
    assert len(set(clients)) == 3
    assert [child[2] for child in said["children"]] == [5, 5]
    assert said["result"] == len("parent again")
    assert said["codes"] == [0, 0], answer.stderr


# pickles


@pytest.mark.parametrize("url", [CONNECTION_STRING, f"https://someaccount.blob.core.windows.net/?{SAS}"], ids=["key", "sas"])
def test_a_pickle_carries_no_secret(url: str) -> None:
    """Neither that of a handle, nor of a task, of an app, or of a function that refers to them; nor does a repr."""
    app = made(url, signing_keys=[SIGNING_KEY])
    handle = app.handle(CALL)
    task = app.task(lambda x: x)
    things: list[object] = [handle, [handle], app, task, task.options(retries=3), lambda: (app, task, handle)]

    for thing in things:
        seen = cloudpickle.dumps(thing) + repr(thing).encode()
        for secret in (KEY, "sig=", "c2VjcmV0", SIGNING_KEY):
            assert secret.encode() not in seen, f"{thing!r} shows {secret!r}"


def test_an_unpickled_handle_finds_the_client_of_its_process() -> None:
    """With its connections and its keys."""
    app = made(CONNECTION_STRING)
    handle: Handle[Any] = pickle.loads(pickle.dumps(app.handle(CALL)))

    assert handle.client is app.client
    assert handle == app.handle(CALL)


@pytest.fixture
def foreign_pickle() -> bytes:
    """A handle as another process pickled it."""
    program = (
        f"import pickle, sys; from ai4s.jobq import App; print(pickle.dumps(App('foreign', sys.argv[1]).handle({CALL!r})).hex())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, CONNECTION_STRING], capture_output=True, text=True, timeout=60, check=True
    )
    return bytes.fromhex(answer.stdout)


def test_an_unpickled_handle_takes_the_secret_from_the_environment(foreign_pickle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """If $JOBQ_URL names the same account; else Entra ID has to do."""
    monkeypatch.setenv("JOBQ_URL", CONNECTION_STRING)
    assert pickle.loads(foreign_pickle).client.url == CONNECTION_STRING

    monkeypatch.setenv("JOBQ_URL", CONNECTION_STRING.replace("someaccount", "otheraccount"))
    assert pickle.loads(foreign_pickle).client.url == "azure://someaccount"

    monkeypatch.delenv("JOBQ_URL")
    assert pickle.loads(foreign_pickle).client.url == "azure://someaccount"


def test_a_handle_of_another_place_stays_there(app: App) -> None:
    """Also when the app has moved on meanwhile."""
    handle = step.delay()
    pickled, place = pickle.dumps(handle), app.client.place.label

    with temporary_place(app):
        step.delay()
        again: Handle[Any] = pickle.loads(pickled)
        assert again.client.place.label == place
        assert again.status() == "pending"
        again.client.close()


def test_a_pickled_task_still_submits(app: App) -> None:
    """An importable one by reference; a configured copy or one by value with all that it says."""
    assert pickle.loads(pickle.dumps(step)) is step

    copied = pickle.loads(cloudpickle.dumps(step.options(key="x", retries=2)))
    assert copied.delay(1) == step.options(key="x", retries=2).delay(1)
    by_value = pickle.loads(cloudpickle.dumps(app.task(retries=2)(lambda x: x)))
    by_value.delay(1)
    assert depth(app) == 2


def test_settings_do_not_show_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may end up in a log shows neither key nor SAS."""
    monkeypatch.setenv("JOBQ_SIGNING_KEYS", SIGNING_KEY)
    from ai4s.jobq.config import read_settings

    app = made(CONNECTION_STRING)
    seen = f"{read_settings()!r} {app!r} {app.client.place!r} {app.client.keyring!r} {app.handle(CALL)!r}"

    assert KEY not in seen
    assert SIGNING_KEY not in seen
    assert os.environ["JOBQ_SIGNING_KEYS"] == SIGNING_KEY
