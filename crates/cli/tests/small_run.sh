# What the scripts beside this one train, and how they compare it. To be sourced; the sourcing script has `fail`.

# Writes a text and `small.toml` into the current directory: 200 steps of a small LLaMA.
write_small_run() {
    local i
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
}

# Compares the last checkpoint of a run with that of the run `threads`.
same_bits_as_threads() { # run
    local shard
    for shard in threads/checkpoints/step-00000200/*.safetensors; do
        cmp "$shard" "$1/checkpoints/step-00000200/${shard##*/}" || fail "$1 has other bits than threads"
    done
}
