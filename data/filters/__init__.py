"""Which documents are kept: one file per section of the quality profiles. See docs/how-to-add.md.

The folder stays flat however many there are: its list of files is the list of filters, which the registry reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tsugiki.experiment.config.registry import Registry

FILTERS: Registry[Callable[[Any, Any], Any]] = Registry(
    "section of a quality profile", ["tsugiki.data.filters"]
)
"""Functions that make the datatrove step of a section, by the section's name in a profile.

They take the section and a :class:`tsugiki.data.filters.base.FilterContext`. What is said with ``register``:

- ``section``: the model of the section, a :class:`tsugiki.data.filters.base.RuleSection`;
- ``order``: where the step stands among the others, cheap ones first;
- ``title``: what the report says about the documents it drops;
- ``rule``: the beginning of the names of its rules in the report, where it is not the section's name;
- ``histograms``: :class:`tsugiki.data.filters.base.Histogram` of the scores it observes;
- ``default``: the section where a profile has none; without it such a profile does without the step.
"""
