#!/usr/bin/env bash
# A Slurm of two nodes on this machine, started here and gone with this script: `deploy/slurm.sbatch` trains over its tasks
# with the bits of threads, a task that is killed ends the job with an error that names its rank, and a job that is
# requeued goes on from its checkpoint to the bits of an undisturbed one. Needs root, util-linux, iproute2 and Debian's
# slurm-wlm, and a `phalanx` built with `gloo`. Usage: slurm.sh PATH/TO/phalanx
set -euo pipefail

here=$(dirname "$(realpath "$0")")
sbatch_file=$here/../../../deploy/slurm.sbatch
source "$here/small_run.sh"
export PATH=$PATH:/usr/sbin:/sbin

# What cannot be done here is named; where everything must be done, it is a failure.
skip() {
    echo "skipped: $1"
    [ -z "${PHALANX_TEST_STRICT:-}" ] && exit 0 || exit 1
}

# Names, ports and processes of its own: nothing of this machine's is in the way, and nothing outlives the script.
if [ -z "${PHALANX_TEST_SLURM_INSIDE:-}" ]; then
    for program in munged slurmctld slurmd sbatch ip; do
        command -v "$program" >/dev/null || skip "Slurm needs $program (install slurm-wlm iproute2)"
    done
    enter=(unshare --mount --pid --fork --kill-child --mount-proc --net --uts)
    if [ "$(id -u)" != 0 ] || ! "${enter[@]}" true 2>/dev/null; then
        skip "Slurm on this machine needs root and namespaces"
    fi
    work=$(mktemp -d)
    PHALANX_TEST_SLURM_INSIDE=$work "${enter[@]}" bash "$(realpath "$0")" "$(realpath "$1")" &
    inside=$!
    # All processes inside end with the one that entered.
    trap 'kill -9 "$inside" 2>/dev/null || true; rm -rf "$work"' EXIT
    trap 'exit 1' INT TERM HUP
    wait "$inside"
    exit
fi

work=$PHALANX_TEST_SLURM_INSIDE
mkdir "$work/bin" "$work/state" "$work/run"
ln -s "$1" "$work/bin/phalanx"
# How the job finds it, as on a cluster.
export PATH=$work/bin:$PATH
cd "$work/run"

fail() {
    echo "error: $1" >&2
    tail -n 8 "$work"/*.log "$work"/run/*.out >&2 2>/dev/null || true
    exit 1
}

ip link set lo up
# Slurm listens only where there is an address beside the loopback's.
ip link add cluster type bridge
for address in 10.77.1.1 10.77.1.2; do ip addr add "$address/24" dev cluster; done
ip link set cluster up
hostname controller
printf '127.0.0.1 localhost\n10.77.1.1 controller node1\n10.77.1.2 node2\n' >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts

head -c 1024 /dev/urandom >"$work/munge.key"
chmod 600 "$work/munge.key"
munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munge.pid" \
    --log-file="$work/munge.log" --seed-file="$work/munge.seed" 2>/dev/null
export SLURM_CONF=$work/slurm.conf
# Credentials that expire soon: a job that is requeued waits until its old ones have.
cat >"$SLURM_CONF" <<C
ClusterName=test
SlurmctldHost=controller
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
KillWait=5
NodeName=node1 NodeHostname=controller Port=17001 CPUs=2
NodeName=node2 NodeHostname=controller Port=17002 CPUs=2
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
C
slurmctld
for node in node1 node2; do slurmd -N "$node"; done
until [ "$(timeout 5 sinfo -h -t idle -o %D 2>/dev/null)" = 2 ]; do
    [ "$SECONDS" -lt 60 ] || fail "Slurm's two nodes do not come up"
    sleep 0.2
done

write_small_run
layout=(--mesh dp=2,tp=2)
phalanx train small.toml "${layout[@]}" --out threads >/dev/null 2>threads.out || fail "threads do not train"

# Submits the example, made smaller by Slurm's own options alone; prints the number of the job.
submit() { # run, further arguments
    local run=$1
    shift
    PHALANX_RUN=$run sbatch --parsable --nodes=2 --ntasks-per-node=2 --cpus-per-task=1 --output="$run.out" \
        "$sbatch_file" small.toml "${layout[@]}" "$@"
}

state() { scontrol show job "$1" --oneliner | grep -o 'JobState=[A-Z_]*' | cut -d= -f2; }

ends() { # job, how
    local is=
    for _ in $(seq 600); do
        is=$(state "$1")
        case $is in COMPLETED | FAILED | CANCELLED | NODE_FAIL | TIMEOUT) break ;; esac
        sleep 0.1
    done
    [ "$is" = "$2" ] || fail "job $1 is $is instead of $2"
}

until_step() { # run, step
    for _ in $(seq 600); do grep -qs "^step $2/" "$1.out" && return || sleep 0.1; done
    fail "$1 does not come to step $2"
}

ends "$(submit plain)" COMPLETED
same_bits_as_threads plain
echo "slurm: four tasks on two nodes train, with the bits of threads"

job=$(submit killed --steps 100000)
until_step killed 1
# A task of the second node: its parent is a step of Slurm.
victim=$(grep -lz '^SLURM_PROCID=3$' /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | while read -r pid; do
    [ "$(readlink "/proc/$pid/exe")" = "$(realpath "$work/bin/phalanx")" ] && echo "$pid"
done | head -n 1)
begun=$(date +%s%N)
kill -9 "$victim"
until grep -qs "error: rank 0 on controller.*rank 3 is gone" killed.out; do
    [ $((($(date +%s%N) - begun) / 1000000)) -lt 20000 ] || fail "rank 0 does not name rank 3"
    sleep 0.05
done
elapsed=$((($(date +%s%N) - begun) / 1000000))
[ "$elapsed" -lt 5000 ] || fail "the error took $elapsed ms"
ends "$job" FAILED
! pgrep -x phalanx >/dev/null || fail "tasks go on after the job has failed"
echo "slurm: a killed task is an error after $elapsed ms and ends the job: $(grep -h 'error: rank 0' killed.out)"

job=$(submit requeued --set train.checkpoint_every=20)
until_step requeued 50
scontrol requeue "$job"
for _ in $(seq 100); do [ "$(state "$job")" = PENDING ] && break || sleep 0.1; done
ends "$job" COMPLETED
scontrol show job "$job" --oneliner | grep -q 'Restarts=1' || fail "the job was not started anew"
[ "$(grep -c '^step 1/' requeued.out)" = 1 ] || fail "the job began from its first step again"
same_bits_as_threads requeued
echo "slurm: a requeued job goes on from its checkpoint, to the bits of an undisturbed one"
