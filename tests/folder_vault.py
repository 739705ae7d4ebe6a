"""A vault for checkpoints that is a folder: what a task has to do with, without a worker."""

from __future__ import annotations

import shutil
from pathlib import Path

from ai4s.jobq.message import Form


class FolderVault:
    """Keeps the last checkpoint in a folder; `keeps` says whether it says that it does."""

    def __init__(self, folder: Path, *, keeps: bool = True) -> None:
        self.path = folder / "passing"
        self.keeps = keeps
        self.form: Form | None = None
        self._kept = folder / "kept"

    def save(self, form: Form) -> bool:
        """See `Vault`."""
        if self.keeps:
            shutil.copyfile(self.path, self._kept)
            self.form = form
        return self.keeps

    def load(self) -> Form | None:
        """See `Vault`."""
        if self.form is not None:
            shutil.copyfile(self._kept, self.path)
        return self.form
