"""What a worker has is what its process may use, and each child's environment says what it has of that."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai4s.jobq import granted
from ai4s.jobq.errors import ConfigurationError
from ai4s.jobq.granted import usable_cores, usable_memory_bytes
from ai4s.jobq.message import NO_NEEDS, Resources
from ai4s.jobq.worker import devices
from ai4s.jobq.worker.devices import THREAD_VARIABLES, VISIBLE, Hardware, displaced, found_devices, hardware_for
from ai4s.jobq.worker.jobs import Outfit

GIB = 1024**3


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine has, no tool and no driver tells of devices."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(devices, "DRIVER_FOLDER", tmp_path / "no-driver")


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Control groups as the kernel shows them, below this folder."""
    monkeypatch.setattr(granted, "GROUP_FOLDER", tmp_path / "cgroup")
    monkeypatch.setattr(granted, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


# Devices.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0", ("0",)),
        ("2, 3", ("2", "3")),
        ("GPU-8932f937,MIG-5f0c", ("GPU-8932f937", "MIG-5f0c")),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0,-1,1", ("0",)),
        ("1,1", ("1",)),
    ],
)
def test_the_variable_says_which_devices_there_are(text: str, found: tuple[str, ...]) -> None:
    """As CUDA reads it: whatever follows one that is none does not count."""
    assert found_devices({VISIBLE: text}) == found


def test_without_the_variable_the_tool_is_asked_and_then_the_driver(tmp_path: Path) -> None:
    """And if none of them tells of any, nothing is known."""
    assert found_devices({}) is None
    for name in ("0000:00:1e.0", "0000:00:1f.0", "0001:00:00.0"):
        (tmp_path / "no-driver" / name).mkdir(parents=True)
    assert found_devices({}) == ("0", "1", "2")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA A100 (UUID: GPU-2)'\n")
    tool.chmod(0o700)
    assert found_devices({}) == ("0", "1")


def test_devices_as_asked_for() -> None:
    """All, or the first so many; a number is believed where nothing tells of any."""
    environ = {VISIBLE: "4,5,6"}
    assert hardware_for(environ).devices is None
    assert hardware_for(environ, gpus="auto").devices == ("4", "5", "6")
    assert hardware_for(environ, gpus="2", calls_per_gpu=3).places == 6
    assert hardware_for(environ, gpus="0").devices == ()
    assert hardware_for({}, gpus="2").devices == ("0", "1")


@pytest.mark.parametrize(
    ("environ", "asked", "says"),
    [
        ({}, "auto", f"{VISIBLE} is 'not set'"),
        ({VISIBLE: ""}, "auto", f"{VISIBLE} is ''"),
        ({VISIBLE: "0"}, "2", "only 1 device "),
        ({VISIBLE: "0,1"}, "3", "only 2 devices "),
        ({}, "all", "'auto' or a number"),
        ({}, "-1", "'auto' or a number"),
    ],
)
def test_devices_that_are_not_there(environ: dict[str, str], asked: str, says: str) -> None:
    """The error says what was looked at."""
    with pytest.raises(ConfigurationError, match=says):
        hardware_for(environ, gpus=asked)


# Cores and memory.


def test_cores_and_memory_of_a_machine(groups: Path) -> None:
    """Without control groups: those that this process is bound to, and all memory."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert usable_cores() == bound
    assert usable_memory_bytes() == psutil.virtual_memory().total
    assert not (groups / "own").exists()


def test_a_containers_limits_count(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrowest of its own group and those above; "max" is none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    (groups / "own").write_text("0::/job/step\n")
    step = groups / "cgroup" / "job" / "step"
    step.mkdir(parents=True)
    (step / "cpu.max").write_text("max 100000\n")
    (step / "memory.max").write_text("max\n")
    assert (usable_cores(), usable_memory_bytes()) == (64, psutil.virtual_memory().total)
    (step.parent / "cpu.max").write_text("250000 100000\n")
    (step.parent / "memory.max").write_text("1048576\n")
    assert (usable_cores(), usable_memory_bytes()) == (2, 1048576)
    (step / "cpu.max").write_text("50000 100000\n")
    assert usable_cores() == 1


def test_limits_of_the_first_kind_of_control_groups(groups: Path) -> None:
    """Each controller in a folder of its own."""
    (groups / "own").write_text("4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/\n")
    cpu, memory = groups / "cgroup/cpu,cpuacct/docker/x", groups / "cgroup/memory"
    cpu.mkdir(parents=True)
    memory.mkdir(parents=True)
    (cpu / "cpu.cfs_quota_us").write_text("100000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    (memory / "memory.limit_in_bytes").write_text("2097152\n")
    assert (usable_cores(), usable_memory_bytes()) == (1, 2097152)
    (cpu / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores() >= 1


# What fits, and what children are told.


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (NO_NEEDS, None),
        (Resources(1, 4, 8 * GIB), None),
        (Resources(gpus=2), "it needs 2 GPUs; this worker has 1 GPU, 4 cores, 8.0 GiB."),
        (Resources(cpus=5), "it needs 5 cores; this worker has 1 GPU, 4 cores, 8.0 GiB."),
        (Resources(0, 1, 9 * GIB), "it needs 0 GPUs, 1 core, 9.0 GiB; this worker has 1 GPU, 4 cores, 8.0 GiB."),
    ],
)
def test_what_never_fits(needs: Resources, says: str | None) -> None:
    """The reason names what is needed, and what there is."""
    assert Hardware(4, 8 * GIB, devices=("0",)).lacks(needs) == says


def test_a_worker_without_the_option_says_so() -> None:
    """There may be devices all the same."""
    assert "started without --gpus" in (Hardware(4, 8 * GIB).lacks(Resources(gpus=1)) or "")


def test_children_are_told_their_devices_and_threads() -> None:
    """What the user has set for threads stays; nothing is said where nothing is known."""
    hardware, given_ = Hardware(cpus=8, threads=None), {"OMP_NUM_THREADS": "3", VISIBLE: "0"}
    told = hardware.variables(Outfit(devices=("GPU-1", "GPU-2"), threads=2), given_)
    assert told == {VISIBLE: "GPU-1,GPU-2", **dict.fromkeys(THREAD_VARIABLES[1:], "2")}
    assert hardware.variables(Outfit(devices=()), given_) == {VISIBLE: ""}
    assert hardware.variables(Outfit(), given_) == {}


@pytest.mark.parametrize(("threads", "concurrency", "each"), [(None, 3, 2), (None, 100, 1), (5, 3, 5), (0, 3, None)])
def test_threads_are_cores_per_slot_unless_told(threads: int | None, concurrency: int, each: int | None) -> None:
    """At least one; 0 leaves libraries alone."""
    assert Hardware(cpus=8, threads=threads).threads_each(concurrency) == each


# Which children go.


outfits = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(lambda names: Outfit(devices=tuple(names)))


def fits(together: list[Outfit], calls_per_gpu: int) -> bool:
    """Whether children of these outfits can live side by side."""
    for device in "abc":
        users = [outfit for outfit in together if device in (outfit.devices or ())]
        if len(users) > calls_per_gpu or (len(users) > 1 and any(len(user.devices or ()) > 1 for user in users)):
            return False
    return True


@settings(derandomize=True, deadline=None, database=None)
@given(outfits, st.lists(outfits, max_size=5), st.lists(outfits, max_size=3), st.integers(1, 3))
def test_idle_children_go_as_far_as_they_are_in_the_way(new: Outfit, idle: list[Outfit], kept: list[Outfit], per_gpu: int) -> None:
    """Afterwards there is room for the new one; or there is none, whoever goes."""
    while not fits(idle + kept, per_gpu):
        idle, kept = idle[1:], kept if idle else kept[1:]
    leaving = displaced(new, dict(enumerate(idle)), kept, per_gpu)
    if leaving is None:
        assert not fits([new, *kept], per_gpu)
    else:
        staying = [outfit for number, outfit in enumerate(idle) if number not in leaving]
        assert fits([new, *staying, *kept], per_gpu)
        assert len(set(leaving)) == len(leaving)
        assert all(set(idle[number].devices or ()) & set(new.devices or ()) for number in leaving)
