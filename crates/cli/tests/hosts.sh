#!/usr/bin/env bash
# Three "hosts" as network namespaces on one bridge, over Gloo with a store on the bridge and over MPI: a run trains, a
# slow link only slows it, and a link that is cut gives every rank its error. Needs root and iproute2, and a `phalanx`
# built with `gloo`; with `etcd` and an etcd that is the store, with STORE=tcp rank 0 serves it; with `mpi` and an OpenMPI
# the same over MPI. Usage: hosts.sh PATH/TO/phalanx
set -euo pipefail

phalanx=$(realpath "$1")
source "$(dirname "$(realpath "$0")")/small_run.sh"
# What cannot be done here is named; where everything must be done, it is a failure.
skip() {
    echo "skipped: $1"
    [ -z "${PHALANX_TEST_STRICT:-}" ] || exit 1
}
if [ "$(id -u)" != 0 ] || ! ip netns list >/dev/null 2>&1; then
    skip "network namespaces need root and iproute2"
    exit 0
fi
work=$(mktemp -d)
tag=ph$$
bridge=br$$
pids=()

cleanup() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    for host in 1 2 3; do ip netns del "$tag-$host" 2>/dev/null || true; done
    ip link del "$bridge" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

ip link add "$bridge" type bridge
ip addr add 10.77.0.254/24 dev "$bridge"
ip link set "$bridge" up
for host in 1 2 3; do
    ip netns add "$tag-$host"
    ip link add "v$host-$$" type veth peer name eth0 netns "$tag-$host"
    ip link set "v$host-$$" master "$bridge" up
    ip -n "$tag-$host" addr add "10.77.0.$host/24" dev eth0
    ip -n "$tag-$host" link set eth0 up
    ip -n "$tag-$host" link set lo up
done

if [ "${STORE:-etcd}" = etcd ] && command -v etcd >/dev/null; then
    etcd --data-dir "$work/etcd" --listen-client-urls http://10.77.0.254:23790 \
        --advertise-client-urls http://10.77.0.254:23790 --listen-peer-urls http://127.0.0.1:23801 \
        >"$work/etcd.log" 2>&1 &
    pids+=($!)
    store=etcd://10.77.0.254:23790
else
    store=
fi

cd "$work"
write_small_run

# Waits until every host reaches every other and the bridge: a link that was just set up carries nothing for up to a
# second, and mpirun gives a host up at its first refusal. That a port refuses is an answer.
connected() {
    local from to
    for from in 1 2 3; do
        for to in 1 2 3 254; do
            for _ in $(seq 100); do
                [[ $(timeout 1 ip netns exec "$tag-$from" bash -c ": </dev/tcp/10.77.0.$to/9" 2>&1) == *refused* ]] &&
                    continue 2
                sleep 0.1
            done
            fail "host $from does not reach 10.77.0.$to"
        done
    done
}

# Starts one rank per host in the background: job name, further arguments.
start() {
    local job=$1 rank
    shift
    ranks=()
    for rank in 0 1 2; do
        local where=(PHALANX_STORE="$store")
        [ -n "$store" ] || where=(MASTER_ADDR=10.77.0.1 MASTER_PORT=29501)
        ip netns exec "$tag-$((rank + 1))" env "${where[@]}" PHALANX_JOB="$job" RANK=$rank WORLD_SIZE=3 \
            PHALANX_HOSTNAME="host$((rank + 1))" "$phalanx" train small.toml --mesh dp=3 --out "$job" "$@" \
            >"$job.$rank.out" 2>"$job.$rank.err" &
        ranks+=($!)
        pids+=($!)
    done
}

fail() {
    echo "error: $1" >&2
    tail -n 20 ./*.err >&2
    exit 1
}

# One rank per host by mpirun, whose remote shell is a namespace.
cat >agent <<T
#!/bin/bash
host=\$1
shift
exec ip netns exec "$tag-\${host##*.}" bash -c "\$*"
T
cat >rank <<T
#!/bin/bash
address=\$(ip -4 -o addr show dev eth0 | awk '{sub("/.*", "", \$4); print \$4}')
exec env PHALANX_HOST=\$address PHALANX_HOSTNAME=host\${address##*.} "$phalanx" "\$@" 2>"\$RANK_OUT.\$OMPI_COMM_WORLD_RANK.err"
T
chmod +x agent rank

start_mpi() {
    local job=$1
    shift
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -n 3 -H 10.77.0.1:1,10.77.0.2:1,10.77.0.3:1 \
        --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 \
        --mca oob_tcp_if_include 10.77.0.0/24 -x RANK_OUT="$work/$job" \
        "$work/rank" train small.toml --mesh dp=3 --out "$job" "$@" >"$job.out" 2>"$job.err" &
    ranks=($!)
    pids+=($!)
}

# The three checks over one engine: its name, how it starts, and how long the news of a cut may take (ms).
check() {
    local engine=$1 start=$2 bound=$3 pid begun elapsed
    connected
    "$start" "$engine-plain"
    for pid in "${ranks[@]}"; do wait "$pid" || fail "$engine: three hosts do not train"; done
    same_bits_as_threads "$engine-plain"
    echo "$engine: three hosts train, with the bits of threads"

    # 10 Mbit/s on one link, and a deadline far below what the run takes.
    tc qdisc add dev "v2-$$" root tbf rate 10mbit burst 32kbit latency 400ms
    begun=$(date +%s%N)
    "$start" "$engine-slow" --set parallel.deadline_seconds=2 --set model.embed=128 --steps 3
    for pid in "${ranks[@]}"; do wait "$pid" || fail "$engine: a slow link kills"; done
    elapsed=$((($(date +%s%N) - begun) / 1000000))
    tc qdisc del dev "v2-$$" root
    [ "$elapsed" -gt 4000 ] || fail "$engine: the link was not slow: $elapsed ms"
    echo "$engine: a slow link only slows ($elapsed ms, with a deadline of 2000 ms)"

    "$start" "$engine-cut" --steps 100000
    for _ in $(seq 600); do grep -qs "^step 1/" "$engine-cut.0.err" && break || sleep 0.1; done
    ip link set "v3-$$" down
    begun=$(date +%s%N)
    for host in 0 1; do
        until grep -qs "error: rank $host on host.*rank 2 is gone" "$engine-cut.$host.err"; do
            elapsed=$((($(date +%s%N) - begun) / 1000000))
            [ "$elapsed" -lt 60000 ] || fail "$engine: rank $host does not name rank 2"
            sleep 0.05
        done
    done
    elapsed=$((($(date +%s%N) - begun) / 1000000))
    [ "$elapsed" -lt "$bound" ] || fail "$engine: the error took $elapsed ms"
    echo "$engine: a cut link is an error on every rank after $elapsed ms: $(grep -h error: "$engine-cut.0.err")"
    # The cut host itself notices as well, and no rank goes on anywhere.
    for _ in $(seq 200); do pgrep -f "^$phalanx train .*$engine-cut" >/dev/null || break; sleep 0.1; done
    ! pgrep -f "^$phalanx train .*$engine-cut" >/dev/null || fail "$engine: ranks go on after the cut"
    # mpirun itself goes on waiting for its daemon on a host that it cannot reach: ending it is the cluster's work.
    [ "$engine" = gloo ] || kill "${ranks[@]}" 2>/dev/null || true
    for pid in "${ranks[@]}"; do ! wait "$pid" || fail "$engine: a rank goes on without the others"; done
    ip link set "v3-$$" up
}

"$phalanx" train small.toml --mesh dp=3 --out threads >/dev/null 2>&1
echo "the store of Gloo: ${store:-rank 0}"
check gloo start 5000
if command -v mpirun >/dev/null && [ "${MPI:-yes}" = yes ]; then
    check mpi start_mpi 8000
else
    skip "several hosts over MPI need OpenMPI"
fi
