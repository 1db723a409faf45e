"""Conversations through Megatron's own dataset: ids and loss mask come out as they went in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.chat_tokens import ChatConfig, ChatEncoder, mark, unmark
from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer

ROOT = Path(__file__).parents[4]
DIALOGUE = [
    {"role": "user", "content": "ありがとう。\nHello"},
    {"role": "assistant", "content": "どういたしまして。"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]

# In a process of its own: the CPU shim of Megatron changes torch.
READ = """
import json, sys
from pathlib import Path
import numpy
from tsugiki.pretrain.runtime import megatron_cpu; megatron_cpu.install()
import torch
from tsugiki.experiment.text.chat_tokens import unmark
from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource
from tsugiki.pretrain.training.samples.batches import TrainingData
directory, length, samples = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
from megatron.core import parallel_state
parallel_state.initialize_model_parallel()
source = MixtureSource(name="chat", language="en", kind="instruction", prefix="chat", heldout_prefix=None,
    documents=3, tokens=int(sys.argv[4]), bytes=1, heldout_documents=0, heldout_tokens=0, heldout_bytes=0,
    share=1.0, planned_tokens=length * samples, epochs=1.0)
mixture = Mixture(vocabulary_size=32000, bos_id=1, eod_id=2, total_tokens=length * samples, sources=[source])
data = TrainingData(mixture, directory, directory / "cache", sequence_length=length, samples=samples, seed=1)
raw = [data._dataset[index] for index in range(samples)]
found = []
for item in raw:
    tokens, _ = unmark(item["tokens"])
    labels, learned = unmark(item["labels"])
    found.append([tokens.tolist(), labels.tolist(), (learned * (item["loss_mask"] > 0)).int().tolist()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_hf_tokenizer(mistral_v1_model(), directory)
    return directory


def chat(tokenizer_dir: Path, name: str, **options: Any) -> ChatEncoder:
    template = ROOT / "configs" / "chat_templates" / f"{name}.jinja"
    return ChatEncoder.load(ChatConfig(template=str(template), **options), tokenizer_dir)


def test_mark_and_unmark() -> None:
    import torch

    ids = [0, 1, 2, 31_999, 128_255]
    for learned in (0, 1):
        stored = [mark(token, learned) for token in ids]
        for array in (np.array(stored, np.int32), torch.tensor(stored)):
            found, flags = unmark(array)
            assert found.tolist() == ids
            assert flags.tolist() == [bool(learned)] * len(ids)


def test_end_of_document_is_written_once(tokenizer_dir: Path) -> None:
    stored = chat(tokenizer_dir, "seallm-v2").encode(DIALOGUE)
    ids, learned = unmark(np.array(stored))
    assert ids[-2:].tolist() != [2, 2]
    assert ids[-1] == 2
    assert learned[-1]
    # BiLLa ends all but its last answer without </s>; Swallow's prompt begins without <s>.
    assert unmark(np.array(chat(tokenizer_dir, "billa").encode(DIALOGUE)))[0].tolist().count(2) == 1
    assert unmark(np.array(chat(tokenizer_dir, "swallow-instruct").encode(DIALOGUE)))[0][0] != 1


def test_a_conversation_that_ends_with_a_question_ends_unlearned(tokenizer_dir: Path) -> None:
    stored = chat(tokenizer_dir, "billa").encode(DIALOGUE[:3])
    assert stored[-1] == mark(2, False) == -3


def test_nothing_to_learn_is_an_error(tokenizer_dir: Path) -> None:
    with pytest.raises(DataError, match="without an answer"):
        chat(tokenizer_dir, "seallm-v2").encode(DIALOGUE[:1])


def test_of_a_pair_the_last_answer_counts(tokenizer_dir: Path) -> None:
    encoder = chat(tokenizer_dir, "seallm-v2")
    other = [*DIALOGUE[:-1], {"role": "assistant", "content": "No."}]
    for messages, stored in zip((DIALOGUE, other), encoder.encode_pair(DIALOGUE, other), strict=True):
        ids, learned = unmark(np.array(stored))
        whole, _ = unmark(np.array(encoder.encode(messages)))
        before, _ = unmark(np.array(encoder.encode(DIALOGUE[:-2])))
        assert ids.tolist() == whole.tolist()
        first = int(learned.argmax())
        assert first >= len(before) and learned[first:].all(), (
            "all of the last answer, its end included, and no other"
        )
    with pytest.raises(DataError, match="writes two answers alike"):
        encoder.encode_pair(DIALOGUE, DIALOGUE)


@pytest.mark.slow
def test_masks_survive_packing_in_megatron(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Three conversations packed into samples by GPTDataset: every label has its own flag."""
    from tsugiki.experiment.artefacts.indexed_dataset import write_index

    encoder = chat(tokenizer_dir, "seallm-v2")
    documents = [encoder.encode(DIALOGUE[:2]), encoder.encode(DIALOGUE), encoder.encode(DIALOGUE[2:])]
    np.array([token for document in documents for token in document], np.int32).tofile(tmp_path / "chat.bin")
    lengths = np.array([len(document) for document in documents], np.int32)
    write_index(tmp_path / "chat.idx", lengths, np.dtype(np.int32))
    total = sum(map(len, documents))
    length = 16
    samples = (total - 1) // length
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), str(length), str(samples), str(total)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Any order of documents and samples: every run of (id, next id, learned) must occur in a concatenation.
    follows = set()
    for first in range(len(documents)):
        for second in range(len(documents)):
            ids, learned = unmark(np.array([*documents[first], *documents[second]]))
            steps = zip(ids[:-1].tolist(), ids[1:].tolist(), learned[1:].astype(int).tolist(), strict=True)
            follows |= set(steps)
    wrong = {(a, b, 1 - flag) for a, b, flag in follows} - follows
    seen = [step for tokens, labels, flags in found for step in zip(tokens, labels, flags, strict=True)]
    assert len(seen) == samples * length
    assert set(seen) <= follows
    assert wrong  # the comparison can fail
    assert 0 < sum(flag for _, _, flag in seen) < len(seen)
