"""Options of a question share one reading of it.

lm-evaluation-harness reads the question once for every option and computes logits of the whole vocabulary for every
token of it. Here a question is read once, its keys and values are handed to all options, and logits are computed for
options alone. In fp32 on a CPU only: in half precision, and on a GPU with its larger batches, all is as before.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

Request = tuple[tuple[str, str], list[int], list[int]]
"""Text of context and continuation, ids of both."""


class SharedContextLM(HFLM):
    """The harness's model, which scores continuations of one context together."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """For each request the sum of log-probabilities, and whether greedy decoding would say the same."""
        together: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, _) in enumerate(requests):
            together.setdefault(tuple(context), []).append(number)
        answers: dict[int, tuple[float, bool]] = {}
        for shared, numbers in together.items():
            options = [requests[number][2] for number in numbers]
            if len(options) > 1 and self._shares(len(shared), max(map(len, options))):
                answers.update(zip(numbers, self._options(list(shared), options), strict=True))
        for number, answer in answers.items():
            if requests[number][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)
        rest = [number for number in range(len(requests)) if number not in answers]
        if rest:
            found = super()._loglikelihood_tokens(
                [requests[number] for number in rest], disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            answers.update(zip(rest, found, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _shares(self, context: int, option: int) -> bool:
        """Whether nothing is cut off, and keys of the context do not depend on what follows it."""
        settings = self.model.config.to_dict()
        scaling = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        return (
            self.backend == "causal"
            and self.model.device.type == "cpu"
            and self.model.dtype == torch.float32
            and scaling.get("rope_type", scaling.get("type")) not in ("dynamic", "longrope")
            and not settings.get("sliding_window")
            and context > 1
            and context + option - 1 <= self.max_length
        )

    @torch.inference_mode()
    def _options(self, context: list[int], options: list[list[int]]) -> list[tuple[float, bool]]:
        read = self.model(input_ids=torch.tensor([context[:-1]]), use_cache=True, logits_to_keep=1)
        cache: Any = read.past_key_values
        cache.batch_repeat_interleave(len(options))
        ids = torch.zeros(
            (len(options), max(map(len, options))), dtype=torch.long
        )  # [options, S], padded on the right
        for row, option in enumerate(options):
            ids[row, : len(option)] = torch.tensor([context[-1], *option[:-1]])
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits  # [options, S, V]
        answers = []
        for row, option in enumerate(options):
            wanted = torch.tensor(option)
            scores = logits[row, : len(option)].log_softmax(dim=-1)
            total = scores.gather(1, wanted[:, None]).sum()
            answers.append((float(total), bool((scores.argmax(dim=-1) == wanted).all())))
        return answers
