#!/bin/sh
# Fetches the dictionary IPADIC (Debian package mecab-ipadic, BSD-like licence, 7 MB) and writes sentences to
# examples/ipadic/train.iob: those of data/entities/train.iob, sixty times with other words of their kinds. Needs a
# Debian-like system (apt-get, dpkg-deb) and python3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download mecab-ipadic
dpkg-deb -x ./*.deb files
mkdir -p "$here/ipadic"
python3 "$here/ipadic_sentences.py" files/usr/share/mecab/dic/ipadic "$here/data/entities/train.iob" \
    "$here/ipadic/train.iob"
