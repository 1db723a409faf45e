#!/usr/bin/env bash
# Is this node fit to train? Prints "BAD NODE: why" when not. Run by slurm/job.sh once per node.
bad() { echo "BAD NODE: $*"; }

[ -w "${TMPDIR:-/tmp}" ] || bad "cannot write to ${TMPDIR:-/tmp}"
[ -r "$TSUGIKI_SCRIPTS/rank.sh" ] || bad "cannot read $TSUGIKI_SCRIPTS: not on a shared file system?"
[ -w "$TSUGIKI_RUN_DIR" ] || bad "cannot write to $TSUGIKI_RUN_DIR"

if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ] && command -v nvidia-smi >/dev/null; then
  if ! found=$(timeout 60 nvidia-smi --query-gpu=index,ecc.errors.uncorrected.volatile.total --format=csv,noheader); then
    bad "nvidia-smi fails: ${found:-no answer in 60 s}"
  else
    count=$(grep -c . <<<"$found")
    [ "$count" -ge "$SLURM_GPUS_ON_NODE" ] || bad "$count of $SLURM_GPUS_ON_NODE GPUs"
    # a volatile uncorrected error is a memory fault since the last reset; "[N/A]" where ECC is off
    while IFS=', ' read -r index errors; do
      case $errors in '' | *[!0-9]* | 0) ;; *) bad "GPU $index has $errors uncorrected memory errors" ;; esac
    done <<<"$found"
    if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] && [ -n "${TSUGIKI_CLI:-}" ]; then # is it as fast as the others?
      eval "timeout 300 $TSUGIKI_CLI node-test" || [ $? != 124 ] || bad "node-test did not end in 300 s"
    fi
  fi
fi
exit 0
