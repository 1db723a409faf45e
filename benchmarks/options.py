"""Questions with options as `evaluate` scores them, against lm-evaluation-harness as it comes.

    python benchmarks/options.py [--shape quickstart|135m] [--questions 4] [--context 150] [--option 12]

Random weights and ids, fp32, one thread, four options a question, batches of four. Both ways take turns, question by
question, in one process. Prints CPU seconds a question, the ratio, and how far log-likelihoods are apart at most.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402

OPTIONS = 4


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=list(evaluate.SHAPES), default="quickstart")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--context", type=int, default=150, help="tokens of a question")
    parser.add_argument("--option", type=int, default=12, help="tokens of an option at most")
    options = parser.parse_args()
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    from tsugiki.evaluation.benchmarks.shared_context import Request, SharedContextLM
    from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer

    torch.set_num_threads(1)
    network = evaluate.model_of(options.shape).model
    with tempfile.TemporaryDirectory() as folder:
        write_hf_tokenizer(mistral_v1_model(), Path(folder))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model: Any = SharedContextLM(pretrained=network, tokenizer=tokenizer, batch_size=OPTIONS)
    ways = {
        "harness": lambda requests: HFLM._loglikelihood_tokens(model, requests, disable_tqdm=True),
        "evaluate": lambda requests: model._loglikelihood_tokens(requests, disable_tqdm=True),
    }
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        drawn: list[int] = torch.randint(3, 30_000, (length,), generator=generator).tolist()
        return drawn

    seconds, found = dict.fromkeys(ways, 0.0), {way: [] for way in ways}
    for number in range(options.questions + 1):
        context = ids(options.context)
        requests: list[Request] = [
            (("", str(row)), context, ids(max(1, options.option - row))) for row in range(OPTIONS)
        ]
        for way, score in ways.items():
            begun = time.process_time()
            answers = score(requests)
            if number:  # the first warms up
                seconds[way] += time.process_time() - begun
                found[way] += [total for total, _ in answers]
    print(" ".join([Path(sys.executable).name, *sys.argv]))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    apart = max(abs(a - b) for a, b in zip(found["harness"], found["evaluate"], strict=True))
    each = {way: taken / options.questions for way, taken in seconds.items()}
    print(
        f"CPU seconds a question: harness {each['harness']:.3f}, evaluate {each['evaluate']:.3f}: "
        f"{each['harness'] / each['evaluate']:.2f} x; log-likelihoods differ by {apart:.1e} at most"
    )


if __name__ == "__main__":
    main()
