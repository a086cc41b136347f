"""What a result depends on besides its configuration: versions, commit, machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dsd_env.provenance import PACKAGES, now_utc, versions


def git_commit(folder: Path) -> str | None:
    """Return the checkout's commit, with ``+changes`` if files differ from it; None outside git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return result.stdout.strip()


__all__ = ["PACKAGES", "git_commit", "now_utc", "versions"]
