"""The kill loop: whole runs, random signals to random processes, and the artefacts of an uninterrupted run at the end.

    python tests/support/chaos.py --rounds 100 --out runs/chaos

A round begins a small experiment in an empty folder and draws one to four kills: a moment (a stage and how far into
it, or the start of the command), one of its processes (the command, a pool's worker, the launcher of the ranks, a
rank, …; or all at once, as when a node dies) and a signal. When the command has ended, the same command is run again,
until it succeeds. Each round is a line of `rounds.jsonl`; rounds that stand there are not run again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tsugiki.experiment.run.manifest import git_revision

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("corpus", "base", "tokenizer", "tokens", "graft", "train", "export", "evaluate", "report")
START = "start"
"""Moment of a kill: while the command starts."""
SIGNALS = {signal.SIGKILL: 0.7, signal.SIGTERM: 0.2, signal.SIGINT: 0.1}
LIMIT_SECONDS = 900.0
"""A command that takes longer hangs; so loaded a machine that it does not is no place for this."""
GRACE_SECONDS = 30.0
"""Within which the processes of a command that has ended are gone."""
MARK = "TSUGIKI_CHAOS"


@dataclass(frozen=True)
class Moment:
    """When a kill is due.

    Attributes:
        stage: name of a stage, or ``start``.
        fraction: of the time that the stage takes uninterrupted.
        whole_tree: all processes at once.
        signal: number.
        after_checkpoint: first wait for a checkpoint of the stage's training.
        others: first wait for processes of the stage besides the command; one of them gets the signal.
    """

    stage: str
    fraction: float
    whole_tree: bool
    signal: int
    after_checkpoint: bool = False
    others: bool = False


@dataclass
class Round:
    """What happened."""

    number: int
    seed: str
    revision: str
    kills: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 0
    exits: list[int] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def draw(generator: random.Random) -> list[Moment]:
    """The kills of a round, in the order of the stages."""
    moments = []
    for _ in range(generator.choice((1, 2, 2, 3, 4))):
        stage = generator.choice((START, *STAGES, "train", "train", "corpus"))
        number = generator.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        # Workers and ranks live for a part of their stage only.
        others = stage in ("corpus", "base", "tokens", "train") and generator.random() < 0.6
        late = stage == "train" and generator.random() < 0.5
        fraction = generator.uniform(0, 0.3 if others or late else 1.05)
        moments.append(Moment(stage, fraction, generator.random() < 0.15, int(number), late, others))
    order = (START, *STAGES)
    return sorted(moments, key=lambda moment: (order.index(moment.stage), moment.fraction))


class Chaos:
    """A command that is killed and run again, and what its artefacts have to be.

    Args:
        command: everything but the run directory.
        reference: run directory of an uninterrupted run.
        checkout: nobody else works in it: what is new there was left by the command.
    """

    def __init__(self, command: Sequence[str], reference: Path, *, checkout: bool = False) -> None:
        self.command = command
        self.reference = reference
        self.checkout = checkout
        self.durations = {name: float(manifest["seconds"]) for name, manifest in manifests(reference).items()}
        self.durations[START] = 6.0

    def play(self, number: int, seed: str, folder: Path, moments: list[Moment] | None = None) -> Round:
        """A round; the folder is left as it is at the end."""
        generator = random.Random(seed)
        done = Round(number, seed, str(git_revision()))
        pending = draw(generator) if moments is None else list(moments)
        clock = time.monotonic()
        status_before = git_status()
        run_dir = folder / "run"
        while not done.problems:
            known = Known.of(run_dir)
            attempt = Attempt(self, run_dir, f"{os.getpid()}-{number}-{done.attempts}", done)
            done.attempts += 1
            code = attempt.follow(pending, generator)
            done.exits.append(code)
            done.problems += attempt.complaints(code) + known.complaints(run_dir, attempt.output())
            if code == 0:
                break
            if not attempt.killed:
                done.problems.append(
                    f"ended with {code} though nothing was killed: {attempt.errors()[-800:]}"
                )
            if len(done.exits) > len(done.kills) + 2:
                done.problems.append("does not come to an end")
        if not done.problems:
            done.problems += compare(self.reference, run_dir)
        if self.checkout and git_status() != status_before:
            done.problems.append(f"the working tree changed: {git_status()}")
        done.seconds = round(time.monotonic() - clock, 1)
        return done


class Attempt:
    """One start of the command."""

    def __init__(self, chaos: Chaos, run_dir: Path, mark: str, record: Round) -> None:
        self.chaos, self.run_dir, self.mark, self.record = chaos, run_dir, mark, record
        self.killed = False
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        logs = run_dir.parent.with_name(run_dir.parent.name + ".logs")
        logs.mkdir(exist_ok=True)
        self._out, self._err = (logs / f"{record.attempts}.{name}" for name in ("out", "err"))
        self._clock = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*chaos.command, "--set", f"run_dir={run_dir}"], cwd=ROOT, stdout=out, stderr=err,
                stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, MARK: mark},
            )  # fmt: skip

    def output(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        return self._err.read_text(encoding="utf-8", errors="replace")

    def follow(self, pending: list[Moment], generator: random.Random) -> int:
        """Send what is due until the command ends; its exit status."""
        while self._process.poll() is None and pending:
            if self._wait_for(pending[0]):
                self._kill(pending.pop(0), generator)
            elif self._process.poll() is None:
                break
            else:  # a stage that this attempt skipped, or that ended too early
                order = (START, *STAGES)
                reached = self._stage()
                while pending and order.index(pending[0].stage) <= order.index(reached) and not self.killed:
                    pending.pop(0)
        try:
            return self._process.wait(max(self._left(), 1))
        except subprocess.TimeoutExpired:
            self.record.problems.append(f"hangs in {self._stage()}; {[self._role(p) for p in self._tree()]}")
            for process in self._tree():
                process.kill()
            return self._process.wait()

    def complaints(self, code: int) -> list[str]:
        """What is wrong with how it ended."""
        found = []
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := self._tree()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            found.append(f"left processes behind: {[self._role(process) for process in left]}")
            for process in left:
                process.kill()
        if "Traceback (most recent call last)" in self.errors():
            found.append("a traceback: " + self.errors()[-1500:])
        if (
            code != 0
            and code != -signal.SIGKILL
            and "error: " not in self.errors()
            and code not in (75, 130, -2, -15)
        ):
            found.append(f"ended with {code} without a word: {self.errors()[-500:]}")
        return found

    def _left(self) -> float:
        return self._clock + LIMIT_SECONDS - time.monotonic()

    def _stage(self) -> str:
        """The stage that this attempt is at."""
        begun = re.findall(r"^\[\d+/\d+\] (\w+):", self.output(), re.MULTILINE)
        return begun[-1] if begun else START

    def _wait_for(self, moment: Moment) -> bool:
        """Whether the moment came before the command ended."""
        order = (START, *STAGES)
        while self._process.poll() is None and self._left() > 0:
            stage = self._stage()
            if order.index(stage) >= order.index(moment.stage):
                break
            time.sleep(0.05)
        if moment.after_checkpoint:
            latest = self.run_dir / f"{moment.stage}.partial" / "checkpoints" / "latest.json"
            while self._process.poll() is None and self._left() > 0 and not latest.is_file():
                time.sleep(0.05)
        while moment.others and self._process.poll() is None and self._stage() == moment.stage:
            with contextlib.suppress(psutil.Error):
                if psutil.Process(self._process.pid).children():
                    break
            time.sleep(0.02)
        until = time.monotonic() + moment.fraction * self.chaos.durations[moment.stage]
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        return self._process.poll() is None

    def _tree(self) -> list[psutil.Process]:
        """Processes that carry this attempt's mark in their environment, zombies left out."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def _role(self, process: psutil.Process) -> str:
        try:
            words, parent = " ".join(process.cmdline()), process.ppid()
        except psutil.Error:
            return "gone"
        if process.pid == self._process.pid:
            return "command"
        of_command = parent == self._process.pid
        if "resource_tracker" in words:
            return "resource tracker"
        if "forkserver" in words:
            return "fork server" if of_command else "worker"
        if "spawn_main" in words:
            return "worker"
        if "training.worker" in words:
            return "launcher" if of_command else "rank"
        return f"other: {words[-60:]}"

    def _kill(self, moment: Moment, generator: random.Random) -> None:
        tree = self._tree()
        command = [process for process in tree if process.pid == self._process.pid]
        others = [process for process in tree if process.pid != self._process.pid]
        victims = tree if moment.whole_tree else command
        if not moment.whole_tree and others and (moment.others or generator.random() < 0.5):
            roles = sorted({self._role(process) for process in others})
            role = generator.choice(roles)  # as many ranks as launchers, however many there are
            victims = [generator.choice([process for process in others if self._role(process) == role])]
        roles = "all" if moment.whole_tree else ", ".join(self._role(process) for process in victims)
        kill = {
            "stage": self._stage(), "victim": roles, "signal": signal.Signals(moment.signal).name,
            "attempt": self.record.attempts, "seconds": round(time.monotonic() - self._clock, 2),
        }  # fmt: skip
        for process in victims:
            try:
                process.send_signal(moment.signal)
            except psutil.NoSuchProcess:
                continue
            self.killed = True
        self.record.kills.append(kill)
        try:  # what does not end by it goes on, and is there for the next kill
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            kill["went_on"] = True


@dataclass(frozen=True)
class Known:
    """What a run directory held before an attempt."""

    finished: frozenset[str]
    checkpoint: int

    @classmethod
    def of(cls, run_dir: Path) -> Known:
        latest = run_dir / "train.partial" / "checkpoints" / "latest.json"
        reached = json.loads(latest.read_bytes())["iteration"] if latest.is_file() else 0
        return cls(
            frozenset(name for name in STAGES if (run_dir / name / "manifest.json").is_file()), reached
        )

    def complaints(self, run_dir: Path, output: str) -> list[str]:
        """Work that was lost."""
        if not re.search(r"^\[", output, re.MULTILINE):  # it did not come so far
            return []
        found = []
        for name in self.finished:
            if re.search(rf"^\[\d+/\d+\] {name}: (?!skipped)", output, re.MULTILINE):
                found.append(f"{name} was finished and is done again")
        again = re.search(r"^\[\d+/\d+\] train: (.*)", output, re.MULTILINE)
        if self.checkpoint and again and "continues" not in again.group(1):
            found.append(f"training had a checkpoint at step {self.checkpoint}: {again.group(1)}")
        if list(run_dir.glob("*.superseded-*")):
            found.append("checkpoints were set aside")
        return found


def manifests(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Manifest of each finished stage."""
    paths = {name: run_dir / name / "manifest.json" for name in STAGES}
    return {name: json.loads(path.read_bytes()) for name, path in paths.items() if path.is_file()}


def compare(reference: Path, run_dir: Path) -> list[str]:
    """How a finished run differs from the uninterrupted one, and whether it is whole."""
    from tsugiki.experiment.run.verify import verify_run

    expected, found = manifests(reference), manifests(run_dir)
    problems = [f"not finished: {name}" for name in expected if name not in found]
    problems += [
        f"{name}: other digest" for name in found
        if name != "train" and found[name]["digest"] != expected[name]["digest"]
    ]  # fmt: skip
    if "train" in found:
        problems += compare_training(reference / "train", run_dir / "train")
    problems += [f"left behind: {path.name}" for path in run_dir.parent.rglob("*.partial")]
    verified = verify_run(run_dir, show=False)
    return problems + ([] if verified.intact else [verified.to_text()])


def compare_training(reference: Path, output: Path) -> list[str]:
    """Differences of two trainings: every tensor of the checkpoints (model, moments) and every loss, bit by bit."""
    from training_case import curve, weights

    problems = []
    steps = [
        sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("iter_*"))
        for folder in (reference, output)
    ]
    if steps[0] != steps[1]:
        return [f"train: checkpoints {steps[1]}, expected {steps[0]}"]
    for step in steps[0]:
        if weights(reference, step) != weights(output, step):
            problems.append(f"train: other weights at step {step}")
    for key in ("train/loss", "train/grad_norm"):
        if curve(reference, key) != curve(output, key):
            problems.append(f"train: other {key}: {curve(output, key)}")
    return problems


def git_status() -> str:
    """Changes of the checkout, as git tells them."""
    answer = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout


# --- the loop -------------------------------------------------------------------------------------


def small_experiment(base_tokenizer: Path) -> list[str]:
    """The smoke run with three languages, a vocabulary of 600 pieces and eight steps of two ranks."""
    text = "tests/fixtures/text"
    sources = ", ".join(
        f"{{name: {name}, language: {name}, format: jsonl, path: {text}/{name}.jsonl}}"
        for name in ("en", "ja", "th")
    )
    changes = [
        f"corpus.sources=[{sources}]", "workers=2",
        f"base.scratch.tokenizer={base_tokenizer}", "base.scratch.layers=2", "base.scratch.hidden_size=16",
        "base.scratch.ffn_size=32", "base.scratch.train_tokens=1024",
        "tokenizer.extend.size=32", "tokenizer.extend.languages={ja: 1, th: 1}", "tokens.mixture.total_tokens=4096",
        "train.parallel={tensor: 2}", "train.global_batch=8", "train.save_interval_steps=2",
        "train.validation_interval_steps=4", "train.validation_bytes_per_language=1000",
        "train.schedule.warmup_tokens=512", "evaluate.maximum_bytes_per_language=1000",
    ]  # fmt: skip
    command = [sys.executable, "-m", "tsugiki", "run", "configs/smoke.yaml"]
    return command + [word for change in changes for word in ("--set", change)]


def write_base_tokenizer(path: Path) -> None:
    """A SentencePiece model of 600 pieces on the English text of the fixtures."""
    import sentencepiece

    lines = (ROOT / "tests" / "fixtures" / "text" / "en.jsonl").read_text(encoding="utf-8").splitlines()
    path.parent.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([json.loads(line)["text"] for line in lines]),
        model_prefix=str(path.with_suffix("")), vocab_size=600, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, num_threads=1,
        minloglevel=2,
    )  # fmt: skip


def summary(rounds: Sequence[dict[str, Any]]) -> str:
    """Counts of what was done and found."""
    kills = [kill for item in rounds for kill in item["kills"]]
    lines = [f"{len(rounds)} rounds, {sum(item['attempts'] for item in rounds)} starts, {len(kills)} kills"]
    for key in ("signal", "stage", "victim"):
        counts = collections.Counter(str(kill[key]) for kill in kills)
        lines.append(f"  by {key}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))
    failed = [item for item in rounds if item["problems"]]
    lines.append(f"  same artefacts: {len(rounds) - len(failed)}, with problems: {len(failed)}")
    lines += [
        f"  round {item['number']}: {problem.splitlines()[0]}"
        for item in failed
        for problem in item["problems"]
    ]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=1, help="number of the first round, to divide them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "chaos")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    base, results = out / "base.model", out / "rounds.jsonl"
    # Another state of the code may make other bytes.
    reference = out / f"reference-{str(git_revision())[:12]}" / "run"
    if not base.is_file():
        write_base_tokenizer(base)
    command = small_experiment(base)
    untracked = ["--set", "tracking.enabled=false"]
    subprocess.run([*command, *untracked, "--set", f"run_dir={reference}"], cwd=ROOT, check=True)
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    rounds = [json.loads(line) for line in lines]
    known = {item["seed"] for item in rounds}
    for number in range(arguments.first, arguments.rounds + 1):
        seed = f"{arguments.seed}-{number}"
        if seed in known:
            continue
        # Every fourth round with MLflow, whose store is then created amid kills; it is no part of the artefacts.
        chaos = Chaos(command if number % 4 == 0 else [*command, *untracked], reference, checkout=True)
        folder = out / f"round-{number:03d}"
        for left in (folder, folder.with_name(folder.name + ".logs")):
            shutil.rmtree(left, ignore_errors=True)
        done = asdict(chaos.play(number, seed, folder))
        rounds.append(done)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done, ensure_ascii=False) + "\n")
        kills = ", ".join(
            f"{kill['signal'][3:]} {kill['victim']} in {kill['stage']}" for kill in done["kills"]
        )
        verdict = "; ".join(problem.splitlines()[0] for problem in done["problems"]) or "same"
        print(f"round {number}/{arguments.rounds}  {done['seconds']:.0f} s  {kills}: {verdict}", flush=True)
        if not done["problems"]:
            shutil.rmtree(folder)
            shutil.rmtree(folder.with_name(folder.name + ".logs"))
    print(summary(rounds))
    return 1 if any(item["problems"] for item in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
