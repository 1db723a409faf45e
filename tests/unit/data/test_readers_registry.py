"""Formats as files of data/readers: the known ones, one of a user's own, and what is wrong with a name."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import CorpusConfig, SourceConfig
from tsugiki.data.inputs.planning import plan_fingerprint, plan_shards
from tsugiki.data.inputs.source_reader import SourceReader
from tsugiki.data.readers import READERS
from tsugiki.experiment.config.fingerprint import fingerprint
from tsugiki.experiment.config.validate import load_config
from tsugiki.experiment.errors import ConfigError

OWN = '''
from pydantic import Field

from tsugiki.data.common.streams import open_stream
from tsugiki.data.config import ReaderConfig
from tsugiki.data.readers.base import BadRecord, Reader, new_document, numbered_parts


class RecordsConfig(ReaderConfig):
    """Options."""

    separator: str = Field(default="%%", min_length=1)
    """What stands between two records."""


class RecordsReader(Reader):
    """Records between separators."""

    options = RecordsConfig

    def read(self, source, file):
        with open_stream(file.path) as stream:
            records = stream.read().decode().split(source.reader.separator)
        for number, text in enumerate(records, start=1):
            if file.part is not None and not file.part.has(number):
                continue
            where = f"{file.name}, record {number}"
            if not text.strip():
                yield number, BadRecord("read.empty_record", where, "no text")
            else:
                yield number, new_document(source, f"{source.name}/{file.name}#{number}", text, len(text))

    def divide(self, source, file, count, streamed):
        return numbered_parts(file, count)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with a reader, on the path."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "own_records.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "own_records", raising=False)
    return "own_records:RecordsReader"


def write(path: Path, **source: object) -> Path:
    values = {"name": "s", "language": "en", "path": "x", "filter": False} | source
    path.write_text(yaml.safe_dump({"sources": [values]}, sort_keys=False))
    return path


def test_the_formats_are_the_files() -> None:
    assert READERS.names() == ["html", "jsonl", "parquet", "text", "warc", "wet"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "json",
            ["got:      'json'", "one of html, jsonl, parquet, text, warc, wet", "did you mean 'jsonl'?"],
        ),
        ("nowhere.at_all:Reader", ["ModuleNotFoundError: No module named 'nowhere'", "PYTHONPATH"]),
        ("json:loads", ["a function, not a subclass of Reader"]),
        ("json:nothing", ["loads"]),
    ],
)
def test_a_wrong_format_names_the_known_ones_and_its_line(
    tmp_path: Path, name: str, expected: list[str]
) -> None:
    path = write(tmp_path / "c.yaml", format=name)
    line = path.read_text().splitlines().index(f"  format: {name}") + 1
    with pytest.raises(ConfigError) as caught:
        load_config(CorpusConfig, path)
    for part in ["wrong value for 'sources.0.format'", f"where:    {path}:{line}", *expected]:
        assert part in str(caught.value)


def test_kinds_a_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`format: jsonl` or `parquet` for `kind: instruction`"):
        load_config(CorpusConfig, write(tmp_path / "c.yaml", format="html", kind="instruction"))


def test_options_of_the_format(tmp_path: Path, own: str) -> None:
    config = load_config(CorpusConfig, write(tmp_path / "c.yaml", format=own, reader={"separator": "--"}))
    assert config.sources[0].reader.separator == "--"  # type: ignore[attr-defined]
    assert (
        load_config(CorpusConfig, write(tmp_path / "d.yaml", format=own)).sources[0].reader.separator == "%%"
    )  # type: ignore[attr-defined]
    again = CorpusConfig.model_validate(config.model_dump(mode="json"))
    assert again == config and fingerprint(again) == fingerprint(config)
    path = write(tmp_path / "e.yaml", format="jsonl", reader={"separator": "--"})
    with pytest.raises(ConfigError) as caught:
        load_config(CorpusConfig, path)
    assert f"unknown key 'sources.0.reader.separator'\n  where:    {path}:" in str(caught.value)
    with pytest.raises(ConfigError, match="at least 1 character"):
        load_config(CorpusConfig, write(tmp_path / "f.yaml", format=own, reader={"separator": ""}))


def test_a_reader_of_ones_own_reads_divides_and_chooses(tmp_path: Path, own: str) -> None:
    (tmp_path / "file.txt").write_text("%%".join([f"text {number}" for number in range(200)] + [" "]))

    def read(**more: object) -> tuple[list[str], dict[str, int]]:
        source = {"name": "s", "language": "en", "format": own, "path": str(tmp_path / "file.txt")}
        config = CorpusConfig.model_validate({"sources": [source | more.pop("source", {})], **more})  # type: ignore[dict-item]
        stats = DocumentStats()
        texts = [
            document.text
            for shard in plan_shards(config)
            for document in SourceReader(config.sources[0], shard, stats, "skip").run(None)
        ]
        return texts, {rule: count.documents for rule, count in stats.dropped.items()}

    whole, dropped = read()
    assert whole == [f"text {number}" for number in range(200)]
    assert dropped == {"read.empty_record": 1}
    divided, dropped = read(shard_input_bytes=500)
    assert sorted(divided) == sorted(whole) and divided != whole
    assert dropped == {"read.empty_record": 1}
    chosen, _ = read(source={"maximum_documents": 10})
    assert len(chosen) == 10 and set(chosen) < set(whole)


def test_the_code_of_a_reader_of_ones_own_is_part_of_the_plan(tmp_path: Path, own: str) -> None:
    (tmp_path / "file.txt").write_text("a%%b")
    source = {"name": "s", "language": "en", "format": own, "path": str(tmp_path / "file.txt")}
    config = CorpusConfig(sources=[SourceConfig.model_validate(source)])
    before = plan_fingerprint(config, {}, plan_shards(config))
    assert plan_fingerprint(config, {}, plan_shards(config)) == before
    module = tmp_path / "modules" / "own_records.py"
    module.write_text(module.read_text() + dedent("\n# changed\n"))
    assert plan_fingerprint(config, {}, plan_shards(config)) != before
