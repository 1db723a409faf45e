"""`train.deterministic`, and the environment of ranks however they are started."""

import json
import os
import socket
from pathlib import Path

import pytest
from training_case import curve, server, settings, train, weights, write_graft, write_tokens

from tsugiki.experiment.errors import TrainingError

STEPS = 3
UNSET = "import os\nfor name in ('PYTORCH_ALLOC_CONF', 'CUDA_DEVICE_MAX_CONNECTIONS'): os.environ.pop(name, None)\n"
WRITE_ENVIRONMENT = """
import json, os
from pathlib import Path
from tsugiki.pretrain.training import trainer
original = trainer.Trainer.run
def run(self):
    Path("PATH", str(self._run.world.rank)).write_text(json.dumps(dict(os.environ)))
    return original(self)
trainer.Trainer.run = run
"""
UNREPEATABLE = """
import torch
from tsugiki.pretrain.training.step import TrainingStep
original = TrainingStep.update
def update(self, *arguments):
    torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    return original(self, *arguments)
TrainingStep.update = update
"""
AS_A_RANK = """
import os
from pathlib import Path
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.train import run
case = Path(CASE)
run(TrainConfig.model_validate_json(CONFIG), {"graft": case / "graft", "tokens": case / "tokens"}, Path(OUTPUT),
    StageContext(seed=5))
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("case")
    write_graft(directory)
    write_tokens(directory, steps=STEPS)
    return directory


@pytest.mark.parametrize("launched", ["here", "srun"])
def test_every_rank_has_the_variables_and_the_process_that_asked_does_not(
    launched: str, case: Path, tmp_path: Path
) -> None:
    before = dict(os.environ)
    fault = UNSET + WRITE_ENVIRONMENT.replace("PATH", str(tmp_path))
    if launched == "here":
        train(case, tmp_path / "out", fault=fault, parallel={"data": 2})
    else:
        (tmp_path / "out").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        values = {
            "PORT": str(port),
            "CASE": str(case),
            "CONFIG": settings().model_dump_json(),
            "OUTPUT": str(tmp_path / "out"),
        }
        given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        server().execute(tmp_path / "console.log", fault + given + AS_A_RANK)
    for rank in range(2 if launched == "here" else 1):
        found = json.loads((tmp_path / str(rank)).read_text())
        assert found["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert dict(os.environ) == before


def test_two_runs_are_equal_to_the_bit(case: Path, tmp_path: Path) -> None:
    layout = {"tensor": 2, "data": 2, "sequence": True}
    for name in ("first", "second"):
        train(case, tmp_path / name, deterministic=True, parallel=layout)
    assert curve(tmp_path / "first") == curve(tmp_path / "second")
    assert weights(tmp_path / "first", STEPS) == weights(tmp_path / "second", STEPS)


def test_what_has_no_deterministic_kernel_raises(case: Path, tmp_path: Path) -> None:
    train(case, tmp_path / "usual", fault=UNREPEATABLE)
    with pytest.raises(TrainingError, match="does not have a deterministic implementation"):
        train(case, tmp_path / "deterministic", fault=UNREPEATABLE, deterministic=True)
