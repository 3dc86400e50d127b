#!/usr/bin/env bash
# Three "hosts" as network namespaces on one bridge, over Gloo and a store on the bridge: a run trains, a slow link only
# slows it, and a link that is cut gives every rank its error. Needs root, iproute2, and a `phalanx` built with
# `gloo` and `etcd`, and etcd itself; with STORE=tcp rank 0 serves the store. Usage: hosts.sh PATH/TO/phalanx
set -euo pipefail

phalanx=$(realpath "$1")
if [ "$(id -u)" != 0 ] || ! ip netns list >/dev/null 2>&1; then
    echo "skipped: network namespaces need root and iproute2"
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
for i in $(seq 400); do echo "Line $i says that $((i * 7 % 31)) and $((i * 5 % 17)) are not alike."; done >text.txt
cat >small.toml <<'T'
[model]
family = "llama"
num_layers = 4
embed = 32
num_heads = 4
vocab_size = 300
[data]
text = ["text.txt"]
tokenizer_vocab = 300
sequence_length = 16
[train]
steps = 200
batch = 6
eval_every = 0
T

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
    tail -n 5 ./*.err >&2
    exit 1
}

start plain
for pid in "${ranks[@]}"; do wait "$pid" || fail "three hosts do not train"; done
"$phalanx" train small.toml --mesh dp=3 --out threads >/dev/null 2>&1
for shard in threads/checkpoints/step-00000200/*.safetensors; do
    cmp "$shard" "plain/checkpoints/step-00000200/${shard##*/}" || fail "other bits than threads"
done
echo "three hosts (${store:-tcp store}) train, with the bits of threads"

# 10 Mbit/s on one link, and a deadline far below what the run takes.
tc qdisc add dev "v2-$$" root tbf rate 10mbit burst 32kbit latency 400ms
start slow --set parallel.deadline_seconds=2 --set model.embed=128 --steps 20
for pid in "${ranks[@]}"; do wait "$pid" || fail "a slow link kills"; done
tc qdisc del dev "v2-$$" root
echo "a slow link only slows"

start cut --steps 100000
for _ in $(seq 300); do grep -q "^step 1/" cut.0.err && break || sleep 0.1; done
ip link set "v3-$$" down
begun=$(date +%s%N)
for pid in "${ranks[@]}"; do wait "$pid" && fail "a rank goes on without the others" || true; done
elapsed=$((($(date +%s%N) - begun) / 1000000))
for rank in 0 1; do
    grep -q "error: rank $rank on host.*rank 2 is gone" "cut.$rank.err" || fail "rank $rank does not name rank 2"
done
[ "$elapsed" -lt 10000 ] || fail "the error took $elapsed ms"
echo "a cut link is an error on every rank after $elapsed ms: $(grep -h error: cut.0.err)"
