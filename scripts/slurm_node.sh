#!/usr/bin/env bash
# Bring up a Slurm of one node, this machine, for trials: scripts/slurm_node.sh FOLDER
# As root, with Debian's packages slurm-wlm and munge. All that it writes lies in FOLDER, which must
# be new or empty. It prints what to export; scripts/slurm_node.sh stop FOLDER ends it and removes
# FOLDER. The node has 32 CPUs and 4 GPUs in name only; jobs of the partition "urgent" take the place
# of others, which are queued again. Slurm keeps no accounts here, so a small sacct asks scontrol.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

fail() {
  echo "error: $1" >&2
  exit 2
}

place() {
  [ -n "$1" ] || fail "give a folder: scripts/slurm_node.sh [stop] FOLDER"
  realpath -m "$1"
}

running() { # whether the process of a file of ours is there
  [ -s "$1" ] && tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$1")/cmdline" | grep -qF "$(basename "$1" .pid)"
}

stop() {
  if running "$here/slurmctld.pid"; then
    export SLURM_CONF=$here/slurm.conf
    for _ in $(seq 20); do # a job has KillWait to end
      timeout 10 scancel --user=root >/dev/null 2>&1 || break
      [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] || break
      sleep 0.5
    done
  fi
  for name in slurmd slurmctld munged; do
    file=$here/$name.pid
    running "$file" || continue
    kill "$(cat "$file")"
    for _ in $(seq 100); do
      running "$file" || break
      sleep 0.1
    done
    if running "$file"; then kill -9 "$(cat "$file")"; fi
  done
}

needs() {
  [ "$(id -u)" = 0 ] || fail "a Slurm of one node is brought up by root."
  for name in munged slurmctld slurmd sbatch srun; do
    command -v "$name" >/dev/null ||
      fail "$name is missing: apt-get install --no-install-recommends slurm-wlm munge."
  done
  [ -z "$(ls -A "$here" 2>/dev/null)" ] || fail "$here is not empty: choose another folder."
}

free_port() {
  while port=$(shuf -i 20000-32000 -n 1); do
    (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null || break
  done
  echo "$port"
}

write_settings() {
  local name
  name=$(hostname -s)
  cat >"$here/slurm.conf" <<CONF
ClusterName=trial
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=1000,batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=3
ReturnToService=2
GresTypes=gpu
NodeName=$name NodeAddr=127.0.0.1 CPUs=32 RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) Gres=gpu:4
PartitionName=main Nodes=$name Default=YES PriorityTier=1
PartitionName=urgent Nodes=$name PriorityTier=10
CONF
  printf 'Name=gpu File=/dev/%s\n' null zero full random >"$here/gres.conf" # Slurm wants devices
  cat >"$here/bin/sacct" <<'SACCT'
#!/bin/sh
# What submitit asks of accounts: JobID|State|NodeList of each job after -j.
echo "JobID|State|NodeList"
for word in "$@"; do
  case $word in *[!0-9_]* | "") continue ;; esac
  scontrol --oneliner show job "$word" 2>/dev/null | awk '{
    split("", found)
    for (i = 1; i <= NF; i++) { at = index($i, "="); found[substr($i, 1, at - 1)] = substr($i, at + 1) }
    id = found["JobId"]
    if ("ArrayTaskId" in found) {
      task = found["ArrayTaskId"]
      sub(/%.*/, "", task)
      id = found["ArrayJobId"] "_" (task ~ /[-,]/ ? "[" task "]" : task)
    }
    print id "|" found["JobState"] "|" found["NodeList"]
  }'
done
SACCT
  chmod +x "$here/bin/sacct"
}

start() {
  mkdir -p "$here/state" "$here/spool" "$here/bin"
  chmod 755 "$here"
  write_settings
  (umask 077 && head -c 1024 /dev/urandom >"$here/munge.key")
  export SLURM_CONF=$here/slurm.conf
  munged --force --key-file="$here/munge.key" --socket="$here/munge.socket" \
    --pid-file="$here/munged.pid" --log-file="$here/munged.log" --seed-file="$here/munged.seed" \
    2>"$here/munged-warnings.log" && slurmctld -f "$SLURM_CONF" && slurmd -f "$SLURM_CONF" && ready || {
    tail -n 5 "$here"/*.log >&2
    stop
    fail "Slurm did not come up; $here/*.log say why."
  }
}

ready() {
  for _ in $(seq 200); do
    [ "$(sinfo --noheader --partition=main --format=%T 2>/dev/null)" = idle ] && return
    sleep 0.1
  done
  return 1
}

if [ "${1:-}" = stop ]; then
  here=$(place "${2:-}")
  [ -f "$here/slurm.conf" ] || fail "$here holds no Slurm."
  stop
  rm -rf "$here"
else
  here=$(place "${1:-}")
  needs
  start
  printf 'export SLURM_CONF=%q PATH=%q:"$PATH"\n' "$SLURM_CONF" "$here/bin"
fi
