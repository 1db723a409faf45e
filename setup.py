"""Which folders become ``tsugiki.*``: those at the top of the repository, each under its own name.

Everything else about the package stands in pyproject.toml. The folders are listed here, because setuptools finds
packages below one root only.
"""

from pathlib import Path

from setuptools import setup

ROOMS = {
    "tsugiki": "tsugiki",
    **{
        f"tsugiki.{name}": name
        for name in ("data", "tokenizer", "pretrain", "evaluation", "experiment", "slurm")
    },
    "tsugiki.configs": "configs",  # recipes, profiles, clusters, templates
    "tsugiki.fixtures": "tests/fixtures",  # the text of configs/smoke.yaml
}


def packages() -> list[str]:
    """Dotted names of all folders that hold code or shipped files."""
    found = []
    for name, folder in ROOMS.items():
        root = Path(folder)
        for path in [root, *sorted(root.rglob("*"))]:
            if (
                path.is_dir()
                and "__pycache__" not in path.parts
                and any(item.is_file() for item in path.iterdir())
            ):
                found.append(".".join([name, *path.relative_to(root).parts]))
    return found


setup(packages=packages(), package_dir=ROOMS)
