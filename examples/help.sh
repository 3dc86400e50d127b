#!/bin/sh
# Fetches LibreOffice's help in English and Chinese (Debian packages libreoffice-help-en-us and libreoffice-help-zh-cn,
# MPL-2.0, 5 MB) and writes its aligned paragraphs to examples/help/{train,test}.tsv. Needs a Debian-like system (apt-get,
# dpkg-deb) and python3.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download libreoffice-help-en-us libreoffice-help-zh-cn
for package in ./*.deb; do
    dpkg-deb -x "$package" files
done
help=files/usr/share/libreoffice/help
python3 "$here/help_pairs.py" "$help/en-US/text" "$help/zh-CN/text" "$here/help"
