# shellcheck shell=bash
# What every job does around its stage: launch, pass signals on, requeue, give up. Sourced by the .sbatch files.
#
# Set by the caller (the .sbatch files give defaults, `tsugiki submit` fills them in):
#   TSUGIKI_COMMAND   array: how Tsugiki is started, e.g. (python -P -m tsugiki)
#   CONTAINER         array: prefix of every process, e.g. (apptainer exec --nv image.sif); may be empty
#   SRUN_FLAGS        array: further flags of srun
#   TSUGIKI_REQUEUE   1: the job may requeue itself; 0: it is followed by another link
#   TSUGIKI_TORCHRUN  processes per node, to start one torchrun per node instead of one task per process
#   TSUGIKI_RUN_DIR   run directory; found with `tsugiki run --dry-run` when unset
#   TSUGIKI_CHAIN     name of the submission; restarts are counted within it
#   TSUGIKI_SPARE_NODES  nodes of the job that are not used until another one fails
#   TSUGIKI_MAX_IDLE_RESTARTS, TSUGIKI_EXCLUDE_AFTER, TSUGIKI_NODE_CHECK, TSUGIKI_MASTER_BASE_PORT
#
# Files in $TSUGIKI_RUN_DIR/slurm:
#   history.tsv        time, job, restart, stage, event, nodes, detail: one line per event, read by `tsugiki status`
#   <stage>.starts     chain, job, restart, progress: one line per start; the restart guard reads it
#   <stage>.owner      job.restart that may write; a rank that outlived its job sees another name and dies
#   <stage>.failures   chain, job.restart, time, rank, node, status of every failed rank
#   <stage>.stop       chain that must not start again, and why
#   cancel             written by `tsugiki cancel`: jobs named there do not requeue

say() { printf '%s %s: %s\n' "$(date +%FT%T)" "${SLURM_JOB_NAME:-job}" "$*"; }

record() { # EVENT DETAIL
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date +%s)" "$job" "$restart" "$stage" "$1" \
    "${SLURM_JOB_NODELIST:-}" "${2:-}" >>"$state/history.tsv"
}

progress() { # a number that grows while the stage gets on: training step, or finished tasks of a pipeline
  local partial="$TSUGIKI_RUN_DIR/$stage.partial" step
  step=$(sed -n 's/.*"iteration": *\([0-9]*\).*/\1/p' "$partial/checkpoints/latest.json" 2>/dev/null | head -n1)
  if [ -n "$step" ]; then
    echo "$step"
  elif [ -d "$partial" ]; then
    find "$partial" -path '*/completions/*' -type f | wc -l
  else
    echo 0
  fi
}

idle_restarts() { # starts of this chain, counted from the newest backwards, that found the same progress as now
  tac "$state/$stage.starts" 2>/dev/null | awk -F'\t' -v chain="$TSUGIKI_CHAIN" -v now="$1" '
    $1 == chain { if ($4 == now) n++; else exit } END { print n + 0 }'
}

owned() { [ "$(cat "$state/$stage.owner" 2>/dev/null)" = "$token" ]; }

cancelled() { grep -qsx "$job" "$state/cancel"; }

give_up() { # WHY STATUS: no link and no restart of this chain starts again
  say "$1"
  printf '%s\t%s\n' "$TSUGIKI_CHAIN" "$1" >"$state/$stage.stop"
  record gave-up "$1"
  exit "$2"
}

on_stop() { # slurmd and the scheduler may send several signals, in any order: acting twice must not hurt
  interrupted=1
  [ -n "$stopping" ] || say "$1: asking the ranks to save and stop"
  stopping=${stopping:-$1}
  [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true # srun passes it on to every rank
  # KILL follows TERM after KillWait, by default 30 s, and ranks that save may take longer: the line comes first.
  if [ "$stopping" = TERM ] && owned && ! cancelled; then ended_by_slurm || true; fi
}

ended_by_slurm() { # 0: the job no longer runs as far as Slurm is concerned; the history gets one line of it
  [ -z "${ended:-}" ] || return 0
  local phase
  phase=$(scontrol show job "$SLURM_JOB_ID" -o 2>/dev/null | sed -n 's/.* JobState=\([A-Z_]*\) .*/\1/p')
  [ "$phase" != RUNNING ] || return 1
  [ -n "${ended:-}" ] || record ended "ended by Slurm (${phase:-unknown job})" # a second TERM while scontrol was asked
  ended=1
}

collect_failures() { # what every rank wrote in a file of its own: lines that many nodes append get lost on NFS
  local names="$stage-$token-rank%05.0f.failed"
  # By name: what other nodes made shows in a listing of a folder on NFS only half a minute later.
  # Ranks that end while the job is being stopped are nobody's fault.
  [ -n "$stopping" ] ||
    (cd "$logs" && seq -f "$names" 0 $((tasks - 1)) | xargs cat 2>/dev/null) >>"$state/$stage.failures"
  (cd "$logs" && seq -f "$names" 0 $((tasks - 1)) | xargs rm -f)
}

bad_nodes() { # nodes whose rank failed first in at least $TSUGIKI_EXCLUDE_AFTER attempts, or that failed the check
  [ -f "$state/$stage.failures" ] || return 0
  # The first failure of an attempt (token) is the cause; the others follow from it. 75 is a stop on request, 76 a
  # rank that left because another one had failed, 143 one that Slurm ended.
  sort -t $'\t' -k3,3 "$state/$stage.failures" | awk -F'\t' -v chain="$TSUGIKI_CHAIN" -v after="${TSUGIKI_EXCLUDE_AFTER:-2}" '
    $1 != chain || $6 == 75 || $6 == 76 || $6 == 143 { next }
    $4 == "check" { bad[$5] = 1; next }
    !($2 in seen) { seen[$2] = 1; if (++count[$5] >= after) bad[$5] = 1 }
    END { for (node in bad) print node }' | sort | paste -sd,
}

leave_out() { # JOB: the bad nodes as well as those it leaves out already, if the partition has enough others
  local bad all left
  bad=$(bad_nodes)
  [ -n "$bad" ] || return 0
  all=$(scontrol show job "$1" -o | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
  if [ -z "$all" ] || [ "$all" = "(null)" ]; then all=$bad; else all=$all,$bad; fi
  left=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -o '%N %t' | awk '$2 !~ /^(down|dr|fail|maint|unk|futr)|\*/ { print $1 }' |
    sort -u | grep -cvxFf <(scontrol show hostnames "$all"))
  if [ "$left" -lt "$SLURM_JOB_NUM_NODES" ]; then
    say "$bad should be left out, but then partition $SLURM_JOB_PARTITION has $left nodes in service and the job needs $SLURM_JOB_NUM_NODES"
    return 0
  fi
  say "leaving out $bad"
  scontrol update JobId="$1" ExcNodeList="$all" && record excluded "$bad"
}

choose_nodes() { # sets nodes (how many) and chosen: those of the job that are in service and not bad; 1: too few
  # A node that was lost stays in the allocation, which has --no-kill; one that failed its check or failed first too
  # often is bad.
  local usable
  nodes=$((SLURM_JOB_NUM_NODES - ${TSUGIKI_SPARE_NODES:-0}))
  usable=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  if [ "${TSUGIKI_SPARE_NODES:-0}" -gt 0 ]; then
    local bad lost
    bad=$(bad_nodes)
    lost=$(sinfo -h -N -n "$SLURM_JOB_NODELIST" -o '%N %t' | awk '$2 ~ /^(down|fail|unk|futr)|\*/ { print $1 }' | paste -sd,)
    usable=$(grep -vxFf <(tr , '\n' <<<"$bad,$lost" | sed '/^$/d') <<<"$usable")
  fi
  chosen=$(head -n "$nodes" <<<"$usable" | paste -sd,)
  [ "$(grep -c . <<<"$usable")" -ge "$nodes" ]
}

next_link() { # the job of the chain that waits for this one to end; nothing when this is the last
  squeue -h -t PENDING -u "$(id -un)" -o '%i %E' | sed -n "s/^\([0-9]*\) .*afterany:$SLURM_JOB_ID\b.*/\1/p" | head -n1
}

report_failure() { # the first failing rank at the top, then the end of its error file
  local when rank node code
  IFS=$'\t' read -r _ _ when rank node code < <(
    awk -F'\t' -v token="$token" '$2 == token && $4 != "check" && $6 != 75 && $6 != 76 && $6 != 143' "$state/$stage.failures" 2>/dev/null | sort -t $'\t' -k3,3)
  [ -n "${rank:-}" ] || return 0
  first_status=$code
  failure="rank $rank on $node failed first, status $code"
  local file
  file="$logs/$stage-$token-rank$(printf %05d "$rank").err"
  {
    echo "FIRST FAILURE: $failure, $(date -d "@${when%.*}" +%FT%T)"
    echo "  its errors: $file"
    tail -n 15 "$file" 2>/dev/null | sed 's/^/  | /'
    echo "all failed ranks of this attempt (rank, node, status), in order:"
    awk -F'\t' -v token="$token" '$2 == token' "$state/$stage.failures" | sort -t $'\t' -k3,3 | cut -f4- | head -n 64
  } | tee "$logs/$stage-$token-failure.txt"
}

again() { # WHY: requeue, or leave the rest to the next link
  local next
  if ! owned; then
    say "a newer start of this job owns the run; leaving it alone"
    exit 1
  fi
  # TERM comes from `scancel`, `scontrol requeue`, a preemption. Once Slurm has ended the job, what becomes of it
  # is Slurm's business: requeueing here would bring a cancelled job back. After USR1 the time limit may have
  # passed while the checkpoint was written, and then the requeue is still ours.
  if [ "$stopping" != USR1 ] && ended_by_slurm; then
    say "ended by Slurm; the last checkpoint is kept"
    exit 1
  fi
  if [ "${TSUGIKI_REQUEUE:-1}" != 1 ]; then
    next=$(next_link)
    if [ -z "$next" ]; then
      record failed "$1; submit again to go on"
      say "$1; no further job of this stage waits: submit again to go on"
      exit 1
    fi
    leave_out "$next"
    record next-link "$1"
    say "$1; job $next goes on from the last checkpoint"
    exit 1
  fi
  record requeue "$1"
  say "$1; requeueing"
  trap '' TERM USR1 # requeue ends this script; the line after it must still run
  if ! scontrol requeue "$SLURM_JOB_ID"; then
    record failed "Slurm refused to requeue: $1"
    exit 1
  fi
  leave_out "$SLURM_JOB_ID"
  exit 1
}

free_port() { # BASE NUMBER: the first port from BASE + NUMBER mod 10000 on at which nothing listens on this node
  # The batch script runs on the node of the rendezvous. Other jobs have other numbers, and every restart another
  # port, so that nothing left over from the last attempt can join.
  local port try
  for try in $(seq 0 99); do
    port=$(($1 + ($2 + try) % 10000))
    (: <>"/dev/tcp/${MASTER_ADDR:-localhost}/$port") 2>/dev/null || (: <>"/dev/tcp/localhost/$port") 2>/dev/null || break
  done
  echo "$port"
}

check_nodes() { # run the site's check once on every node; 1 when a node failed it
  [ -n "${TSUGIKI_NODE_CHECK:-}" ] || return 0
  local answer status=0
  TSUGIKI_CLI=$(printf '%q ' "${CONTAINER[@]}" "${TSUGIKI_COMMAND[@]}")
  TSUGIKI_CHECKED_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd' ') # in order of the tasks
  export TSUGIKI_CLI TSUGIKI_CHECKED_NODES
  # shellcheck disable=SC2016  # expanded on the node
  answer=$(srun --export=ALL --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 --input=none \
    bash -c 'eval "$TSUGIKI_NODE_CHECK" 2>&1 | sed "s/^/$SLURMD_NODENAME: /"; exit 0; ' 2>&1) || status=$?
  local bad
  # `BAD NODE at NAME` is of another node, which could not say so itself.
  bad=$(sed -n -e 's/^[^: ]*: BAD NODE at \([^: ]*\):.*/\1/p;t' -e 's/^\([^: ]*\): BAD NODE.*/\1/p' <<<"$answer" | sort -u)
  [ -n "$bad$answer" ] && [ -z "$bad" ] && [ "$status" = 0 ] && { say "nodes checked"; return 0; }
  [ -n "$answer" ] || [ "$status" != 0 ] || return 0
  say "node check: ${answer:-failed with status $status}"
  local node
  for node in $bad; do
    printf '%s\t%s\t%s\tcheck\t%s\t1\n' "$TSUGIKI_CHAIN" "$token" "$(date +%s.%N)" "$node" >>"$state/$stage.failures"
  done
  [ -z "$bad" ]
}

run_stage() { # STAGE CONFIG [--set A.B=C]...
  set -uo pipefail
  stage=${1:?stage} config=${2:?configuration file}
  shift 2
  job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID} restart=${SLURM_RESTART_COUNT:-0} token=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
  step="" stopping="" interrupted="" ended="" failure="" first_status=""
  if [ -z "${TSUGIKI_RUN_DIR:-}" ]; then
    TSUGIKI_RUN_DIR=$("${CONTAINER[@]}" "${TSUGIKI_COMMAND[@]}" run "$config" "$@" --dry-run |
      sed -n 's/.* is valid; run directory //p' | head -n1)
    [ -n "$TSUGIKI_RUN_DIR" ] || { say "$config is not a valid experiment"; exit 2; }
  fi
  state=$TSUGIKI_RUN_DIR/slurm logs=$TSUGIKI_RUN_DIR/slurm/logs
  mkdir -p "$logs" || exit 1
  export TSUGIKI_RUN_DIR TSUGIKI_CHAIN=${TSUGIKI_CHAIN:-$job} TSUGIKI_TOKEN=$token TSUGIKI_STAGE=$stage
  export TSUGIKI_NODE_CHECK=${TSUGIKI_NODE_CHECK:-}
  trap 'on_stop USR1' USR1
  trap 'on_stop TERM' TERM

  attempt=0
  start_stage "$@"
}

start_stage() { # [--set A.B=C]...: one attempt, and with spare nodes further ones; stage, config, job are set
  local now idle earlier
  if [ "$(cut -f1 "$state/$stage.stop" 2>/dev/null)" = "$TSUGIKI_CHAIN" ]; then
    say "not started: $(cut -f2 "$state/$stage.stop")"
    say "\`tsugiki submit\` starts anew; to submit this script again, remove $state/$stage.stop"
    record refused "$(cut -f2 "$state/$stage.stop")"
    exit 1
  fi
  now=$(progress)
  idle=$(idle_restarts "$now")
  earlier=$(grep -cs "^$TSUGIKI_CHAIN$(printf '\t')" "$state/$stage.starts")
  if [ "$idle" -gt "${TSUGIKI_MAX_IDLE_RESTARTS:-3}" ]; then
    give_up "gave up after $((idle - 1)) restarts without progress (still at $now); see $logs" 1
  fi
  printf '%s\t%s\t%s\t%s\n' "$TSUGIKI_CHAIN" "$job" "$restart" "$now" >>"$state/$stage.starts"
  printf '%s\n' "$token" >"$state/$stage.owner.$job" && mv "$state/$stage.owner.$job" "$state/$stage.owner"
  # Ranks that outlived the node daemon of an earlier start look at the owner every 5 s and leave.
  [ "${earlier:-0}" = 0 ] || sleep "${TSUGIKI_STALE_SECONDS:-12}"
  record start "progress $now"
  say "stage $stage on ${SLURM_JOB_NODELIST:-?}, job $job, restart $restart, progress $now"

  tasks=${SLURM_NTASKS:-$((SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE:-1}))}
  [ "$tasks" -le 1 ] || check_nodes || [ "${TSUGIKI_SPARE_NODES:-0}" -gt 0 ] || again "a node failed its check"
  choose_nodes || again "fewer than $nodes usable nodes are left"
  tasks=$((tasks * nodes / SLURM_JOB_NUM_NODES))
  local place=()
  [ "${TSUGIKI_SPARE_NODES:-0}" = 0 ] || place=(--nodes="$nodes" --nodelist="$chosen")

  MASTER_ADDR=${chosen%%,*}
  MASTER_PORT=$(free_port "${TSUGIKI_MASTER_BASE_PORT:-20000}" $((SLURM_JOB_ID + 1009 * restart + 101 * attempt)))
  export MASTER_ADDR MASTER_PORT
  # The end of this start's time, for training to save ahead of it even where no signal comes.
  local end
  end=$(scontrol show job "$SLURM_JOB_ID" -o | sed -n 's/.* EndTime=\([^ ]*\) .*/\1/p')
  if [ -n "$end" ] && end=$(date -d "$end" +%s 2>/dev/null); then export TSUGIKI_DEADLINE=$end; fi
  [ -z "$stopping" ] || again "asked to stop ($stopping) before the stage began"

  local launcher=()
  if [ -n "${TSUGIKI_TORCHRUN:-}" ]; then # its agents would die of USR1 unless told to hand it on
    launcher=(torchrun --nnodes="$nodes" --nproc-per-node="$TSUGIKI_TORCHRUN" --max-restarts=0
      --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$token"
      "--signals-to-handle=SIGUSR1,SIGTERM,SIGINT" --no-python)
  fi
  # srun does not inherit --cpus-per-task from sbatch since Slurm 22.05, and where the site submits with
  # --export=NONE it would hand none of our variables on.
  srun --export=ALL "${place[@]}" --ntasks="$tasks" --kill-on-bad-exit=1 --input=none ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    "${SRUN_FLAGS[@]}" bash "$TSUGIKI_SCRIPTS/rank.sh" \
    "${CONTAINER[@]}" "${launcher[@]}" "${TSUGIKI_COMMAND[@]}" run "$config" --from "$stage" --until "$stage" "$@" &
  step=$!
  local status=0 answer
  while :; do # a trapped signal ends `wait` early: wait again until srun itself has ended
    interrupted=""
    wait "$step"
    answer=$?
    [ "$answer" = 127 ] || status=$answer
    [ -n "$interrupted" ] || break
  done
  step=""

  if [ "$status" = 0 ]; then
    record complete ""
    say "stage $stage is complete"
    exit 0
  fi
  collect_failures
  report_failure
  if cancelled; then
    record cancelled "status $status"
    say "cancelled; the last checkpoint is kept"
    exit 1
  fi
  if [ -n "$stopping" ]; then again "stopped by $stopping"; fi
  # 2: the request was wrong, another attempt would be wrong too. 1 of a single process likewise: it is an
  # error with a message, while many ranks also report 1 when the network or a GPU failed one of them.
  if [ "${first_status:-$status}" = 2 ]; then give_up "the request was wrong: ${failure:-status 2}" 2; fi
  if [ "$tasks" = 1 ] && [ "$status" -lt 128 ] && [ "$status" != 75 ]; then
    give_up "${failure:-status $status}" "$status"
  fi
  if [ "${TSUGIKI_SPARE_NODES:-0}" -gt 0 ] && owned && choose_nodes; then
    # The nodes are still ours: go on without waiting in the queue. The guard at the start ends what gets nowhere.
    attempt=$((attempt + 1)) token=$SLURM_JOB_ID.$restart.$attempt
    export TSUGIKI_TOKEN=$token
    record again-here "${failure:-srun ended with status $status}; on $chosen"
    say "${failure:-srun ended with status $status}; going on at once on $chosen"
    failure="" first_status=""
    start_stage "$@"
    return
  fi
  again "${failure:-srun ended with status $status}"
}
