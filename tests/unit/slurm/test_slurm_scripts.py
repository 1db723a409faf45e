"""sbatch scripts: filled-in templates are bash, carry every option, and survive shellcheck where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tsugiki.experiment.errors import ConfigError
from tsugiki.slurm.config import ClusterConfig, Resources
from tsugiki.slurm.scripts import SCRIPTS, Script, header_lines, render, sbatch_options

HOME = SCRIPTS.parent

SCRIPTS = [
    path
    for pattern in ("slurm/*.sh", "slurm/*.sbatch", "benchmarks/*.sbatch")
    for path in sorted(HOME.glob(pattern))
]
CLUSTER_SCRIPTS = [HOME / "tests" / "slurm" / name for name in ("cluster-up", "cluster-down")]

EVERYTHING: dict[str, Any] = {
    "name": "site",
    "common": {
        "partition": "gpu", "account": "my account", "qos": "high", "constraint": "a100&ib",
        "reservation": "r", "memory": "64G", "cpus_per_task": 4, "exclusive": True,
        "exclude_nodes": ["n1", "n[3-4]"],
        "sbatch_flags": ["--licenses=scratch"], "srun_flags": ["--mpi=none"],
    },
    "train": {"nodes": 4, "gpus_per_node": 8, "gpu_type": "h100"},
    "environment": {
        "modules": ["cuda/12.8", "nccl"], "conda": "env", "venv": "$HOME/my env",
        "setup": ["ulimit -n 65536"],
        "variables": {"NCCL_SOCKET_IFNAME": "ib0", "HF_HOME": "/shared/$USER", "QUOTE": 'a"b`c$1'},
        "container": {
            "kind": "apptainer", "image": "/i/x.sif", "mounts": ["/shared"], "flags": ["--cleanenv"],
        },
        "node_scratch": "/scratch/$SLURM_JOB_ID",
    },
}  # fmt: skip


def make(values: dict[str, Any], stage: str = "train") -> Script:
    site = ClusterConfig.model_validate(values)
    return render(site, stage, "exp", Path("/runs/exp"), Path("/runs/exp/slurm/config.yaml"), "chain")


def header(script: Script) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.text.splitlines() if line.startswith("#SBATCH")]


def test_spare_nodes_are_asked_for_and_kept() -> None:
    script = make({**EVERYTHING, "train": {**EVERYTHING["train"], "spare_nodes": 1}})
    assert {"--nodes=5", "--no-kill"} <= set(header(script))
    assert "export TSUGIKI_SPARE_NODES=1" in script.text.splitlines()
    assert not any("no-kill" in line for line in header(make(EVERYTHING)))


def test_every_resource_reaches_the_header() -> None:
    lines = header(make(EVERYTHING))
    for expected in (
        "--job-name=exp-train", "--partition=gpu", '--account="my account"', "--qos=high",
        "--constraint=a100&ib", "--reservation=r", "--nodes=4", "--ntasks-per-node=8", "--cpus-per-task=4",
        "--gpus-per-node=h100:8", "--mem=64G", "--time=1440", "--exclude=n1,n[3-4]", "--exclusive",
        "--licenses=scratch", "--open-mode=append", "--requeue", "--signal=B:USR1@300",
        "--output=/runs/exp/slurm/logs/%x-%j.log",
    ):  # fmt: skip
        assert expected in lines
    assert not [line for line in lines if line.startswith("--ntasks=")]


def test_defaults_say_nothing_that_slurm_knows_better() -> None:
    names = {line.partition("=")[0] for line in header(make({}, "corpus"))}
    assert names == {
        "--job-name", "--nodes", "--ntasks-per-node", "--time", "--chdir", "--output", "--open-mode",
        "--signal", "--requeue",
    }  # fmt: skip


def test_site_block_evaluates_to_what_the_cluster_file_says() -> None:
    """The block is run by bash, with `module` and `conda` standing in, not compared with text."""
    values = dict(EVERYTHING, environment={**EVERYTHING["environment"], "venv": None})
    text = make(values).text
    block = text[text.index("# --- site") : text.index("# --- end of site")]
    probe = f"""
    module() {{ echo "module $*"; }}
    conda() {{ if [ "$1" = shell.bash ]; then echo :; else echo "conda $*"; fi; }}
    {block}
    printf '%s\\n' "$NCCL_SOCKET_IFNAME" "$HF_HOME" "$QUOTE" "$TSUGIKI_NODE_SCRATCH" "${{CONTAINER[*]}}" \
      "${{TSUGIKI_COMMAND[*]}}" "${{SRUN_FLAGS[*]}}" "$TSUGIKI_NODE_CHECK" "$TSUGIKI_REQUEUE"
    """
    environment = {"PATH": os.environ["PATH"], "USER": "ada", "SLURM_JOB_ID": "7", "HOME": "/h"}
    answer = subprocess.run(
        ["bash", "-c", probe], capture_output=True, text=True, env=environment, cwd=HOME, check=True
    )
    assert answer.stdout.splitlines() == [
        "module load cuda/12.8 nccl", "conda activate env", "ib0", "/shared/ada", 'a"b`c$1', "/scratch/7",
        f"apptainer exec --pwd {HOME} --nv --bind /shared --cleanenv /i/x.sif", "python -P -m tsugiki", "--mpi=none",
        'bash "$TSUGIKI_SCRIPTS/check-node.sh"', "1",
    ]  # fmt: skip


def test_home_is_expanded_in_paths(tmp_path: Path) -> None:
    (tmp_path / "my env/bin").mkdir(parents=True)
    (tmp_path / "my env/bin/activate").write_text("ACTIVATED=1\n")
    values = {
        "conda": "$HOME/envs/my x", "venv": "~/my env", "variables": {"HF_HOME": "~/hf", "TILDE": "a~/b"},
        "node_scratch": "~/scratch", "python": "~/bin/python",
    }  # fmt: skip
    text = make({"environment": values}).text
    block = text[text.index("# --- site") : text.index("# --- end of site")]
    probe = f"""
    conda() {{ if [ "$1" = shell.bash ]; then echo :; else printf '<%s>' "$@"; echo; fi; }}
    {block}
    printf '%s\\n' "$ACTIVATED" "$HF_HOME" "$TILDE" "$TSUGIKI_NODE_SCRATCH" "${{TSUGIKI_COMMAND[0]}}"
    """
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    answer = subprocess.run(
        ["bash", "-c", probe], capture_output=True, text=True, env=environment, check=True
    )
    assert answer.stdout.splitlines() == [
        f"<activate><{tmp_path}/envs/my x>", "1", f"{tmp_path}/hf", "a~/b", f"{tmp_path}/scratch",
        f"{tmp_path}/bin/python",
    ]  # fmt: skip


def test_pyxis_goes_to_srun_and_bare_sites_use_the_python_that_submits() -> None:
    container = {"kind": "pyxis", "image": "/i/x.sqsh", "mounts": ["/a:/a", "/b"]}
    text = make({"environment": {"container": container}}).text
    flags = '"--container-image=/i/x.sqsh" "--container-workdir=$PWD" "--container-mounts=/a:/a,/b"'
    assert f"SRUN_FLAGS=({flags})" in text
    assert "CONTAINER=()" in text
    assert 'TSUGIKI_COMMAND=("python" "-P" "-m" "tsugiki")' in text
    assert f'TSUGIKI_COMMAND=("{sys.executable}" "-P" "-m" "tsugiki")' in make({}).text
    named = make({"environment": {"container": container, "python": "/opt/$ARCH/bin/python"}}).text
    assert 'TSUGIKI_COMMAND=("/opt/$ARCH/bin/python" "-P" "-m" "tsugiki")' in named


def test_only_training_is_chained_where_requeue_is_forbidden() -> None:
    values = {"restart": {"requeue": False, "links": 5}}
    assert make(values).links == 5
    assert make(values, "export").links == 1
    assert "--no-requeue" in header(make(values))


def test_arguments_are_those_of_the_checked_in_scripts() -> None:
    assert make({}).arguments == ("/runs/exp/slurm/config.yaml",)
    assert make({}, "tokens").arguments == ("tokens", "/runs/exp/slurm/config.yaml")


@pytest.mark.parametrize("stage", ["train", "corpus"])
def test_rendered_scripts_pass_shellcheck(stage: str, tmp_path: Path) -> None:
    path = tmp_path / "job.sbatch"
    path.write_text(make(EVERYTHING, stage).text)
    subprocess.run(["bash", "-n", path], check=True)
    _shellcheck([path], "--exclude=SC1091,SC2034")  # what job.sh reads looks unused without it


def test_checked_in_scripts_pass_shellcheck() -> None:
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", path], check=True)
    _shellcheck([*SCRIPTS, *CLUSTER_SCRIPTS])


def _shellcheck(paths: list[Path], *flags: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    answer = subprocess.run(
        ["shellcheck", "-x", *flags, *paths], capture_output=True, text=True, cwd=HOME, check=False
    )
    assert answer.returncode == 0, answer.stdout


def test_environment_script_shows_its_commands(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    answer = subprocess.run(
        ["bash", HOME / "slurm" / "environment.sh", tmp_path / "env", "--dry-run"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert "install torch==2." in answer.stdout
    assert "transformer_engine[pytorch,core_cu13]==" in answer.stdout
    assert "APEX_CPP_EXT=1 APEX_CUDA_EXT=1" in answer.stdout
    assert not (tmp_path / "env").exists()


@pytest.mark.parametrize(
    ("nvidia_smi", "verdict"),
    [
        ("printf '0, 0\\n1, 0\\n'", ""),
        ("printf '0, 0\\n'", "1 of 2 GPUs"),
        ("printf '0, 0\\n1, 4\\n'", "GPU 1 has 4 uncorrected memory errors"),
        ("printf '0, [N/A]\\n1, [N/A]\\n'", ""),
        ("echo 'Unable to determine the device handle'; exit 1", "nvidia-smi fails"),
    ],
)
def test_node_check(nvidia_smi: str, verdict: str, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{nvidia_smi}\n")
    tool.chmod(0o755)
    environment = {
        "PATH": f"{tool.parent}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "2", "TMPDIR": str(tmp_path),
        "TSUGIKI_SCRIPTS": str(SCRIPTS), "TSUGIKI_RUN_DIR": str(tmp_path),
    }  # fmt: skip
    answer = subprocess.run(
        ["bash", HOME / "slurm" / "check-node.sh"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert answer.stdout.startswith("BAD NODE: " if verdict else "")
    assert verdict in answer.stdout


@pytest.mark.parametrize(
    "run_dir", ["/runs/a\ntouch /tmp/ran\n", "/runs/a\rb", "/runs/a\x1b[2J", "/runs/a\u2028b"]
)
def test_a_newline_in_the_run_directory_is_refused(run_dir: str) -> None:
    site = ClusterConfig()
    with pytest.raises(ConfigError, match=r"not one line of text(.|\n)*run_dir"):
        render(site, "train", "exp", Path(run_dir), Path("/c.yaml"), "chain")


def test_a_newline_in_the_working_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a\ntouch ran").mkdir()
    monkeypatch.chdir(tmp_path / "a\ntouch ran")
    with pytest.raises(ConfigError, match=r"not one line of text(.|\n)*working directory"):
        make({})


@pytest.mark.parametrize(
    "name",
    ["partition", "account", "qos", "constraint", "reservation", "gpu_type", "memory", "sbatch_flags", "srun_flags",
     "exclude_nodes"],
)  # fmt: skip
def test_a_newline_in_a_resource_is_refused_by_name(name: str) -> None:
    value = "16G\ntouch ran"
    with pytest.raises(ValidationError, match=name):
        Resources.model_validate({name: [value] if name.endswith(("flags", "nodes")) else value})


def test_a_resource_that_was_not_validated_is_refused_in_the_header() -> None:
    for unchecked in ({"partition": "a\nb"}, {"sbatch_flags": ["a\nb"]}, {"exclude_nodes": ["a\nb"]}):
        resources = Resources().model_copy(update=unchecked)
        with pytest.raises(ConfigError, match=next(iter(unchecked))):
            header_lines(sbatch_options(resources, "job"), resources)
