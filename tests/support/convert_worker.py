"""One rank of the conversion tests: ``python convert_worker.py JOBS.json``.

Each job loads an imported checkpoint with Megatron's own loader into a model of a layout; ``logits``
writes what the model computes, ``scaled`` multiplies every weight and saves a training checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tsugiki.pretrain.runtime import megatron_cpu


def main(jobs_path: Path) -> None:
    megatron_cpu.install()
    import torch
    from megatron.core import dist_checkpointing, parallel_state

    from tsugiki.experiment.model.model_spec import ModelSpec
    from tsugiki.pretrain.checkpoint.state import TrainingState
    from tsugiki.pretrain.config import ParallelConfig
    from tsugiki.pretrain.model.gpt import build_model
    from tsugiki.pretrain.runtime.process_groups import initialise
    from tsugiki.pretrain.runtime.world import World

    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 0)
    store = torch.distributed.FileStore(os.environ["STORE"], world.size)
    for number, job in enumerate(json.loads(jobs_path.read_text())):
        spec = ModelSpec.load(Path(job["model"]))
        parallel = ParallelConfig(**job["layout"])
        if number == 0:
            initialise(world, parallel, 0, store)
        else:
            parallel_state.destroy_model_parallel()
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=parallel.tensor,
                pipeline_model_parallel_size=parallel.pipeline,
                virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
            )
        chunks = build_model(spec, parallel, precision="fp32")
        states = {f"model{index}": chunk.sharded_state_dict() for index, chunk in enumerate(chunks)}
        loaded = dist_checkpointing.load(
            states,
            str(Path(job["model"]) / "checkpoint"),
            strict="raise_all",
            validate_access_integrity=False,
        )
        for index, chunk in enumerate(chunks):
            chunk.load_state_dict(loaded[f"model{index}"], strict=True)
        with torch.no_grad():
            if "logits" in job:
                result = []
                for ids in job["sequences"]:
                    output = chunks[0].eval()(torch.tensor([ids]), torch.arange(len(ids))[None], None)
                    result.append(output[0, :, : spec.vocabulary_size].clone())
                torch.save(result, job["logits"])
            if "scaled" in job:
                for chunk in chunks:
                    for parameter in chunk.parameters():
                        parameter.mul_(job["factor"])
                if world.rank == 0:
                    Path(job["scaled"]).mkdir(parents=True)
                torch.distributed.barrier()
                TrainingState(list(chunks), None, spec.vocabulary_size).save(Path(job["scaled"]), {})()
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
