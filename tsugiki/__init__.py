"""Tsugiki grafts a new language onto an existing LLM.

The Python interface, described in docs/api.md: load an experiment, change it, run it, read what came out; extend a
tokenizer; import, export and verify a checkpoint; compare runs. Everything is imported when it is first asked for, and
importing changes no environment variable.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsugiki.experiment.errors import TsugikiError
    from tsugiki.pipeline import Experiment, load_experiment
    from tsugiki.results import Run, open_run
    from tsugiki.tools import (
        compare,
        export_checkpoint,
        import_checkpoint,
        tokenizer_report,
        verify_checkpoint,
    )
    from tsugiki.vocabulary import extend_tokenizer

# In a checkout the other folders stand beside this one. With this line PYTHONPATH=<checkout> is enough where nothing
# can be installed (a container with the dependencies alone); an installed package has them below itself.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "setup.py").is_file() and (_checkout / "pretrain").is_dir():
    __path__.append(str(_checkout))
del _checkout

_HOME = {
    "Experiment": "tsugiki.pipeline",
    "Run": "tsugiki.results",
    "TsugikiError": "tsugiki.experiment.errors",
    "compare": "tsugiki.tools",
    "export_checkpoint": "tsugiki.tools",
    "extend_tokenizer": "tsugiki.vocabulary",
    "import_checkpoint": "tsugiki.tools",
    "load_experiment": "tsugiki.pipeline",
    "open_run": "tsugiki.results",
    "tokenizer_report": "tsugiki.tools",
    "verify_checkpoint": "tsugiki.tools",
}
"""Name -> module that has it."""

__all__ = [
    "Experiment",
    "Run",
    "TsugikiError",
    "compare",
    "export_checkpoint",
    "extend_tokenizer",
    "import_checkpoint",
    "load_experiment",
    "open_run",
    "tokenizer_report",
    "verify_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from tsugiki.version import version

        return version()
    if name not in _HOME:
        raise AttributeError(f"module 'tsugiki' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
