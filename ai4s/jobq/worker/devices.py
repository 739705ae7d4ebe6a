"""What a worker has for its calls: cores, memory and devices, as this process may use them.

A container or a job of a cluster is often allowed less than its machine has: what the kernel grants to this process counts,
and what CUDA_VISIBLE_DEVICES leaves of the devices. Nothing here loads a driver or a library of a device's.

Next: `gates.py`, which deals it out.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from ..errors import ConfigurationError
from ..granted import usable_cores, usable_memory_bytes
from ..message import Resources
from .jobs import Outfit
from .memory import readable

T = TypeVar("T")

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Read by CUDA, and by ROCm's HIP as well. Source: "HIP environment variables" of its documentation."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
"""What libraries ask for how many threads to start, one for each core unless told; PyTorch asks the first two."""

DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
LISTING_SECONDS = 60.0
"""`nvidia-smi` takes seconds where the driver is not loaded yet."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a worker may give to its calls, all at a time.

    `devices` is None where the worker was told of none: then nothing is said to children about devices. A child has `threads`, or
    its share of the cores for None; 0 leaves its libraries alone.
    """

    cpus: int = 1
    memory_bytes: int = 0
    devices: tuple[str, ...] | None = None
    calls_per_gpu: int = 1
    threads: int | None = 0

    @property
    def places(self) -> int:
        """Calls that may have a device at a time."""
        return len(self.devices or ()) * self.calls_per_gpu

    def lacks(self, needs: Resources) -> str | None:
        """Why a call with such needs never fits, even alone; None if it does."""
        has = Resources(len(self.devices or ()), self.cpus, self.memory_bytes)
        pairs = ((needs.gpus, has.gpus), (needs.cpus, has.cpus), (needs.memory_bytes, has.memory_bytes))
        if all((need or 0) <= (there or 0) for need, there in pairs):
            return None
        hint = "; it was started without --gpus" if needs.gpus and self.devices is None else ""
        return f"it needs {described(needs)}; this worker has {described(has)}{hint}."

    def threads_each(self, concurrency: int) -> int | None:
        """Threads for each of so many children; None if nothing is to be said of them."""
        return max(1, self.cpus // concurrency) if self.threads is None else self.threads or None

    def variables(self, outfit: Outfit, given: Mapping[str, str]) -> dict[str, str]:
        """What a child's environment says of its devices and threads, over what is `given`: the user's word on threads stands."""
        said = {} if outfit.devices is None else {VISIBLE: ",".join(outfit.devices)}
        if outfit.threads:
            said |= {name: str(outfit.threads) for name in THREAD_VARIABLES if name not in given}
        return said

    def __str__(self) -> str:
        devices = "" if self.devices is None else f", devices {','.join(self.devices) or 'none'}"
        return f"{_counted(self.cpus, 'core')}, {readable(self.memory_bytes)}{devices}"


def described(needs: Resources) -> str:
    """Needs for people.

    >>> described(Resources(gpus=2, cpus=1, memory_bytes=8 * 1024**3))
    '2 GPUs, 1 core, 8.0 GiB'
    """
    parts = [
        None if needs.gpus is None else _counted(needs.gpus, "GPU"),
        None if needs.cpus is None else _counted(needs.cpus, "core"),
        None if needs.memory_bytes is None else readable(needs.memory_bytes),
    ]
    return ", ".join(part for part in parts if part)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def displaced(outfit: Outfit, idle: Mapping[T, Outfit], kept: Iterable[Outfit], calls_per_gpu: int) -> list[T] | None:
    """Which idle children must end before another has the devices of this outfit; None if all of them would not be enough.

    `kept` are the outfits of those that cannot end now. Of several devices, a child has each for itself.
    """
    leaving: list[T] = []
    kept = list(kept)
    for device in outfit.devices or ():
        room = calls_per_gpu - sum(_uses(each, device, calls_per_gpu) for each in (outfit, *kept))
        if room < 0:
            return None
        for child, held in idle.items():
            uses = 0 if child in leaving else _uses(held, device, calls_per_gpu)
            if uses > room:
                leaving.append(child)
            else:
                room -= uses
    return leaving


def _uses(outfit: Outfit, device: str, calls_per_gpu: int) -> int:
    devices = outfit.devices or ()
    if device not in devices:
        return 0
    return calls_per_gpu if len(devices) > 1 else 1


def machine() -> Hardware:
    """What this machine grants to this process, no devices among it; threads are cores per slot."""
    return Hardware(usable_cores(), usable_memory_bytes(), threads=None)


class Said(TypedDict, total=False):
    """What a worker's options say of its hardware: `gpus` is "auto", all there are, or a number."""

    gpus: str
    calls_per_gpu: int
    cpus: int
    memory: int
    threads: int


def hardware_for(environ: Mapping[str, str], **said: Unpack[Said]) -> Hardware:
    """This machine's hardware with what was said of it. Raises ConfigurationError for devices that are not there."""
    found = machine()
    return Hardware(
        said.get("cpus", found.cpus),
        said.get("memory", found.memory_bytes),
        devices_for(said["gpus"], environ) if "gpus" in said else None,
        said.get("calls_per_gpu", 1),
        said.get("threads"),
    )


def devices_for(asked: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """As many devices as `asked` for. Raises ConfigurationError."""
    found = found_devices(environ)
    if asked == "auto":
        if not found:
            raise ConfigurationError(
                f"--gpus auto finds none: {VISIBLE} is {environ.get(VISIBLE, 'not set')!r}, and no NVIDIA driver tells of one. "
                "Say how many there are, as in --gpus 2, or leave the option out."
            )
        return found
    if not re.fullmatch(r"\d{1,3}", asked):
        raise ConfigurationError(f"--gpus wants 'auto' or a number of devices; got {asked!r}.")
    if found is None:
        # Devices of which no driver of NVIDIA's knows: the user does.
        return tuple(map(str, range(int(asked))))
    if len(found) < int(asked):
        raise ConfigurationError(f"--gpus {asked}: there are only {_counted(len(found), 'device')} that this process may use.")
    return found[: int(asked)]


def found_devices(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES names them; None if nothing tells of any."""
    if VISIBLE in environ:
        return _visible(environ[VISIBLE])
    count = _counted_by_tool() or _counted_by_driver()
    return tuple(map(str, range(count))) if count else None


def _visible(text: str) -> tuple[str, ...]:
    """Up to the first that is none: what follows it, CUDA ignores. Slurm writes NoDevFiles where a job has none."""
    found: list[str] = []
    for name in map(str.strip, text.split(",")):
        if name in ("", "-1", "NoDevFiles"):
            break
        found.append(name)
    return tuple(dict.fromkeys(found))


def _counted_by_tool() -> int:
    """What `nvidia-smi -L` lists: in a container, only what that was given."""
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LISTING_SECONDS, check=True).stdout
        return len(re.findall(r"^GPU \d+:", told, re.MULTILINE))
    return 0


def _counted_by_driver() -> int:
    with suppress(OSError):
        return len(list(DRIVER_FOLDER.iterdir()))
    return 0
