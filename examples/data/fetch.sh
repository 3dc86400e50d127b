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

cd "$here"
sha256sum -c SHA256SUMS
