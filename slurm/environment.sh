#!/usr/bin/env bash
# Build the GPU environment on a login node: torch, this checkout, transformer-engine, apex from source.
#
#     bash slurm/environment.sh DIR [--no-transformer-engine] [--no-apex] [--cpu] [--dry-run]
#
# Then name it in the cluster file (`environment: {venv: DIR}`) and look at `tsugiki doctor` on a GPU node.
#
# Needs Python 3.11 or 3.12, git and a network. apex and transformer-engine's torch bindings are compiled: they
# need a C++ compiler and a CUDA toolkit of the same major version as torch's (`module load cuda/13.0` first),
# but no GPU. Both only make training faster; without them torch alone computes the same. --cpu builds neither and
# takes torch without CUDA, for CPU partitions and for trying this out. An empty TORCH_INDEX takes pip's own index.
# Versions are pinned here, and every one may be overridden from the environment. Running it again continues:
# what is installed already is kept.
set -euo pipefail

TORCH_VERSION=${TORCH_VERSION:-2.13.0} # the version of constraints-*.txt
TRANSFORMER_ENGINE_VERSION=${TRANSFORMER_ENGINE_VERSION:-2.20.2}
# NVIDIA apex publishes no packages (the PyPI project of that name is something else): master of 8 July 2026.
APEX_REVISION=${APEX_REVISION:-6424da3b4faa6c8f062da4a48c424fff3f02d42d}
APEX_SOURCE=${APEX_SOURCE:-https://github.com/NVIDIA/apex}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-"8.0;9.0;10.0"} # A100; H100, H200; B200
export MAX_JOBS=${MAX_JOBS:-8}                                       # compilers at a time; 2 GB each
PYTHON=${PYTHON:-}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir="" apex=1 engine=1 dry="" build=cu130
for argument in "$@"; do
  case $argument in
    --no-apex) apex=0 ;;
    --no-transformer-engine) engine=0 ;;
    --cpu) apex=0 engine=0 build=cpu ;;
    --dry-run) dry=1 ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) echo "unknown option $argument" >&2; exit 2 ;;
    *) dir=$argument ;;
  esac
done
[ -n "$dir" ] || { echo "usage: bash slurm/environment.sh DIR [--no-transformer-engine] [--no-apex] [--cpu] [--dry-run]" >&2; exit 2; }
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/$build}

run() { # print a command, and run it unless this is a dry run
  printf '+ %s\n' "$*"
  [ -n "$dry" ] || "$@"
}
fail() {
  echo "environment.sh: $*" >&2
  exit 1
}
has() { [ -x "$dir/bin/python" ] && "$dir/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('$1').split('+')[0] != '$2')" 2>/dev/null; }

if [ -z "$PYTHON" ]; then
  for candidate in python3.12 python3.11; do
    if "$candidate" -c "" 2>/dev/null; then PYTHON=$candidate && break; fi # a version manager's shim may not run
  done
fi
[ -n "$PYTHON" ] || fail "needs Python 3.11 or 3.12: load a module, or set PYTHON=/path/to/python3.12"
minor=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $minor in 3.11 | 3.12) ;; *) fail "$PYTHON is Python $minor, not 3.11 or 3.12" ;; esac
constraints=$here/constraints-py${minor/./}.txt
if [[ $TORCH_INDEX =~ /cu([0-9]{2}) ]]; then cuda=cu${BASH_REMATCH[1]}; else cuda=${build:0:4}; fi # cu130 -> cu13

if [ "$apex" = 1 ] || [ "$engine" = 1 ]; then
  if ! command -v nvcc >/dev/null; then
    [ -n "$dry" ] || fail "no nvcc: load CUDA ${cuda#cu}, or say --no-apex --no-transformer-engine"
    echo "note: no nvcc here; building would stop"
  elif [ "$(nvcc --version | sed -n 's/.*release \([0-9]*\)\..*/\1/p')" != "${cuda#cu}" ]; then
    fail "nvcc is $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'), torch is built for CUDA ${cuda#cu}: load the same major version"
  fi
fi

[ -x "$dir/bin/python" ] || run "$PYTHON" -m venv "$dir"
pip=("$dir/bin/python" -m pip --disable-pip-version-check install)
has torch "$TORCH_VERSION" || run "${pip[@]}" "torch==$TORCH_VERSION" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
run "${pip[@]}" -e "$here" -c "$constraints"
if [ "$engine" = 1 ] && ! has transformer-engine "$TRANSFORMER_ENGINE_VERSION"; then
  run "${pip[@]}" "setuptools>=77" wheel ninja pybind11
  run "${pip[@]}" --no-build-isolation "transformer_engine[pytorch,core_$cuda]==$TRANSFORMER_ENGINE_VERSION"
fi
if [ "$apex" = 1 ] && { [ ! -x "$dir/bin/python" ] || ! "$dir/bin/python" -c "import amp_C" 2>/dev/null; }; then
  run "${pip[@]}" "setuptools>=77" wheel ninja packaging
  source=$dir/src/apex
  if [ ! -d "$source/.git" ]; then
    run git init -q "$source"
    run git -C "$source" remote add origin "$APEX_SOURCE"
  fi
  run git -C "$source" fetch -q --depth 1 origin "$APEX_REVISION"
  run git -C "$source" checkout -q --force FETCH_HEAD
  run env APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_PARALLEL_BUILD="$MAX_JOBS" "${pip[@]}" --no-build-isolation --no-cache-dir "$source"
fi
run "$dir/bin/python" -P -m tsugiki doctor || true # login nodes have no GPU: for what is installed
echo "cluster file:  environment: {venv: $(cd "$dir" 2>/dev/null && pwd || echo "$dir")}"
