"""The part of a configuration that decides whether a finished stage is still valid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from tsugiki.experiment.config.fingerprint import (
    FingerprintedAs,
    NotFingerprinted,
    OmittedIfDefault,
    OmittedIfNull,
    fingerprint,
)
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.pipeline import load_experiment, stages

REPOSITORY = Path(__file__).parents[4]

RECORDED = {
    "smoke": {
        "corpus": "621d5ace31c300f7e60a34f928b961ea808e743604cd9498702a81a551f16dc7",
        "base": "12033d7db44bfdc96a8617219b8e165abb7e8a70ac3d1bab8c4f34922798bc2d",
        "tokenizer": "5c16a12b841cce4a46d41a4f98496f3faa28358dd6d3bd304c189c8d0aca74c6",
        "tokens": "afea5c1fa6ee831ee1d1faf4b1820921d262a91596e1936fe495e76b352108c3",
        "graft": "59aefa75d2eb9a6007f98721499f580524e8438b7b79f22fab7ab7e208182cce",
        "train": "86f0c5c1671f4727bbedb94653b1624b95c75a7b2579ceb588b64422a25fc762",
        "export": "daf9fe832ce133d5acd45d69c6b5a7fab40bd940f37cb935e5df2f89ea77bdba",
        "evaluate": "32ef8240f4b0b54aef134a660a29b8550d121ba18951f5592577fc86f372f823",
        "report": "457c857bbe5f7ab3c3d8684ba6d428cc1171a263be7ffcf905f905f12eceb517",
    },
    "quickstart": {
        "corpus": "c0ed5494966ab5dbf08b934ef485d9f2553f4aeefe1786459ac2c2b1e4b9e8d5",
        "base": "ec9ab4c8906c57df679909b3b5c82f9417078d3bb6c087974a4ace9aea91943b",
        "tokenizer": "183d7a87a23b1e0e448503bd3746ae3fe598823289e45b2e01d7eb1dc35418e8",
        "tokens": "a2693b36d901f02301138389c1dfa1696742d304e341eaa2a058c9602a9c22a0",
        "graft": "59aefa75d2eb9a6007f98721499f580524e8438b7b79f22fab7ab7e208182cce",
        "train": "3db5b07af78d10bf0e1c2ee711307af775c7edf67423369711376c2afa197e47",
        "export": "daf9fe832ce133d5acd45d69c6b5a7fab40bd940f37cb935e5df2f89ea77bdba",
        "evaluate": "5a02a10d5afff405d2fae9389a910ba3f5ef14c986299c7bdafb308e37129b23",
        "report": "457c857bbe5f7ab3c3d8684ba6d428cc1171a263be7ffcf905f905f12eceb517",
    },
}
"""What the manifests of runs say that were finished before any key was renamed. Never adapt these: a value
that differs means that every finished run of every user is made again."""


@pytest.mark.parametrize("name", RECORDED)
def test_runs_finished_before_stay_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    experiment = load_experiment(Path(f"configs/{name}.yaml"))
    now = {stage.name: fingerprint(stage.config) for stage in stages(experiment.config)}
    assert now == RECORDED[name]


def sha256_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Step(StrictModel):
    use: str
    note: Annotated[str, NotFingerprinted] = ""


class Limits(StrictModel):
    most: int = 3
    workers: Annotated[int, NotFingerprinted] = 1


class Section(StrictModel):
    init: Annotated[
        Literal["mean", "distillation"], FingerprintedAs("initialisation", values={"distillation": "learned"})
    ] = "mean"
    trains: Annotated[list[str], FingerprintedAs(values={"new_rows": "rows"})] = ["all"]
    by_language: Annotated[dict[str, str], FingerprintedAs("languages", values={"complete": "whole"})] = {}
    steps: Annotated[list[Step], OmittedIfDefault] = []
    limits: Annotated[Limits, OmittedIfDefault] = Limits()
    ratio: Annotated[float, OmittedIfDefault] = Field(default=0.5, gt=0)
    tags: Annotated[list[str], OmittedIfDefault] = Field(default_factory=lambda: ["a"])
    options: Annotated[Limits | None, OmittedIfNull] = None


AS_BEFORE = {"initialisation": "mean", "trains": ["all"], "languages": {}}


@pytest.mark.parametrize(
    ("section", "hashed"),
    [
        (Section(), AS_BEFORE),
        (Section(init="distillation"), {**AS_BEFORE, "initialisation": "learned"}),
        (Section(trains=["new_rows", "norms"]), {**AS_BEFORE, "trains": ["rows", "norms"]}),
        (Section(by_language={"ja": "complete"}), {**AS_BEFORE, "languages": {"ja": "whole"}}),
        (Section(steps=[Step(use="a:B", note="x")]), {**AS_BEFORE, "steps": [{"use": "a:B"}]}),
        (Section(limits=Limits(workers=7)), AS_BEFORE),
        (Section(limits=Limits(most=7)), {**AS_BEFORE, "limits": {"most": 7}}),
        (Section(ratio=0.25), {**AS_BEFORE, "ratio": 0.25}),
        (Section(tags=[]), {**AS_BEFORE, "tags": []}),
        (Section(options=Limits()), {**AS_BEFORE, "options": {"most": 3}}),
    ],
)  # fmt: skip
def test_fingerprint_has_the_first_names_and_nothing_new(section: BaseModel, hashed: dict[str, Any]) -> None:
    assert fingerprint(section) == sha256_of(hashed)
