"""Verdicts of documents: MinHash's as datatrove's own filter applies them, and the accounting of a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import MinhashDedupFilter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_corpus_stage import config, make_source, run

from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.dedup.minhash import apply_clusters
from tsugiki.data.dedup.verdicts import EXACT, VERDICT_TYPE, Verdict, marked, save, without


def write_clusters(folder: Path, removed: list[int], sizes: dict[int, int]) -> None:
    np.array(sorted(removed), "<u4").tofile(folder / "000003.remove")
    np.array(sorted(sizes.items()), "<u4").tofile(folder / "000003.sizes")


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_near_duplicates_are_those_that_datatrove_drops(data: st.DataObject, tmp_path: Path) -> None:
    exact = data.draw(st.lists(st.sampled_from([Verdict.TRAIN, *EXACT]), min_size=1, max_size=30))
    unique = [place for place, verdict in enumerate(exact) if verdict not in EXACT]
    numbers = range(len(unique))
    removed = data.draw(st.sets(st.sampled_from(numbers)) if unique else st.just(set()))
    sizes = data.draw(st.dictionaries(st.sampled_from(numbers), st.integers(2, 9)) if unique else st.just({}))
    write_clusters(tmp_path, list(removed), sizes)

    verdicts = np.zeros(len(exact), VERDICT_TYPE)
    verdicts["verdict"], verdicts["cluster_size"] = exact, 1
    apply_clusters(tmp_path, 3, verdicts)
    save(tmp_path / "verdicts.npy", verdicts)

    def documents() -> list[Document]:
        return [Document("text", str(place)) for place in range(len(exact))]

    everything = documents()
    theirs = MinhashDedupFilter(str(tmp_path), load_cluster_sizes=True).run(
        iter([everything[place] for place in unique]), 3
    )
    expected = [(document.id, document.metadata["minhash_cluster_size"]) for document in theirs]
    stats = DocumentStats()
    kept = list(
        without(marked(documents(), tmp_path / "verdicts.npy"), (*EXACT, Verdict.NEAR_DUPLICATE), stats)
    )
    assert [(document.id, document.metadata["_cluster_size"]) for document in kept] == expected
    assert sum(count.documents for count in stats.dropped.values()) == len(exact) - len(kept)
    assert stats.dropped.get("duplicate.near") is None or stats.dropped["duplicate.near"].documents == len(
        removed
    )


def test_as_many_verdicts_as_documents(tmp_path: Path) -> None:
    save(tmp_path / "v.npy", np.zeros(3, VERDICT_TYPE))
    with pytest.raises(ValueError, match="shorter"):
        list(marked([Document("text", str(place)) for place in range(4)], tmp_path / "v.npy"))


def test_verdicts_say_what_became_of_every_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_source(tmp_path / "in", files=2)  # 20 documents and a copy of the first one in each
    report = run(config(tmp_path / "in"), tmp_path / "out")
    source, work = report["sources"][0], Workspace(tmp_path / "out/.work")
    verdicts = np.concatenate(
        [np.load(work.verdicts("heldout", Shard(number, "web", number, ()))) for number in range(2)]
    )
    counts = {verdict: int((verdicts["verdict"] == verdict).sum()) for verdict in Verdict}
    assert counts[Verdict.TRAIN] == source["train"]["documents"]
    assert counts[Verdict.HELDOUT] == source["heldout"]["documents"] == 4
    assert counts[Verdict.REPEATED_TEXT] == source["dropped"]["duplicate.text"]["documents"] == 2
    assert sum(counts.values()) == source["read"]["documents"] == 42
