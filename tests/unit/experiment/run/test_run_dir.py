"""What a run directory holds that is not ours stays; an unusable one is refused before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toy_stages import ToyConfig

from tsugiki.experiment.errors import ConfigError, TsugikiError
from tsugiki.experiment.run.digest import ExternalDigests
from tsugiki.experiment.run.folders import KEY_NAME, refuse_overlap, remove_folder
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage import StageContext


def build(run_dir: Path, source: Path | None = None, function: str = "write") -> Graph:
    stages = [
        Stage(
            "corpus", ToyConfig(text="a"), (), f"toy_stages:{function}",
            sources=None if source is None else lambda: [source],
        ),
        Stage("train", ToyConfig(text="b"), ("corpus",), "toy_stages:write", keep_partial=True, precious=True),
    ]  # fmt: skip
    return Graph(stages, run_dir, StageContext(seed=1, workers=1), None, lambda line: None)


def run(graph: Graph) -> None:
    graph.run(list(graph.stages.values()), ToyConfig())


def preview(graph: Graph) -> None:
    graph.preview(list(graph.stages.values()))


def prepare(graph: Graph) -> None:
    graph.prepare(graph.stages["train"])


@pytest.mark.parametrize("folder", ["corpus", "corpus.partial", "train", "train.partial"])
@pytest.mark.parametrize("manifest", [None, "{}", "[]", '{"stage": "other"', '{"name": "pwa", "stage": "x"}'])
@pytest.mark.parametrize("action", [run, preview])
def test_folder_of_a_user_is_refused_and_stays(
    tmp_path: Path, folder: str, manifest: str | None, action: object
) -> None:
    theirs = tmp_path / "x" / folder
    theirs.mkdir(parents=True)
    (theirs / "only-copy.txt").write_text("text")
    if manifest is not None:
        (theirs / "manifest.json").write_text(manifest)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=rf"not made by Tsugiki[\s\S]*{folder}[\s\S]*fix:"):
        action(build(tmp_path / "x"))  # type: ignore[operator]
    assert sorted(tmp_path.rglob("*")) == before
    assert (theirs / "only-copy.txt").read_text() == "text"


@pytest.mark.parametrize("folder", ["train", "train.partial"])
def test_work_ahead_in_other_jobs_refuses_it_too(tmp_path: Path, folder: str) -> None:
    run(build(tmp_path / "x"))
    remove_folder(tmp_path / "x" / "train")
    (tmp_path / "x" / folder).mkdir()
    (tmp_path / "x" / folder / "only-copy.txt").write_text("text")
    with pytest.raises(ConfigError, match="not made by Tsugiki"):
        prepare(build(tmp_path / "x"))
    assert (tmp_path / "x" / folder / "only-copy.txt").is_file()


def test_folder_that_appears_while_the_stage_runs_is_refused(tmp_path: Path) -> None:
    graph = build(tmp_path / "x", function="write_beside")
    with pytest.raises(ConfigError, match="not made by Tsugiki"):
        run(graph)
    assert (tmp_path / "x" / "corpus" / "only-copy.txt").read_text() == "text"
    assert Manifest.load(graph.partial("corpus")) is not None, "the result is kept too"


def test_empty_folders_and_links_to_folders_are_used(tmp_path: Path) -> None:
    graph = build(tmp_path / "x")
    (tmp_path / "x" / "corpus").mkdir(parents=True)
    (tmp_path / "x" / "train.partial").mkdir()
    run(graph)
    elsewhere = tmp_path / "elsewhere"
    graph.directory("corpus").rename(elsewhere)
    graph.directory("corpus").symlink_to(elsewhere)
    graph.run(list(graph.stages.values()), ToyConfig(), force=True)
    assert (elsewhere / "manifest.json").is_file(), "of a link only the link goes"
    assert not graph.directory("corpus").is_symlink()


def test_damaged_key_of_ours_is_replaced(tmp_path: Path) -> None:
    graph = build(tmp_path / "x")
    for text in ("[]", "1", '{"key"', "[" * 100_000):
        partial = graph.partial("train")
        partial.mkdir(parents=True)
        (partial / KEY_NAME).write_text(text)
        run(graph)
        assert not partial.exists()
        remove_folder(graph.directory("train"))


def test_removal_that_is_interrupted_leaves_it_recognisable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus.partial"
    (folder / "deep").mkdir(parents=True)
    for name in ("a", KEY_NAME, "manifest.json", "z"):
        (folder / name).write_text("x")
    removed: list[str] = []
    unlink = Path.unlink

    def killed_at_second(self: Path, missing_ok: bool = False) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(self.name)
        unlink(self, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed_at_second)
        remove_folder(folder)
    assert removed and (folder / KEY_NAME).is_file() and (folder / "manifest.json").is_file()
    remove_folder(folder)
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling link", "circle", "null byte", "long"])
@pytest.mark.parametrize("action", [run, preview])
def test_unusable_run_directory_is_an_error(tmp_path: Path, kind: str, action: object) -> None:
    run_dir = tmp_path / "x"
    if kind in ("file", "below a file"):
        run_dir.write_text("")
        run_dir = run_dir / "y" if kind == "below a file" else run_dir
    elif kind == "dangling link":
        run_dir.symlink_to(tmp_path / "nowhere")
    elif kind == "circle":
        run_dir.symlink_to(run_dir)
    else:
        run_dir = tmp_path / ("a\0b" if kind == "null byte" else "x" * 300)
    with pytest.raises(ConfigError, match=r"the run directory cannot be"):
        action(build(run_dir))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["corpus", "corpus.partial", "train"])
def test_file_or_dangling_link_in_the_place_of_a_stage(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="a link that leads nowhere"):
        run(build(tmp_path / "x"))
    (tmp_path / "x" / name).unlink()
    (tmp_path / "x" / name).write_text("text")
    with pytest.raises(ConfigError, match="not a folder"):
        run(build(tmp_path / "x"))
    assert (tmp_path / "x" / name).read_text() == "text"


def test_run_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(ConfigError, match=r"cannot be written to[\s\S]*Permission denied"):
        run(build(tmp_path / "x"))


def test_preview_writes_nothing_and_a_run_remembers_the_digests(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("text")
    graph = build(tmp_path / "runs" / "x", source)
    preview(graph)
    assert not (tmp_path / "runs").exists()
    run(graph)
    assert (tmp_path / "runs" / ".input-digests.json").is_file()


def test_remembered_digests_that_are_damaged_are_made_again(tmp_path: Path) -> None:
    source, cache = tmp_path / "source.txt", tmp_path / "cache.json"
    source.write_text("text")
    right = ExternalDigests(cache).digest([source])
    for text in ("[]", "1", f'{{"{source}": 1}}', f'{{"{source}": []}}', "[" * 100_000):
        cache.write_text(text)
        assert ExternalDigests(cache).digest([source]) == right


def test_input_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="a link that leads nowhere"):
        ExternalDigests(tmp_path / "cache").digest([tmp_path / "link"])
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        ExternalDigests(tmp_path / "cache").digest([tmp_path / "fifo"])


@pytest.mark.parametrize("where", ["key", "library"])
def test_full_disk_around_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "key":

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device", "file")

        monkeypatch.setattr("tsugiki.experiment.run.graph.write_json_atomically", full)
    function = "rust_full" if where == "library" else "write"
    with pytest.raises(TsugikiError, match=r"no space left on the device in stage 'corpus'[\s\S]*bytes free"):
        run(build(tmp_path / "x", function=function))


def test_refused_run_changes_nothing_of_the_running_one(tmp_path: Path) -> None:
    graph = build(tmp_path / "x")
    began: list[str] = []
    with graph.lock(), pytest.raises(ConfigError, match="another process works in this run directory"):
        build(tmp_path / "x").run([], ToyConfig(), begin=lambda: began.append("second"))
    assert not began
    build(tmp_path / "x").run([], ToyConfig(), begin=lambda: began.append("third"))
    assert began == ["third"]


@pytest.mark.parametrize(
    ("read", "written", "how"),
    [("a", "a", "is"), ("a", "a/b", "lies in"), ("a/b", "a", "holds"), ("link", "a/b", "lies in")],
)
def test_overlap_is_refused_through_links(tmp_path: Path, read: str, written: str, how: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match=f"the output {how} what it is made from"):
        refuse_overlap([tmp_path / read], tmp_path / written)
    refuse_overlap([tmp_path / "a"], tmp_path / "ab")


def test_refused_run_leaves_the_configuration_of_the_running_one(tmp_path: Path) -> None:
    from tsugiki.pipeline import load_experiment

    values = {"run_dir": str(tmp_path / "x")}
    running = load_experiment("smoke", values=values)
    with running.graph().lock():
        running.save_config()
        before = (tmp_path / "x" / "config.yaml").read_bytes()
        with pytest.raises(ConfigError, match="another process works in this run directory"):
            load_experiment("smoke", values=values | {"seed": 7}).run()
    assert (tmp_path / "x" / "config.yaml").read_bytes() == before


def test_full_disk_while_the_configuration_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsugiki import pipeline

    def full(path: Path, text: str, *, shared: bool = False) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pipeline, "write_text_atomically", full)
    experiment = pipeline.load_experiment("smoke", values={"run_dir": str(tmp_path / "x")})
    with pytest.raises(TsugikiError, match="no space left on the device in writing the configuration"):
        experiment.run()


@pytest.mark.parametrize(
    ("base", "text", "output", "told"),
    [
        ("base", "th.txt", "theirs", r"not an extended tokenizer[\s\S]*only-copy\.txt[\s\S]*fix:"),
        ("base", "theirs/only-copy.txt", "theirs", "the output holds what it is made from"),
        ("base", "th.txt", "base", "the output is what it is made from"),
        ("base", "th.txt", "base/out", "the output lies in what it is made from"),
    ],
)
def test_extending_a_tokenizer_replaces_only_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, text: str, output: str, told: str
) -> None:
    from tsugiki.vocabulary import extend_tokenizer

    monkeypatch.chdir(tmp_path)
    for name in ("base", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "only-copy.txt").write_text("text")
    (tmp_path / "th.txt").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=told):
        extend_tokenizer(base, {"th": text}, output, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_intermediate_files_of_the_corpus_replace_only_ours(tmp_path: Path) -> None:
    from tsugiki.data.common.workspace import open_work

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "only-copy.txt").write_text("text")
    with pytest.raises(ConfigError, match="not made by Tsugiki"):
        open_work(tmp_path / "theirs", {"plan": 1})
    assert (tmp_path / "theirs" / "only-copy.txt").is_file()
    ours = tmp_path / "ours"
    ours.mkdir()
    for damage in ("", "[" * 100_000, '{"plan": 2}'):
        work = open_work(ours, {"plan": 1})
        (ours / "left-over.txt").write_text("text")
        assert open_work(ours, {"plan": 1}) == work and (ours / "left-over.txt").is_file()
        (work / "plan.json").write_text(damage)
        open_work(ours, {"plan": 1})
        assert not (ours / "left-over.txt").exists()


def test_report_is_not_written_into_a_stage(tmp_path: Path) -> None:
    from tsugiki.tokenizer.report import run_report

    run(build(tmp_path / "x"))
    before = sorted((tmp_path / "x" / "train").rglob("*"))
    with pytest.raises(
        ConfigError, match=r"the folder of the report is the folder of a stage[\s\S]*manifest\.json"
    ):
        run_report({"a": tmp_path}, {"en": [tmp_path / "text"]}, tmp_path / "x" / "train")
    assert sorted((tmp_path / "x" / "train").rglob("*")) == before


@pytest.mark.parametrize("number", [28, 13])
def test_command_line_tells_what_the_system_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    from tsugiki.cli import main

    def refused(**_: object) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr(main, "app", refused)
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.hub, "go_offline", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "/some/file" in told and "got:" in told and "Traceback" not in told


def test_kill_around_the_key_leaves_a_folder_that_is_still_ours(tmp_path: Path) -> None:
    graph = build(tmp_path / "x")
    run(graph)
    graph.directory("train").rename(
        graph.partial("train")
    )  # its removal was stopped between key and manifest
    run(graph)
    remove_folder(graph.directory("train"))
    graph.partial("train").mkdir()
    (graph.partial("train") / f"{KEY_NAME}.partial").write_text("{")
    run(graph)
    assert not graph.partial("train").exists()


def test_hidden_folder_of_a_user_does_not_make_the_corpus_folder_ours(tmp_path: Path) -> None:
    from tsugiki.data.common.workspace import open_work

    theirs = tmp_path / "theirs"
    (theirs / ".work").mkdir(parents=True)
    (theirs / ".work" / "notes.txt").write_text("text")
    (theirs / "only-copy.txt").write_text("text")
    with pytest.raises(ConfigError, match="not made by Tsugiki"):
        open_work(theirs, {"plan": 1})
    assert (theirs / "only-copy.txt").is_file() and (theirs / ".work" / "notes.txt").is_file()


def links(folder: Path, target: Path) -> None:
    """Links in a folder of ours to what is a user's."""
    target.mkdir()
    (target / "only-copy.txt").write_text("text")
    (folder / "to-folder").symlink_to(target)
    (folder / "to-file").symlink_to(target / "only-copy.txt")
    (folder / "to-nowhere").symlink_to(target / "nowhere")


def test_intermediate_files_that_are_links_go_alone(tmp_path: Path) -> None:
    from tsugiki.data.common.workspace import open_work

    (tmp_path / "ours").mkdir()
    open_work(tmp_path / "ours", {"plan": 1})
    links(tmp_path / "ours", tmp_path / "theirs")
    open_work(tmp_path / "ours", {"plan": 2})
    assert [entry.name for entry in (tmp_path / "ours").iterdir()] == [".work"]
    assert (tmp_path / "theirs" / "only-copy.txt").read_text() == "text"


def test_conversion_that_begins_anew_removes_links_alone(tmp_path: Path) -> None:
    from tsugiki.pretrain.formats.journal import Journal

    (tmp_path / "ours").mkdir()
    with Journal(tmp_path / "ours", {"request": 1}):
        links(tmp_path / "ours", tmp_path / "theirs")
    with Journal(tmp_path / "ours", {"request": 2}):
        assert [entry.name for entry in (tmp_path / "ours").iterdir()] == [".work"]
    assert (tmp_path / "theirs" / "only-copy.txt").read_text() == "text"


def test_tiny_inputs_replace_only_tiny_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.pretrain.planning import tiny

    monkeypatch.setattr(tiny, "write_tiny_base", lambda *_, **__: None)
    recipe = Path(__file__).parents[4] / "configs" / "recipes" / "swallow-7b.yaml"
    theirs = tmp_path / "run-tiny.inputs"
    for name, text in {"text/notes.jsonl": "text", "config.yaml": "run_dir: elsewhere"}.items():
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text(text)
        before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError, match=r"not made by Tsugiki[\s\S]*run-tiny.inputs[\s\S]*fix:"):
            tiny.write_tiny(recipe, [f"run_dir={tmp_path / 'run'}"])
        assert {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == before
    theirs.rename(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "tiny_recipe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny.write_tiny(recipe, [f"run_dir={tmp_path / 'run'}"])
    for _ in range(2):  # after one that was stopped, and after one that ended
        assert tiny.write_tiny(recipe, [f"run_dir={tmp_path / 'run'}"]) == theirs / "config.yaml"
