#!/usr/bin/env bash
# One process of a stage: srun starts this script once per rank with the command as its arguments.
#
# Standard output goes to the job's log: the rank that owns the loss, in the last pipeline stage, prints the steps.
# Every rank's errors go to its own file, rank 0's also to the log, and how a rank failed to another, from which
# the job names the first one that failed.
set -uo pipefail
state=$TSUGIKI_RUN_DIR/slurm
rank=${SLURM_PROCID:-0}
own=$(printf '%s/logs/%s-%s-rank%05d' "$state" "$TSUGIKI_STAGE" "$TSUGIKI_TOKEN" "$rank")
errors=$own.err

if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then # torch.distributed's env:// rendezvous; MASTER_ADDR comes from the job
  export RANK=$rank WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
  export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
fi

if [ -n "${TSUGIKI_NODE_SCRATCH:-}" ] && mkdir -p "$TSUGIKI_NODE_SCRATCH"; then
  export TMPDIR=$TSUGIKI_NODE_SCRATCH
  export TRITON_CACHE_DIR=$TMPDIR/triton TORCHINDUCTOR_CACHE_DIR=$TMPDIR/inductor
fi

# Slurm signals all processes of the rank: tee, too, which ends with the last line that it is given.
if [ "$rank" = 0 ]; then
  exec 3> >(trap '' USR1 TERM INT; exec tee -a "$errors" >&2)
else
  exec 3>>"$errors"
fi
# A handler, unlike `ignore`, is not inherited. Where one runs while bash 5.2 reads a $(...) or >(...), both fail
# ("unexpected EOF while looking for matching"): none of them while this one is set.
trap : USR1 TERM INT
"$@" 2>&3 3>&- &
child=$!
exec 3>&-

# A rank can outlive its job when only the node's slurmd died; the requeued job then has another owner token,
# and this rank must not write checkpoints beside it.
(
  trap - USR1 TERM INT
  while sleep 5; do
    owner=$(cat "$state/$TSUGIKI_STAGE.owner" 2>/dev/null) || continue
    if [ -n "$owner" ] && [ "$owner" != "$TSUGIKI_TOKEN" ]; then
      echo "rank $rank: this run now belongs to job start $owner, not $TSUGIKI_TOKEN; leaving" >>"$errors"
      kill -KILL "$child"
    fi
  done
) >/dev/null 2>&1 & # a sleep that outlives this script must not hold srun's pipe open
watcher=$!

status=0
while :; do # `wait` returns early on a trapped signal
  wait "$child"
  status=$?
  kill -0 "$child" 2>/dev/null || break
done
kill "$watcher" 2>/dev/null
# Stopped on request, all ranks at the same step. The first to leave makes srun end the others: give them time.
[ "$status" != 75 ] || sleep 5

if [ "$status" != 0 ]; then
  trap '' USR1 TERM INT
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$TSUGIKI_CHAIN" "$TSUGIKI_TOKEN" "$(date +%s.%N)" "$rank" \
    "${SLURMD_NODENAME:-$(hostname -s)}" "$status" >"$own.failed"
  trap : USR1 TERM INT
fi
[ -s "$errors" ] || rm -f "$errors"
# Killed: the others learn of it from the closed connection and write their stacks. The first to leave makes srun end
# them, so not yet.
if [ "$status" -ge 128 ] && [ "$status" != 143 ] && [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  sleep "${TSUGIKI_LAST_WORDS_SECONDS:-10}"
fi
exit "$status"
