"""``size: auto`` against a calculation by hand, and on real text."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from tokenizer_material import fixture_texts, mistral_base, write_corpus

from tsugiki.experiment.run.stage import StageContext
from tsugiki.tokenizer.base.base import load_base
from tsugiki.tokenizer.config import ExtendConfig, TokenizerConfig
from tsugiki.tokenizer.extend import run
from tsugiki.tokenizer.learning.size import best_size


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    return mistral_base(tmp_path_factory.mktemp("base") / "hf")


def config(**auto):
    return ExtendConfig.model_validate({"size": "auto", "languages": {"ja": 1.0}, "auto": auto})


def test_size_of_least_cost_by_hand(base_dir):
    """Tokens fall as (1 + k)^-a, rows are free but for cost c each: the minimum is where both slopes meet."""
    base = load_base(base_dir)
    a, body, hidden = 0.05, 10_000_000, 64
    sizes = [0, *(2**power for power in range(7, 17))]
    curve = sizes, {"ja": [(1 + k) ** -a for k in sizes]}
    found = best_size(curve, base, config(minimum=1, hidden_size=hidden, parameters=body))

    def cost(k):
        rows = 32_000 + k
        return (1 + k) ** -a * (body + hidden * rows) * (body + 2 * hidden * rows)

    expected = min(range(1, sizes[-1] + 1), key=cost)
    assert found == pytest.approx(expected, rel=0.01)
    # d/dk: a / (1 + k) = h / (body + h rows) + 2 h / (body + 2 h rows)
    slope = hidden / (body + hidden * (32_000 + found)) + 2 * hidden / (body + 2 * hidden * (32_000 + found))
    assert a / (1 + found) == pytest.approx(slope, rel=0.02)


def test_a_larger_model_affords_more_pieces(base_dir):
    base = load_base(base_dir)
    sizes = [0, 128, 1024, 8192, 65536]
    curve = sizes, {"ja": [1.0, 0.9, 0.7, 0.5, 0.4]}
    chosen = [
        best_size(curve, base, config(minimum=1, hidden_size=hidden, parameters=body))
        for hidden, body in ((512, 30_000_000), (2048, 1_000_000_000), (4096, 7_000_000_000))
    ]
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]
    assert best_size(curve, base, config(minimum=1, maximum=2000)) <= 2000
    assert best_size(curve, base, config(minimum=60_000)) >= 60_000


@pytest.mark.slow
def test_auto_on_text(base_dir, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {name: fixture_texts(name) for name in ("ja", "en")})
    auto = {"minimum": 20, "maximum": 400, "hidden_size": 64, "parameters": 3_000_000}
    settings = {"size": "auto", "languages": {"ja": 1.0}, "minimum_count": 2, "auto": auto}
    (tmp_path / "out").mkdir()
    result = run(
        TokenizerConfig.model_validate({"extend": settings, "report_bytes_per_language": 20_000}),
        {"base": base_dir, "corpus": corpus},
        tmp_path / "out",
        StageContext(workers=1),
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    added = result.counts["added_pieces"]
    assert 20 <= added <= 400 and report["auto_size"] == added
    assert sum(report["pieces_by_language"].values()) == added
    sizes = report["curve"]["pieces"]
    ratios = report["curve"]["tokens_relative_to_base"]["ja"]
    assert sizes[0] == 0 and ratios[0] == 1 and sizes == sorted(set(sizes))
    assert all(later <= sooner for sooner, later in pairwise(ratios))
