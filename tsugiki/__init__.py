"""Tsugiki grafts a new language onto an existing LLM."""

from pathlib import Path

# In a checkout the other folders stand beside this one. With this line PYTHONPATH=<checkout> is enough where nothing
# can be installed (a container with the dependencies alone); an installed package has them below itself.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "setup.py").is_file() and (_checkout / "pretrain").is_dir():
    __path__.append(str(_checkout))
del _checkout
