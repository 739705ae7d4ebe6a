"""`deploy`: a ready file for workers on Kubernetes, Slurm or Docker, printed and never applied.

No secret gets into a file: it names the storage account, and says where the right to use it comes from.

Next: `workers.py` for what all three need to know, then `keda.py`, `slurm.py`, `docker.py`.
"""

from __future__ import annotations

import click

from .docker import docker
from .keda import keda
from .slurm import slurm


@click.group("deploy", epilog="Exit codes: 0 printed, 2 wrong usage or setup.")
def verb() -> None:
    """Print a ready file for workers of TARGET elsewhere; nothing is applied, and no secret is in it.

    TARGET is MODULE:APP, whose place is a storage account, or ACCOUNT/APP.

    \b
    Examples:
      jobq myproj.tasks:app deploy docker > Dockerfile
      jobq myproj.tasks:app deploy keda --image myregistry.azurecr.io/myproj:1 --client-id ID | kubectl apply -f -
      jobq myaccount/myproj deploy slurm --array 20 --time 4h > workers.sh && sbatch workers.sh
    """


verb.add_command(keda)
verb.add_command(slurm)
verb.add_command(docker)
