"""Which Tsugiki this is."""

from __future__ import annotations

import importlib.metadata
import tomllib

from tsugiki.experiment.config.shipped import checkout


def version() -> str:
    """Version of this code: of the checkout it is run from, else of what is installed."""
    root = checkout()
    if root is None:
        return importlib.metadata.version("tsugiki")
    # A checkout on PYTHONPATH need not be installed, and another version may be.
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def describe_version() -> str:
    """Version, and in a checkout its commit: ``0.1.0 (commit 3f2a…-dirty)``."""
    from tsugiki.experiment.run.manifest import git_revision

    revision = git_revision()
    return version() if revision is None else f"{version()} (commit {revision})"
