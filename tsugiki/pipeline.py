"""The experiment as a whole: its configuration, composed of the stages' sections, and its stage graph."""

from __future__ import annotations

import copy
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tsugiki.data.config import CONVERSATIONS, CorpusConfig, TokensConfig
from tsugiki.data.inputs.planning import own_code
from tsugiki.evaluation.benchmarks.suites import data_files, has_chat_template, is_installed, missing_files
from tsugiki.evaluation.config import EvaluateConfig, ReportConfig
from tsugiki.experiment.config.fingerprint import NotFingerprinted
from tsugiki.experiment.config.load import RawConfig, load_raw, set_value
from tsugiki.experiment.config.own_code import source_files
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.shipped import shipped, shipped_name
from tsugiki.experiment.config.strict import StrictModel, dump_yaml
from tsugiki.experiment.config.validate import validate
from tsugiki.experiment.errors import ConfigError, os_error
from tsugiki.experiment.files import write_text_atomically
from tsugiki.experiment.notify import NotifyConfig, notified
from tsugiki.experiment.run.graph import Decision, Graph, Stage
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.run.stage_names import STAGE_NAMES
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.runs import not_installed
from tsugiki.pretrain.config import BaseConfig, TrainConfig
from tsugiki.pretrain.conversion.initialisation import find_initialisation
from tsugiki.pretrain.convert_config import ExportConfig, GraftConfig
from tsugiki.pretrain.model.context_extension import extended_context
from tsugiki.pretrain.planning.divisions import Problem, refuse
from tsugiki.pretrain.planning.flops import find_gpu
from tsugiki.pretrain.planning.layouts import Machine
from tsugiki.pretrain.planning.plan import BaseNotHere, Plan, base_spec, extended_rows, make_plan
from tsugiki.pretrain.planning.problems import layout_problems
from tsugiki.pretrain.planning.schedule import check_schedule
from tsugiki.pretrain.reference import ReferenceConfig
from tsugiki.pretrain.training.continuing import check_origin, find_origin, run_and_step
from tsugiki.results import Run, open_run
from tsugiki.tokenizer.config import TokenizerConfig
from tsugiki.tokenizer.learning.word_lists import is_file, word_list_files


class ExperimentConfig(StrictModel):
    """One experiment: what the YAML file says."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the experiment and of its run directory: letters, digits, dot, dash, underscore."""
    seed: int = Field(default=1234, ge=0, lt=2**31)
    """Every random choice derives from it."""
    workers: Annotated[int | None, NotFingerprinted] = Field(default=None, ge=1)
    """Processes of CPU stages; null is the number of cores."""
    run_dir: Annotated[str | None, NotFingerprinted] = None
    """Where artefacts go; null is ``runs/<name>``."""
    tracking: Annotated[TrackingConfig, NotFingerprinted] = TrackingConfig()
    """MLflow, Weights & Biases, TensorBoard, or none."""
    notify: Annotated[NotifyConfig, NotFingerprinted] = NotifyConfig()
    """Commands that are told when the run is done, failed or was stopped."""
    base: BaseConfig
    """The model to graft onto: ``path`` of a Hugging Face directory, or ``scratch``."""
    corpus: CorpusConfig
    """Sources, filters, deduplication, held-out split."""
    tokenizer: TokenizerConfig = Field(default_factory=lambda: TokenizerConfig(extend=None))
    """Vocabulary extension; ``extend: null`` keeps the base vocabulary."""
    tokens: TokensConfig
    """Encoding and mixture."""
    graft: GraftConfig = GraftConfig()
    """Initialisation of the new rows."""
    train: TrainConfig = TrainConfig()
    """Continued pretraining."""
    export: ExportConfig = ExportConfig()
    """Back to Hugging Face."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Base against result."""
    report: ReportConfig = ReportConfig()
    """The page."""


@dataclass(frozen=True, repr=False)
class Experiment:
    """A checked configuration with the place of its run."""

    config: ExperimentConfig
    raw: RawConfig

    def __repr__(self) -> str:
        return f"Experiment('{self.config.name}', run_dir='{self.run_dir}')"

    def with_values(self, values: Mapping[str, Any], *, any_layout: bool = False) -> Experiment:
        """Another experiment that differs in some values.

        Args:
            values: dotted path -> plain value, e.g. ``{"train.optimizer.learning_rate": 5e-5}``.
            any_layout: accept a division over processes that cannot run, to plan another.

        Raises:
            ConfigError: an unknown path, or a value that is refused.
        """
        raw = copy.deepcopy(self.raw)
        _set_values(raw, values)
        return check_experiment(raw, any_layout=any_layout)

    def plan(
        self, gpu: str = "h100", gpus: int | None = None, gpus_per_node: int = 8, mfu: float = 0.4
    ) -> Plan:
        """Parameters, memory, hours and storage of the training; starts nothing.

        Args:
            gpu: name of the accelerator.
            gpus: how many; None takes ``train.parallel``.
            gpus_per_node: how many share a node.
            mfu: share of the peak that training reaches.

        Raises:
            ConfigError: the base's architecture is not known here, or the GPUs are not a multiple of the
                model-parallel size.
        """
        return make_plan(
            name=self.config.name,
            base=self.config.base,
            extension=self.config.tokenizer.extend,
            total_tokens=self.config.tokens.mixture.total_tokens,
            train=self.config.train,
            machine=Machine(find_gpu(gpu), gpus_per_node, mfu),
            graft=self.config.graft,
            run_dir=self.run_dir,
            world_size=gpus,
            mixture_changes=[change.from_tokens for change in self.config.tokens.mixture.changes],
        )

    def preview(self, from_stage: str | None = None, until: str | None = None) -> list[Decision]:
        """What :meth:`run` would do with each stage, and why.

        Raises:
            ConfigError: a name is not a stage.
        """
        graph = self.graph()
        return graph.preview(graph.select(from_stage, until))

    def run(
        self,
        from_stage: str | None = None,
        until: str | None = None,
        *,
        force: bool = False,
        announce: Callable[[str], None] = print,
    ) -> Run:
        """Run the stages that are not complete, and open the run.

        Args:
            from_stage: first stage; earlier ones are taken as they are.
            until: last stage.
            force: redo them even when unchanged.
            announce: gets a line for every stage.

        Raises:
            TsugikiError: a stage cannot do its work. What was made so far stays, and the next run goes on there.
        """
        graph = self.graph(announce)
        selected = graph.select(from_stage, until)
        self.check_base(selected)
        to_the_end = selected[-1].name == list(graph.stages)[-1]
        with notified(self.config.notify, self.config.name, self.run_dir, to_the_end=to_the_end):
            graph.run(selected, self.config, force=force, begin=self.save_config)
        return open_run(self.run_dir)

    @property
    def run_dir(self) -> Path:
        """Directory of the artefacts."""
        return expand_path(self.config.run_dir) if self.config.run_dir else Path("runs") / self.config.name

    def graph(self, announce: Callable[[str], None] = print) -> Graph:
        """The stage graph of the experiment."""
        context = StageContext(
            seed=self.config.seed,
            workers=self.config.workers or os.cpu_count() or 1,
            experiment_name=self.config.name,
        )
        return Graph(stages(self.config), self.run_dir, context, self.config.tracking, announce)

    def missing_inputs(self, stages: Sequence[Stage]) -> list[tuple[tuple[str | int, ...], str]]:
        """What these stages read that is not on this machine: place in the configuration, path or pattern."""
        missing: list[tuple[tuple[str | int, ...], str]] = [
            (("tracking", "trackers"), f"{tracker}: {how}")
            for tracker, how in not_installed(self.config.tracking).items()
        ]
        if any(stage.name == "corpus" for stage in stages):
            missing += [
                (("corpus", "sources", index, "path"), pattern)
                for index, source in enumerate(self.config.corpus.sources)
                for pattern in _local(source.paths)
                if not _matches(pattern)
            ]
            corpus = self.config.corpus
            missing += [
                (("corpus", "decontamination", "paths", index), pattern)
                for index, pattern in enumerate(corpus.decontamination.paths)
                if not _matches(pattern)
            ]
            model = corpus.language_identification.model
            if model is not None and not _matches(model):
                missing.append((("corpus", "language_identification", "model"), model))
        extend = self.config.tokenizer.extend
        if extend is not None and any(stage.name == "tokenizer" for stage in stages):
            missing += [
                (("tokenizer", "extend", "word_lists", language), setting)
                for language, setting in extend.word_lists.items()
                if is_file(setting) and not expand_path(setting).is_file()
            ]
        base = self.config.base.path
        if base is not None and any(stage.external for stage in stages) and not expand_path(base).exists():
            missing.append((("base", "path"), base))
        continued = self.config.train.continue_from
        if continued is not None and any(stage.name == "train" for stage in stages):
            run, _ = run_and_step(continued)
            if not run.is_dir():
                missing.append((("train", "continue_from"), continued))
        harness = self.config.evaluate.harness
        if harness is not None and any(stage.name == "evaluate" for stage in stages):
            if not is_installed():
                missing.append(
                    (("evaluate", "harness"), "lm-evaluation-harness: pip install 'tsugiki[eval]'")
                )
            if harness.chat_template != "none" and self.config.tokens.chat is None:
                place = ("evaluate", "harness", "chat_template")
                if base is None or (expand_path(base).exists() and not has_chat_template(expand_path(base))):
                    missing.append((place, "a template: there is no tokens.chat, and the base has none"))
            place = ("evaluate", "harness", "data")
            missing += [(place, f"{harness.data or '<folder>'}/{name}") for name in missing_files(harness)]
        return missing

    def check_base(self, stages: Sequence[Stage]) -> None:
        """Refuse to start a run whose later stages will not find their base model.

        Raises:
            ConfigError: ``base.path`` is not there.
        """
        for location, path in self.missing_inputs(stages):
            if location == ("base", "path"):
                _fail(
                    self, location, "no base model here", path,
                    "a Hugging Face directory with weights and tokenizer, or base.scratch to train one",
                )  # fmt: skip

    def save_config(self) -> None:
        """Write the resolved configuration into the run directory, which the caller holds.

        Raises:
            TsugikiError: the disk is full, or the file cannot be written.
        """
        path = self.run_dir / "config.yaml"
        try:
            write_text_atomically(path, dump_yaml(self.config), shared=True)
        except OSError as error:
            raise os_error("writing the configuration", path, error) from error


def load_experiment(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
    any_layout: bool = False,
) -> Experiment:
    """Read and check an experiment.

    Args:
        path: YAML file, or the name of a shipped experiment.
        overrides: ``--set`` options: ``a.b=c`` with c in YAML.
        values: dotted path -> plain value; set after the overrides.
        any_layout: accept a division over processes that cannot run, to plan another.

    Raises:
        ConfigError: with the dotted path, the value, what was expected, file and line.
    """
    raw = load_raw(Path(path), overrides)
    _set_values(raw, values or {})
    return check_experiment(raw, any_layout=any_layout)


def _set_values(raw: RawConfig, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        plain = str(value) if isinstance(value, Path) else value
        set_value(raw, name, plain, f"{name} = {plain!r}, given in Python")


def check_experiment(raw: RawConfig, *, any_layout: bool = False) -> Experiment:
    """An experiment of a merged configuration.

    Raises:
        ConfigError: with the dotted path, the value, what was expected, file and line.
    """
    experiment = Experiment(validate(ExperimentConfig, raw), raw)
    _check_languages(experiment)
    _check_lengths(experiment)
    _check_model(experiment, any_layout)
    return experiment


def stages(config: ExperimentConfig) -> list[Stage]:
    """The stages of an experiment, each after its inputs."""
    external: dict[str, Path] = {}
    harness = config.evaluate.harness
    extend = config.tokenizer.extend
    continued = config.train.continue_from
    if config.base.path is not None:
        external["base"] = expand_path(config.base.path)
    graph = [
        Stage(
            "corpus", config.corpus, (), "tsugiki.data.corpus:run",
            sources=lambda: _source_files(config.corpus), keep_partial=True,
        ),
    ]  # fmt: skip
    if config.base.scratch is not None:
        graph.append(Stage("base", config.base, ("corpus",), "tsugiki.pretrain.base:run", version=2))
    # Only the initialisation that learns from text depends on the corpus.
    init = config.graft.init
    learns_from_corpus = find_initialisation(init).learns_from_corpus
    graft_inputs = ("base", "tokenizer", *(("corpus",) if learns_from_corpus else ()))
    graph += [
        Stage(
            "tokenizer", config.tokenizer, ("corpus", "base"), "tsugiki.tokenizer.extend:run", external,
            sources=(lambda: word_list_files(extend.word_lists)) if extend and extend.word_lists else None, version=2,
        ),
        Stage("tokens", config.tokens, ("corpus", "tokenizer"), "tsugiki.data.tokens:run", keep_partial=True),
        Stage(
            "graft", config.graft, graft_inputs, "tsugiki.pretrain.graft:run", external,
            sources=(lambda: source_files([find_initialisation(init).make.__module__])) if ":" in init else None,
            keep_partial=True,
        ),
    ]  # fmt: skip
    compares = config.train.compares
    if compares:
        graph.append(
            Stage(
                "reference", ReferenceConfig.of(config.train), ("graft", "tokens"), "tsugiki.pretrain.reference:run",
                keep_partial=True,
            )
        )  # fmt: skip
    graph += [
        Stage(
            "train", config.train, ("graft", "tokens", "tokenizer", *(("reference",) if compares else ())),
            "tsugiki.pretrain.train:run",
            sources=None if continued is None else lambda: {find_origin(continued).mark: Path("continue_from")},
            keep_partial=True, precious=True,
        ),
        Stage(
            "export", config.export, ("train", "base", "tokenizer", "tokens", "corpus"),
            "tsugiki.pretrain.export:run", external, keep_partial=True, version=2,
        ),
        Stage(
            "evaluate", config.evaluate, ("base", "export", "corpus"), "tsugiki.evaluation.evaluate:run", external,
            sources=None if harness is None else lambda: data_files(harness),
        ),
        Stage(
            "report", config.report,
            # base and graft give the page their times, nothing else
            tuple(name for name in STAGE_NAMES[:-1] if name not in external and (compares or name != "reference")),
            "tsugiki.evaluation.report:run",
        ),
    ]  # fmt: skip
    return graph


def _source_files(corpus: CorpusConfig) -> dict[Path, Path]:
    """Local files whose content decides what the corpus stage makes, and the name under which each is known.

    Shipped files have the same name wherever they are installed, so that a run stays valid under another
    installation. Remote addresses and packages are identified by the configuration alone.
    """
    patterns = [pattern for source in corpus.sources for pattern in source.paths]
    patterns += corpus.decontamination.paths
    patterns += [f"{folder}/*.*" for folder in corpus.profile_folders]  # profiles and word lists
    if corpus.language_identification.model is not None:
        patterns.append(corpus.language_identification.model)
    found = {path: path for path in own_code(corpus)}
    for pattern in _local(patterns):
        is_shipped = expand_path(pattern) == shipped(Path(pattern))
        found |= {path: shipped_name(path) if is_shipped else path for path in _matches(pattern)}
    return found


def _local(patterns: Sequence[str]) -> list[str]:
    return [pattern for pattern in patterns if "://" not in pattern and not pattern.startswith("debian:")]


def _matches(pattern: str) -> list[Path]:
    return [Path(found) for found in glob.glob(str(expand_path(pattern)), recursive=True)]  # noqa: PTH207


def _fail(
    experiment: Experiment, location: tuple[str | int, ...], what: str, got: object, expected: str
) -> None:
    mark = experiment.raw.mark(location)
    dotted = ".".join(str(item) for item in location)
    raise ConfigError(what, where=f"{dotted} ({mark})" if mark else dotted, got=got, expected=expected)


def _check_languages(experiment: Experiment) -> None:
    """Languages and sources that one section names must be sources of another."""
    config = experiment.config
    names = [source.name for source in config.corpus.sources]
    languages = list(dict.fromkeys(source.language for source in config.corpus.sources))
    known = f"one of {', '.join(languages)}"
    if config.base.scratch is not None and config.base.scratch.language not in languages:
        _fail(
            experiment,
            ("base", "scratch", "language"),
            "no corpus source in this language",
            config.base.scratch.language,
            known,
        )
    if config.tokenizer.extend is not None:
        for language in config.tokenizer.extend.languages or {}:
            if language not in languages:
                where = ("tokenizer", "extend", "languages", language)
                _fail(experiment, where, "no corpus source in this language", language, known)
    conversations = [source.name for source in config.corpus.sources if source.kind in CONVERSATIONS]
    if conversations and config.tokens.chat is None:
        got = f"source {conversations[0]} and no chat template"
        _fail(experiment, ("tokens",), "conversations need a chat template", got, "a section tokens.chat")
    _check_objective(experiment)
    mixture = config.tokens.mixture
    given: list[tuple[tuple[str | int, ...], dict[str, float]]] = [
        (("tokens", "mixture", "weights"), mixture.weights if isinstance(mixture.weights, dict) else {})
    ]
    for number, change in enumerate(mixture.changes):
        given.append((("tokens", "mixture", "changes", number, "weights"), change.weights))
    for place, weights in given:
        for key in weights:
            if key not in languages and key not in names:
                expected = f"a source ({', '.join(names)}) or a language ({', '.join(languages)})"
                _fail(
                    experiment, (*place, key), "weight for something the corpus does not have", key, expected
                )  # fmt: skip


def _check_objective(experiment: Experiment) -> None:
    """Sources that the objective learns from; weights decide which of them are read, where there are any."""
    config = experiment.config
    pairs = config.train.objective != "next_token"
    fitting = [source for source in config.corpus.sources if (source.kind == "preference") == pairs]
    if not fitting or (config.tokens.mixture.weights is None and len(fitting) < len(config.corpus.sources)):
        got = ", ".join(sorted({source.kind for source in config.corpus.sources}))
        expected = "kind: preference" if pairs else "kind: text, parallel or instruction"
        _fail(
            experiment, ("corpus", "sources"), f"not what train.objective: {config.train.objective} learns from",
            f"sources of kind {got}",
            f"{expected}; others only where tokens.mixture.weights leaves them out",
        )  # fmt: skip


def _check_lengths(experiment: Experiment) -> None:
    config = experiment.config
    step_tokens = config.train.global_batch * config.train.sequence_length
    total = config.tokens.mixture.total_tokens
    if total < step_tokens:
        _fail(
            experiment, ("tokens", "mixture", "total_tokens"), "the token budget is smaller than one step",
            total, f"at least train.global_batch x train.sequence_length = {step_tokens:,}",
        )  # fmt: skip
    check_schedule(config.train, total)
    starts = [0, *(change.from_tokens for change in config.tokens.mixture.changes)]
    for number, (start, end) in enumerate(
        zip(starts, [*starts[1:], total // step_tokens * step_tokens], strict=True)
    ):
        if -(-start // step_tokens) * step_tokens >= end:
            _fail(
                experiment, ("tokens", "mixture", "changes", max(number - 1, 0), "from_tokens"),
                "no step falls into a stretch of the mixture", f"tokens {start:,} to {end:,}",
                f"a multiple of train.global_batch x train.sequence_length = {step_tokens:,} among them",
            )  # fmt: skip


def _check_model(experiment: Experiment, any_layout: bool) -> None:
    """Positions and division over processes against the model, where its architecture is known already."""
    base, train, graft = experiment.config.base, experiment.config.train, experiment.config.graft
    try:
        spec, _ = base_spec(base)
    except BaseNotHere:
        # A base model that only the compute nodes can see is checked there, by the training stage.
        return
    rows, _ = extended_rows(spec.vocabulary_size, experiment.config.tokenizer.extend, experiment.run_dir)
    spec = extended_context(spec.model_copy(update={"vocabulary_size": rows}), graft)
    if train.continue_from is not None and run_and_step(train.continue_from)[0].is_dir():
        origin = find_origin(train.continue_from)
        own = experiment.run_dir / "tokenizer"
        check_origin(origin, train, spec, own if own.is_dir() else None)
    problems = layout_problems(train, spec)
    if any_layout:
        problems = [problem for problem in problems if problem.where == "train.sequence_length"]
    refuse([_located(experiment, problem) for problem in problems])


def _located(experiment: Experiment, problem: Problem) -> Problem:
    """With file and line of what it is about."""
    mark = experiment.raw.mark(tuple(problem.where.split(".")))
    return replace(problem, where=f"{problem.where} ({mark})") if mark else problem
