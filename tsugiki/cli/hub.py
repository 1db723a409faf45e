"""Whether libraries may ask the Hugging Face hub: not on the default path, but for sources that lie there."""

from __future__ import annotations

import os
from collections.abc import Iterable

_VARIABLE = "HF_HUB_OFFLINE"
_asked_for = False


def go_offline() -> None:
    """Nothing is downloaded unless the user or the configuration asks for it."""
    global _asked_for
    _asked_for = _VARIABLE in os.environ
    os.environ.setdefault(_VARIABLE, "1")


def go_online() -> None:
    """Let the hub be asked, as the user asked for it; to be called as :func:`go_online_for`."""
    go_online_for(["hf://"])


def go_online_for(paths: Iterable[str]) -> None:
    """Let ``hf://`` addresses be read; a variable that the user has set stays as it is.

    To be called before the first import of ``huggingface_hub``, which reads the variable once.
    """
    if not _asked_for and any(path.startswith("hf://") for path in paths):
        os.environ[_VARIABLE] = "0"
