"""``corpus.steps``: datatrove steps of the user's own, counted, keyed, and refused by name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_corpus_stage import config, contents, documents, make_source, run, write_jsonl

from tsugiki.data import corpus
from tsugiki.data.common import executor as execution
from tsugiki.data.config import CorpusConfig
from tsugiki.data.inputs.planning import own_code, plan_fingerprint, plan_shards
from tsugiki.data.passes.job_array import filter_pass
from tsugiki.experiment.config.fingerprint import fingerprint
from tsugiki.experiment.config.strict import dump_yaml
from tsugiki.experiment.config.validate import load_config
from tsugiki.experiment.errors import ConfigError, DataError

MODULE = '''
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter


class EndsWith(BaseFilter):
    """Drops by the last digit of the id, with a reason."""
    name = "ends with"
    def __init__(self, digit, batch_size=1):
        super().__init__(batch_size=batch_size)
        self.digit = digit
    def filter(self, doc):
        return True if not doc.id.endswith(self.digit) else (False, f"digit_{self.digit}")


class EveryOther(PipelineStep):
    """Drops silently; keeps everything in its memory before it gives anything."""
    name = "every other"
    def run(self, data, rank=0, world_size=1):
        held = list(data)
        yield from held[::2]


class Upper(PipelineStep):
    def run(self, data, rank=0, world_size=1):
        for document in data:
            if document.id.endswith("1"):
                document.text = document.text.upper() + "\\r\\n "
            if document.id.endswith("2"):
                document.text = " "
            yield document
            if document.id.endswith("3"):
                yield Document(document.text[::-1], document.id + "/mirror", metadata=document.metadata | {"url": None})


class Look(PipelineStep):
    """Writes down what it sees."""
    def __init__(self, key):
        super().__init__()
        self.key = key
    def run(self, data, rank=0, world_size=1):
        for document in data:
            document.metadata[self.key] = [rank, world_size, document.text[:9]]
            yield document


class Fails(PipelineStep):
    def __init__(self, on="5", how="raise", unless=None):
        super().__init__()
        self.on, self.how, self.unless = on, how, unless
    def run(self, data, rank=0, world_size=1):
        if self.how == "before":
            raise OSError("no model")
        for document in data:
            if self.how == "import":
                import not_installed
            wrong = document.id.endswith(self.on) and not (self.unless and Path(self.unless).exists())
            if wrong and self.how == "raise":
                raise ZeroDivisionError("by zero")
            if wrong and self.how == "metadata":
                document.metadata["set"] = {1, 2}
            yield {} if wrong and self.how == "type" else document
            if wrong and self.how == "after":
                raise ZeroDivisionError("too late")


class NotAStep:
    pass
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module on the path, also of other processes."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "own_steps.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delitem(sys.modules, "own_steps", raising=False)
    return folder / "own_steps.py"


def step(
    name: str, after: str = "quality", label: str | None = None, **arguments: object
) -> dict[str, object]:
    return {"use": f"own_steps:{name}", "after": after, "name": label, "with": arguments}


def dropped(report: dict[str, Any]) -> dict[str, int]:
    counts = report["sources"][0]["dropped"]
    return {rule: count["documents"] for rule, count in counts.items() if not rule.startswith("duplicate")}


def test_what_steps_drop_change_and_add_is_counted_under_their_names(tmp_path: Path, own: Path) -> None:
    make_source(tmp_path / "in", files=2)  # ids N-0 ... N-19 and N-copy
    steps = [
        step("EndsWith", digit="7", label="SevenOut"),
        step("EveryOther", label="Half"),
        step("Upper"),
    ]
    report = run(config(tmp_path / "in", steps=steps), tmp_path / "out")
    source = report["sources"][0]
    # Of 21 documents a file, 7 and 17 go to the first step; of the 19 left, every second one to the other.
    assert dropped(report) == {"SevenOut.digit_7": 4, "Half": 18, "Upper.empty_text": 2}
    assert source["counters"] == {"Upper changed": 4, "Upper added": 2}
    everything = sum(count["documents"] for count in source["dropped"].values()) + source["kept"]["documents"]
    assert everything == source["read"]["documents"] + source["counters"]["Upper added"]
    texts = {
        item["id"]: item["text"]
        for split in ("train", "heldout")
        for item in documents(tmp_path / "out", split)
    }
    capitals = [text for text in texts.values() if text.isupper()]
    assert capitals and not any(
        text.endswith(("\r", "\n", " ")) for text in capitals
    )  # normalised as all text is
    assert any(name.endswith("/mirror") for name in texts)
    samples = {sample["rule"]: sample["text"] for sample in source["samples"]}
    assert samples["Half"] and len(samples["SevenOut.digit_7"]) > 100
    assert source["dropped"]["Half"]["bytes"] > 18 * 300
    assert "SevenOut" in (tmp_path / "out/report.html").read_text()


def test_a_step_of_datatrove(tmp_path: Path) -> None:
    make_source(tmp_path / "in", files=1)
    steps = [{"use": "datatrove.pipeline.filters:RegexFilter", "with": {"regex_exp": r"\bharvest\b"}}]
    report = run(config(tmp_path / "in", steps=steps, allow_empty=True), tmp_path / "out")
    source = report["sources"][0]
    kept = [item["text"] for split in ("train", "heldout") for item in documents(tmp_path / "out", split)]
    assert kept and not any("harvest" in text.split() for text in kept)
    assert set(dropped(report)) == {"RegexFilter"}
    texts = {sample["text"] for sample in source["samples"] if sample["rule"] == "RegexFilter"}
    assert texts and all("harvest" in text for text in texts)


def test_batches_of_a_filter(tmp_path: Path, own: Path) -> None:
    make_source(tmp_path / "in", files=1)
    one = run(config(tmp_path / "in", steps=[step("EndsWith", digit="7")]), tmp_path / "one")
    many = run(config(tmp_path / "in", steps=[step("EndsWith", digit="7", batch_size=5)]), tmp_path / "many")
    assert dropped(one) == dropped(many) == {"EndsWith.digit_7": 2}
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_points(tmp_path: Path, own: Path) -> None:
    """What a step sees at each point; it runs in the order of the list at its own."""
    words = "The people of the village were in the market when the rain came and they had to go home. " * 12
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / f"in/{number}.html").write_text(
            f"<html><body><p>{words} {number}{number}</p></body></html>"
        )
    points = ["quality", "read", "language", "extraction", "urls"]
    steps = [step("Look", after=point, label=point.title(), key=f"at_{point}") for point in points]
    source = {"name": "web", "language": "en", "format": "html", "path": str(tmp_path / "in")}
    off = {"minhash": {"enabled": False}}
    run(
        config(tmp_path, sources=[source], steps=steps, shard_input_files=2, deduplication=off),
        tmp_path / "out",
    )
    kept = [item for split in ("train", "heldout") for item in documents(tmp_path / "out", split)]
    assert len(kept) == 4
    for item in kept:
        seen = {point: item["metadata"][f"at_{point}"] for point in points}
        assert [name for name in item["metadata"] if name.startswith("at_")] == [
            "at_read", "at_urls", "at_extraction", "at_language", "at_quality"
        ]  # fmt: skip
        assert {tuple(value[:2]) for value in seen.values()} == {(int(item["id"][4]) // 2, 2)}
        assert [seen[point][2] for point in ("read", "urls")] == ["<html><bo"] * 2
        assert [seen[point][2] for point in ("extraction", "language", "quality")] == ["The peopl"] * 3


def test_steps_run_where_nothing_is_filtered_and_before_conversations_are_written(
    tmp_path: Path, own: Path
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(
        tmp_path / "chat.jsonl", [{"id": str(n), "messages": [*messages, messages[n % 2]]} for n in range(4)]
    )
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"id": name, "source": name, "target": name[::-1]} for name in ("one", "two")],
    )
    common = {"language": "en", "format": "jsonl"}
    sources = [
        common | {"name": "chat", "path": str(tmp_path / "chat.jsonl"), "kind": "instruction"},
        common | {
            "name": "pairs", "path": str(tmp_path / "pairs.jsonl"), "kind": "parallel", "parallel": {"target_language": "de"},
        },
    ]  # fmt: skip
    steps = [
        step("Look", after=point, label=point.title(), key=point) for point in ("read", "urls", "quality")
    ]
    run(config(tmp_path, sources=sources, steps=steps), tmp_path / "out")
    for item in (item for split in ("train", "heldout") for item in documents(tmp_path / "out", split)):
        seen = {name for name in ("read", "urls", "quality") if name in item["metadata"]}
        # Conversations have no text: only the points before the text are theirs.
        assert seen == (
            {"read", "urls"} if item["metadata"]["source"] == "chat" else {"read", "urls", "quality"}
        )


def test_no_steps_change_no_key_and_steps_are_in_every_key(tmp_path: Path, own: Path) -> None:
    make_source(tmp_path / "in", files=1)
    plain = config(tmp_path / "in")
    assert fingerprint(plain) == fingerprint(config(tmp_path / "in", steps=[]))
    shards = plan_shards(plain)
    assert plan_fingerprint(plain, {}, shards) == plan_fingerprint(
        config(tmp_path / "in", steps=[]), {}, shards
    )
    base = step("EndsWith", digit="7")
    variants = [
        [base],
        [base | {"use": "own_steps:Fails"}],
        [base | {"after": "language"}],
        [base | {"with": {"digit": "8"}}],
        [base, step("Upper")],
        [step("Upper"), base],
        [],
    ]
    settings = [config(tmp_path / "in", steps=steps) for steps in variants]
    assert len({fingerprint(item) for item in settings}) == len(variants)
    assert len({plan_fingerprint(item, {}, shards) for item in settings}) == len(variants)
    before = plan_fingerprint(settings[0], {}, shards)
    assert own_code(settings[0]) == [own.resolve()] and own_code(plain) == []
    own.write_text(MODULE + "\n# another\n")
    assert plan_fingerprint(settings[0], {}, shards) != before
    datatrove = [{"use": "datatrove.pipeline.filters:GopherQualityFilter"}]
    assert own_code(config(tmp_path / "in", steps=datatrove)) == []  # installed, not the user's own


def test_the_module_a_class_comes_from_is_in_the_key_too(tmp_path: Path, own: Path) -> None:
    (own.parent / "facade.py").write_text("from own_steps import Upper\n")
    settings = config(tmp_path, steps=[{"use": "facade:Upper"}])
    assert own_code(settings) == [(own.parent / "facade.py").resolve(), own.resolve()]


def test_the_stage_key_holds_the_code(tmp_path: Path, own: Path) -> None:
    from tsugiki.pipeline import _source_files

    make_source(tmp_path / "in", files=1)
    files = _source_files(config(tmp_path / "in", steps=[step("Upper")]))
    assert own.resolve() in files and own.resolve() not in _source_files(config(tmp_path / "in"))


def test_a_section_survives_being_written(tmp_path: Path, own: Path) -> None:
    settings = config(tmp_path, steps=[step("EndsWith", digit="7")])
    (tmp_path / "c.yaml").write_text(dump_yaml(settings))
    assert "with:\n    digit: '7'" in (tmp_path / "c.yaml").read_text()
    assert load_config(CorpusConfig, tmp_path / "c.yaml") == settings == pickle.loads(pickle.dumps(settings))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"after": "filters"},
            ["steps.0.after", "'read', 'urls', 'extraction', 'language' or 'quality'", "'filters'"],
        ),
        ({"use": "own_steps.Upper"}, ["steps.0.use", "own_steps.Upper"]),
        ({"whith": {}}, ["unknown key", "whith", "did you mean 'with'?"]),
        ({"with": [1]}, ["steps.0.with", "dictionary"]),
    ],
)
def test_what_the_configuration_refuses(
    tmp_path: Path, changes: dict[str, object], expected: list[str]
) -> None:
    import yaml

    values = config(tmp_path).model_dump(mode="json") | {"steps": [{"use": "own_steps:Upper"} | changes]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load_config(CorpusConfig, tmp_path / "c.yaml")
    for part in [*expected, f"{tmp_path / 'c.yaml'}:"]:
        assert part in str(caught.value)


def test_two_steps_of_one_name() -> None:
    with pytest.raises(ValueError, match=r"twice: Upper"):
        config(Path("x"), steps=[step("Upper"), step("Upper", after="language")])


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"use": "not_there.steps:Step"},
            ["cannot be imported", "not_there.steps:Step", "ModuleNotFoundError", "PYTHONPATH"],
        ),
        ({"use": "own_steps:Uper"}, ["no such name", "did you mean 'Upper'?"]),
        ({"use": "own_steps:NotAStep"}, ["not a datatrove step", "own_steps:NotAStep", "PipelineStep"]),
        ({"use": "own_steps:EndsWith"}, ["'EndsWith' cannot be made", "no arguments", "digit"]),
        (
            {"use": "own_steps:EndsWith", "with": {"number": 1}},
            ["cannot be made", "{'number': 1}", "TypeError"],
        ),
        ({"use": "own_steps:Upper", "name": "gopher"}, ["like one of Tsugiki's", "gopher"]),
        ({"use": "own_steps:Upper", "name": "duplicate"}, ["like one of Tsugiki's", "duplicate"]),
    ],
)
def test_errors_come_before_anything_is_read(
    tmp_path: Path, own: Path, section: dict[str, object], expected: list[str]
) -> None:
    make_source(tmp_path / "in", files=1)
    settings = config(tmp_path / "in", steps=[step("EveryOther"), section])
    with pytest.raises(ConfigError) as caught:
        run(settings, tmp_path / "out")
    for part in [*expected, "corpus.steps.1.use"]:
        assert part in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ConfigError):
        filter_pass(settings, tmp_path / "out")


@pytest.mark.parametrize(
    ("how", "detail"),
    [
        ("raise", "ZeroDivisionError: by zero"),
        ("metadata", "TypeError: Type is not JSON serializable: set"),
        ("type", "TypeError: it gave a dict"),
    ],
)
def test_a_step_that_fails_on_a_document(tmp_path: Path, own: Path, how: str, detail: str) -> None:
    make_source(tmp_path / "in", files=1)  # ids that end in 5: 0-5 and 0-15
    steps = [step("Fails", how=how)]
    report = run(config(tmp_path / "in", steps=steps), tmp_path / "out")
    assert dropped(report) == {"Fails.failed": 2}
    samples = [sample for sample in report["sources"][0]["samples"] if sample["rule"] == "Fails.failed"]
    assert {sample["id"] for sample in samples} == {"web/0-5", "web/0-15"}
    assert all(detail in sample["detail"] for sample in samples)
    with pytest.raises(DataError) as caught:
        run(config(tmp_path / "in", steps=steps, on_error="fail"), tmp_path / "strict")
    for part in ("the step 'Fails'", "document web/0-5", detail, "on_error=skip"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("how", "where"),
    [("before", "before its first document"), ("import", "document web/0-0"), ("after", "document web/0-5")],
)
def test_a_failure_that_no_document_can_pay_for_stops_the_run(
    tmp_path: Path, own: Path, how: str, where: str
) -> None:
    make_source(tmp_path / "in", files=1)
    with pytest.raises(DataError) as caught:
        run(config(tmp_path / "in", steps=[step("Fails", how=how)]), tmp_path / "out")
    assert "the step 'Fails'" in str(caught.value) and where in str(caught.value)


def test_errors_of_other_steps_are_theirs(tmp_path: Path, own: Path) -> None:
    """Bad input passes through a step of one's own as what it is."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match="bad input in source 'web': invalid_json"):
        run(
            config(tmp_path / "in", steps=[step("EveryOther", after="read")], on_error="fail"),
            tmp_path / "out",
        )


def test_neither_workers_nor_a_restart_change_the_result(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path / "in")
    flag = tmp_path / "correct"
    steps = [step("EveryOther"), step("Upper", after="language"), step("Fails", on="2-4", unless=str(flag))]
    strict = config(tmp_path / "in", steps=steps, on_error="fail")
    with pytest.raises(DataError, match="document web/2-4"):
        run(strict, tmp_path / "again")
    assert len(list((tmp_path / "again/.work/logs/filter/completions").iterdir())) == 2
    flag.touch()
    first = tmp_path / "again/.work/filtered/web/00000.jsonl.zst"
    modified = first.stat().st_mtime_ns
    run(strict, tmp_path / "again")
    assert first.stat().st_mtime_ns == modified  # a finished shard is not done again
    run(strict, tmp_path / "one", workers=1)
    monkeypatch.setattr(execution, "INLINE_BELOW_BYTES", 0)
    monkeypatch.setattr(corpus, "INLINE_BELOW_BYTES", 0)
    run(strict, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "again")


@pytest.mark.slow
def test_a_job_array_task_without_the_module_says_so(tmp_path: Path, own: Path) -> None:
    """The pickled pass runs in a process of its own, with and without the module."""
    make_source(tmp_path / "in", files=2)
    settings = config(tmp_path / "in", steps=[step("EndsWith", digit="7")])
    (tmp_path / "out").mkdir()
    work = filter_pass(settings, tmp_path / "out")
    (tmp_path / "pass.pickle").write_bytes(pickle.dumps(work.step))
    code = (
        f"import pickle\nstep = pickle.loads(open({str(tmp_path / 'pass.pickle')!r}, 'rb').read())\n"
        "for rank in (0, 1):\n    list(step.run(None, rank, 2))\n"
    )

    def task(path: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    without = os.pathsep.join(os.environ["PYTHONPATH"].split(os.pathsep)[1:])
    failed = task(without)
    assert failed.returncode
    for part in (
        "own_steps:EndsWith",
        "corpus.steps.0.use, on ",
        "No module named 'own_steps'",
        "PYTHONPATH",
    ):
        assert part in failed.stderr
    done = task(os.environ["PYTHONPATH"])
    assert done.returncode == 0, done.stderr
    report = run(settings, tmp_path / "out")
    assert dropped(report) == {"EndsWith.digit_7": 4}


def test_a_module_that_vanishes_before_the_workers_start(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path / "in")
    settings = config(tmp_path / "in", steps=[step("Upper")])
    plan = corpus.plan_shards

    def plan_then_lose(config: CorpusConfig) -> object:
        own.unlink()
        return plan(config)

    monkeypatch.setattr(corpus, "plan_shards", plan_then_lose)
    monkeypatch.setattr(corpus, "plan_fingerprint", lambda *_: "plan")
    monkeypatch.setattr(execution, "INLINE_BELOW_BYTES", 0)
    with pytest.raises(ConfigError, match=r"corpus\.steps\.0\.use, on ") as caught:
        run(settings, tmp_path / "out", workers=2)
    assert "No module named 'own_steps'" in str(caught.value)
