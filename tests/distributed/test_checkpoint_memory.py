"""Host memory that a checkpoint takes, as a share of what the rank holds anyway."""

import json
from pathlib import Path

import pytest
from training_case import train, weights, write_graft, write_tokens

WIDE = {"hidden_size": 256, "intermediate_size": 1024}  # 16 MB of weights: noise of a MB or two is small
MEASURED = """
import json
from pathlib import Path
from peak_memory import rise
from tsugiki.pretrain.checkpoint.state import TrainingState
from tsugiki.pretrain.checkpoint.writer import Write
import torch

def note(state, what, bytes):
    own = sum(item.nbytes for model in state.models for item in model.parameters())
    for item in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
        parts = [state["exp_avg"].nbytes for state in item.optimizer.state.values()]
        own += 3 * sum(parts)
    with (Path({folder!r}) / f"{{what}}.{{torch.distributed.get_rank()}}").open("a") as stream:
        stream.write(json.dumps([bytes, own]) + "\\n")

def measured(what, original):
    def run(self, *arguments, **options):
        with rise() as bytes:
            result = original(self, *arguments, **options)
            if what == "save":
                write = result
                write()
                result = lambda: None
        if self.optimizer is not None:
            note(self, what, bytes[0])
        return result
    return run

TrainingState.save = measured("save", TrainingState.save)
TrainingState.load = measured("load", TrainingState.load)
"""


def written(directory: Path, **shape: object) -> Path:
    write_graft(directory, **shape)
    write_tokens(directory, steps=4)
    return directory


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("toy"))


def test_memory_of_saves_and_loads(tmp_path: Path) -> None:
    """In the background, where a copy is taken; the first save also counts what torch imports for it."""
    case = written(tmp_path, **WIDE)
    options = {
        "parallel": {"data": 4},
        "micro_batch": 1,
        "save_interval_steps": 2,
        "asynchronous_checkpoints": True,
        "fault": MEASURED.format(folder=str(tmp_path)),
    }
    train(case, tmp_path, **options)
    (tmp_path / "checkpoints" / "iter_0000004" / "checkpoint.json").unlink()
    train(case, tmp_path, **options)
    for what, limit in (("save", 1.3), ("load", 1.2)):
        for rank in range(4):
            rows = [json.loads(line) for line in (tmp_path / f"{what}.{rank}").read_text().splitlines()]
            rises = [bytes / own for bytes, own in rows]
            assert max(rises[1:] or rises) <= limit, (what, rank, rows)


GATHERED = "import tsugiki.pretrain.training.optimizer as room; room.save_own_parts = lambda _: None\n"


@pytest.mark.parametrize(
    "parallel",
    [{"tensor": 2, "sequence": True, "data": 2}, {"pipeline": 2, "virtual_pipeline": 2, "data": 2}],
    ids=["tp2-dp2", "vpp-dp2"],
)
def test_parts_make_the_tensors_that_megatron_gathers(
    case: Path, tmp_path: Path, parallel: dict[str, object]
) -> None:
    """And successive saves in the background differ, in every tensor, and are those that wait."""
    options = {"parallel": parallel, "micro_batch": 1, "save_interval_steps": 2, "keep_last_checkpoints": 9}
    train(case, tmp_path / "parts", asynchronous_checkpoints=True, **options)
    train(case, tmp_path / "gathered", asynchronous_checkpoints=False, fault=GATHERED, **options)
    saved = {step: weights(tmp_path / "parts", step) for step in (2, 4)}
    for step, tensors in saved.items():
        assert any(key.startswith("optimizer.state.exp_avg_sq.") for key in tensors)
        assert tensors == weights(tmp_path / "gathered", step)
    assert not [key for key, tensor in saved[2].items() if tensor == saved[4][key]]
