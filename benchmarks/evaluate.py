"""Bits per byte as `evaluate` scores them, against scoring with the logits of a batch of windows at once.

    python benchmarks/evaluate.py [--shape quickstart|135m] [--bytes 60000] [--rounds 2] [--busy 0]

Random weights, random text of the size asked for in documents of 100 to 6,000 bytes. The other way is the plain
one: windows in batches whose logits fit 100 MB, log-softmax over them, torch's own threads. Both ways run in
turn, each in a process of its own: first on one core (CPU seconds), then on all of them (seconds), where `--busy`
other processes count in a loop. Prints what each needed for 1,000 tokens, the ratio, and how far their figures
are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsugiki.evaluation.scoring.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
SHAPES: dict[str, dict[str, Any]] = {
    "quickstart": {
        "vocab_size": 36096, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    },
    "135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
BYTES_PER_TOKEN = 3


class Tokenizer:
    """Every three letters of the random text are a token."""

    def __init__(self, vocabulary_size: int) -> None:
        self.size = vocabulary_size

    def encode(self, text: str) -> list[int]:
        """Ids in 3 ... size - 1."""
        parts = (text[at : at + BYTES_PER_TOKEN] for at in range(0, len(text), BYTES_PER_TOKEN))
        return [3 + int.from_bytes(part.encode(), "big") % (self.size - 3) for part in parts]


def texts(total: int) -> list[str]:
    """Random letters in documents whose lengths are log-uniform."""
    source = random.Random(0)
    result: list[str] = []
    while (left := total - sum(map(len, result))) > 0:
        length = min(left, int(100 * 60 ** source.random()))
        result.append("".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=length)))
    return result


def model_of(shape: str) -> LanguageModel:
    """Random weights behind the stand-in for a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tsugiki.evaluation.scoring.language_model import LanguageModel

    torch.manual_seed(0)
    size = SHAPES[shape]["vocab_size"]
    tokenizer: Any = Tokenizer(size)
    return LanguageModel(
        directory=ROOT, tokenizer=tokenizer, start_id=1, stop_ids=frozenset({2}), unknown_id=None,
        vocabulary_size=size, max_positions=None, model=LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).eval(),
    )  # fmt: skip


def plain(model: LanguageModel, documents: list[str], window: int) -> list[float]:
    """Nats of each document, as scored before logits were taken in blocks."""
    import torch
    import torch.nn.functional as F

    from tsugiki.evaluation.scoring.bits_per_byte import Window, windows

    encoded = [torch.tensor([1, *model.tokenizer.encode(text)]) for text in documents]
    planned = [
        item for at, ids in enumerate(encoded) for item in windows(at, len(ids) - 1, window, window // 2)
    ]
    planned.sort(key=lambda item: (item.end - item.begin, item.scored), reverse=True)
    positions = 100_000_000 // (4 * 3 * model.vocabulary_size)
    batches: list[list[Window]] = []
    for item in planned:
        if batches:
            width = batches[-1][0].end - batches[-1][0].begin
            first = min(each.end - each.begin - each.scored for each in [*batches[-1], item])
            if (len(batches[-1]) + 1) * (width - first) <= positions:
                batches[-1].append(item)
                continue
        batches.append([item])
    nats = [0.0] * len(documents)
    for batch in batches:
        width = batch[0].end - batch[0].begin
        first = min(item.end - item.begin - item.scored for item in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        targets = torch.full((len(batch), width - first), -100)
        for row, item in enumerate(batch):
            length = item.end - item.begin
            ids[row, :length] = encoded[item.document][item.begin : item.end]
            targets[row, length - item.scored - first : length - first] = encoded[item.document][
                item.end + 1 - item.scored : item.end + 1
            ]
        logits = model.logits(ids, first)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none"
        )
        for item, value in zip(batch, losses.view_as(targets).double().sum(dim=1).tolist(), strict=True):
            nats[item.document] += value
    return nats


def one_side(side: str, shape: str, total: int, workers: int) -> dict[str, Any]:
    """Score once and say what it took."""
    from tsugiki.evaluation.scoring.bits_per_byte import score_documents
    from tsugiki.evaluation.scoring.heldout import Document

    model, documents = model_of(shape), texts(total)
    window: int = SHAPES[shape]["max_position_embeddings"]
    begun, cpu = time.monotonic(), time.process_time()
    if side == "plain":
        nats = plain(model, documents, window)
    else:
        items = [Document(str(number), text) for number, text in enumerate(documents)]
        scores = score_documents(model, items, window=window, stride=window // 2, workers=workers)
        nats = [score.nats for score in scores]
    return {
        "seconds": time.monotonic() - begun,
        "cpu": time.process_time() - cpu,
        "tokens": sum(-(-len(text) // BYTES_PER_TOKEN) for text in documents),
        "nats": nats,
    }


def measure(options: argparse.Namespace, cores: set[int]) -> dict[str, dict[str, Any]]:
    """The best of the rounds of both sides, which take turns."""
    best: dict[str, dict[str, Any]] = {}
    key = "cpu" if len(cores) == 1 else "seconds"
    for _ in range(options.rounds):
        for side in ("plain", "evaluate"):
            done = subprocess.run(
                [
                    *(sys.executable, "-W", "ignore", __file__, "--side", side, "--shape", options.shape),
                    *("--bytes", str(options.bytes), "--workers", str(len(cores))),
                ],
                env={**os.environ, "OMP_NUM_THREADS": str(len(cores)), "PYTHONPATH": str(ROOT)},
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
                stdout=subprocess.PIPE,
                check=True,
            )
            result = json.loads(done.stdout.splitlines()[-1])
            if side not in best or result[key] < best[side][key]:
                best[side] = result
    return best


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=list(SHAPES), default="quickstart")
    parser.add_argument("--bytes", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--busy", type=int, default=0, help="other processes that count in a loop")
    parser.add_argument("--side", choices=["plain", "evaluate"], help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one_side(options.side, options.shape, options.bytes, options.workers)))
        return
    print(" ".join([Path(sys.executable).name, *sys.argv]))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    cores = os.sched_getaffinity(0)
    for used, what in (({min(cores)}, "CPU seconds on one core"), (cores, f"seconds on {len(cores)} cores")):
        key = "cpu" if len(used) == 1 else "seconds"
        others = options.busy if len(used) > 1 else 0
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            best = measure(options, used)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        before, after = best["plain"], best["evaluate"]
        apart = max(abs(a / b - 1) for a, b in zip(after["nats"], before["nats"], strict=True))
        rate = {side: 1e3 * found[key] / found["tokens"] for side, found in best.items()}
        print(
            f"{what}{f' beside {others} busy processes' if others else ''}, for 1,000 tokens of "
            f"{after['tokens']:,}: plain {rate['plain']:.3f}, evaluate {rate['evaluate']:.3f}: "
            f"{rate['plain'] / rate['evaluate']:.2f} x; documents' nats differ by {apart:.1e} at most",
            flush=True,
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
