"""pyproject.toml against what is imported: nothing undeclared, nothing declared in vain; both pinned sets agree with it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("tsugiki", "data", "tokenizer", "pretrain", "evaluation", "experiment", "slurm")
CONSTRAINTS = sorted(ROOT.glob("constraints-py*.txt"))

DISTRIBUTIONS = {
    "cchardet": "faust-cchardet", "fasttext": "fasttext-numpy2-wheel", "google.protobuf": "protobuf", "jinja2": "jinja2",
    "khmernltk": "khmer-nltk", "llama_cpp": "llama-cpp-python", "lm_eval": "lm-eval", "megatron": "megatron-core", "mistral_common": "mistral-common",
    "pyidaungsu": "pyidaungsu-numpy2", "yaml": "pyyaml",
}  # fmt: skip
"""Import name -> distribution, where they differ."""
NOT_FROM_PYPI = {"apex", "transformer_engine", "fused_weight_gradient_mlp_cuda", "_typeshed"}
"""Built from source by slurm/environment.sh where there is a GPU; and what only the type checker sees."""
NEEDED_BY_OTHERS = {
    "lxml-html-clean": "trafilatura 1.x imports it from lxml, which moved it there",
    "accelerate": "lm-eval loads models with it",
    "unidic-lite": "the dictionary of fugashi",
}
TOOLS = {
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "pre-commit",
    "types-pyyaml",
    "types-psutil",
    "jsonschema",
    "tsugiki",
}


def imports(path: Path) -> Iterator[str]:
    """Full names of modules that a file imports, anywhere in it; those given to import_module and find_spec too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "find_spec",
        ):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def distribution(name: str) -> str | None:
    """The distribution behind an import; None for the standard library and ours."""
    top = name.split(".")[0]
    if top in sys.stdlib_module_names or top in ("tsugiki", *NOT_FROM_PYPI):
        return None
    known = next((value for key, value in DISTRIBUTIONS.items() if f"{name}.".startswith(f"{key}.")), top)
    return canonicalize_name(known)


def imported(*folders: str) -> dict[str, str]:
    """Distribution -> a file that imports it."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in imports(path):
                if (needed := distribution(name)) is not None:
                    found.setdefault(needed, str(path.relative_to(ROOT)))
    return found


def declared() -> dict[str, list[Requirement]]:
    """Distribution -> its requirements, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found: dict[str, list[Requirement]] = {}
    for requirement in (Requirement(line) for lines in lists for line in lines):
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_what_is_imported_is_declared() -> None:
    missing = {name: file for name, file in imported(*ROOMS).items() if name not in declared()}
    assert missing == {}


def test_what_is_declared_is_imported() -> None:
    unused = set(declared()) - set(imported(*ROOMS)) - set(NEEDED_BY_OTHERS) - TOOLS
    assert unused == set()
    assert not set(NEEDED_BY_OTHERS) & set(imported(*ROOMS)), "no exception any more"


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    parts = [line.partition("==") for line in lines if line]
    assert all(equals for _, equals, _ in parts), "every line pins a version"
    return {canonicalize_name(re.sub(r"\[.*\]", "", name)): version for name, _, version in parts}


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_pinned_versions_are_allowed(path: Path) -> None:
    """Extras that .[dev] does not install are not pinned."""
    python = ".".join(re.findall(r"py(\d)(\d+)", path.stem)[0])
    pinned = pins(path)
    optional = {
        "wandb",
        "llama-cpp-python",
        "jieba",
        "pythainlp",
        "khmer-nltk",
        "laonlp",
        "pyidaungsu-numpy2",
    }
    for name, requirements in declared().items():
        for requirement in requirements:
            if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python}):
                continue
            if (name in optional and name not in pinned) or name in (
                "tsugiki",
                "torch",
            ):  # the Makefile pins torch
                continue
            assert name in pinned, f"{name} is not pinned"
            assert requirement.specifier.contains(pinned[name], prereleases=True), (
                f"{requirement}: {pinned[name]}"
            )


def test_both_sets_pin_the_same() -> None:
    """Of what is declared here; what that needs in turn may drop a version of Python earlier."""
    first, second = (pins(path) for path in CONSTRAINTS)
    ours = {
        name for name, requirements in declared().items() if not any(item.marker for item in requirements)
    }
    assert {name: first.get(name) for name in ours} == {name: second.get(name) for name in ours}
