#!/usr/bin/env bash
# What to run when a GPU is at hand for half an hour, in four parts of at most ten minutes each.
#
#     bash benchmarks/gpu_session.sh wheels WHEELS            # beforehand, with a network: what the GPU machine lacks
#     bash benchmarks/gpu_session.sh prepare                  # beforehand: text of the last part, in runs/ablation
#     bash benchmarks/gpu_session.sh first OUT [WHEELS]       # tests/gpu, kernels, the 1.1B model whole
#     bash benchmarks/gpu_session.sh seven OUT [WHEELS]       # 7B shapes, asynchronous checkpoint, profile
#     bash benchmarks/gpu_session.sh real OUT [WHEELS]        # continued pretraining with and without extension
#
# The GPU machine needs Python 3.12 with torch, transformers, accelerate and pytest; everything else is in WHEELS,
# which is installed beside them without dependencies. Everything worth keeping lands in OUT, eight files at most.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
part=${1:-} out=${2:-}
PYTHON=${PYTHON:-python3}

WHEELS=(
  megatron-core==0.19.2 pydantic pydantic-core annotated-types typing-inspection zstandard orjson dill multiprocess
  datatrove==0.10.1 loguru humanize mistral-common pydantic-extra-types pycountry jsonschema
  jsonschema-specifications referencing rpds-py
)

wheels() { # pip picks the builds of the GPU machine, not of this one
  mkdir -p "$out"
  local platforms=() n
  for n in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
  local one
  for one in "${WHEELS[@]}"; do
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
      "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$out" "$one" ||
      echo "no wheel of $one" >&2
  done
  du -sh "$out"
}

install() {
  if [ -n "${1:-}" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$1"/*.whl || exit
    export PYTHONPATH=$site:$PWD
  else
    export PYTHONPATH=$PWD
  fi
  mkdir -p "$out"
  export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
}

ablation() { # the three configurations of configs/ablation, larger and in bf16
  local name=$1
  shift
  "$PYTHON" -m tsugiki run "configs/ablation/$name.yaml" --set tracking.enabled=false "$@"
}
SIZE=(
  --set base.scratch.layers=12 --set base.scratch.hidden_size=768 --set base.scratch.ffn_size=2048
  --set base.scratch.heads=12 --set base.scratch.kv_heads=4 --set base.scratch.processes=1
  --set base.scratch.train_tokens=20_000_000 --set base.scratch.learning_rate=6.0e-4
)
TRAIN=(--set train.precision=bf16 --set train.micro_batch=8 --set train.optimizer.learning_rate=6.0e-4
  --set train.optimizer.minimum_learning_rate=6.0e-5)

case $part in
  wheels) [ -n "$out" ] || exit 2 && wheels ;;
  prepare) # the text, the same for all; needs the Debian archive, as the quick start does
    ablation base --until corpus "${SIZE[@]}" || exit
    for name in nve ve; do
      mkdir -p "runs/ablation/$name" && cp -r runs/ablation/base/corpus "runs/ablation/$name/"
    done
    ;;
  first)
    install "${3:-}"
    timeout 240 "$PYTHON" -m pytest tests/gpu -m gpu -q -n 6 --durations=0 2>&1 | tee "$out/tests.txt"
    "$PYTHON" benchmarks/train_gpu.py --shape tinyllama-1.1b --micro-batch 4 --micro-batches 4 --steps 9 --kernels \
      --budget-seconds 270 --profile "$out/profile-1b.txt" --out "$out/tinyllama.json" 2>&1 | tee "$out/tinyllama.txt"
    ;;
  seven)
    install "${3:-}"
    "$PYTHON" benchmarks/train_gpu.py --shape mistral-7b --layers 4 8 --steps 9 --budget-seconds 300 \
      --sides ours trainer-compile trainer ours-te ours-te-fp8 --checkpoint --kernels \
      --profile "$out/profile-7b.txt" --out "$out/mistral.json" 2>&1 | tee "$out/mistral.txt"
    "$PYTHON" benchmarks/train_gpu.py --shape llama-2-7b --layers 4 8 --vocabulary 32000 --steps 6 \
      --budget-seconds 150 --sides ours trainer-compile --out "$out/llama.json" 2>&1 | tee "$out/llama.txt"
    ;;
  real)
    install "${3:-}"
    {
      ablation base --until base "${SIZE[@]}" &&
        ablation nve "${TRAIN[@]}" &&
        ablation ve "${TRAIN[@]}"
    } 2>&1 | tee "$out/real.txt"
    for name in nve ve; do
      cp "runs/ablation/$name/evaluate/results.json" "$out/$name-results.json"
      cp "runs/ablation/$name/train/metrics.jsonl" "$out/$name-metrics.jsonl"
    done
    ;;
  *)
    sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
