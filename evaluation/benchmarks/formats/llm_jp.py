"""The common form of llm-jp-eval's data sets."""

from __future__ import annotations

import json
from typing import Literal

from tsugiki.evaluation.benchmarks.formats import FORMATS, Record


@FORMATS.register("llm_jp")
def read_llm_jp(text: str, *, part: Literal["samples", "few_shots"] = "samples") -> list[Record]:
    """``input`` and ``output`` of what llm-jp-eval's ``preprocess_dataset.py`` writes (``evaluation/test/niilc.json``).

    Args:
        text: of the file.
        part: ``few_shots`` are the four examples that the files of 1.x carry.
    """
    return [{"input": sample["input"], "output": str(sample["output"])} for sample in json.loads(text)[part]]
