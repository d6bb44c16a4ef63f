#!/usr/bin/env bash
# Unpacks packages of a suite of Debian that this machine does not install from:
#
#     unpack_from_debian.sh <suite> <directory> <package>…
set -euo pipefail
source "$(dirname "$0")/debian_archive.sh"
suite=$1 target=$(realpath -m "$2")
shift 2
work=$target.apt
rm -rf "$target" "$work"
mkdir -p "$work"/{deb,root}
open_debian_archive "$work" deb "$suite"
(cd "$work/deb" && apt-get "${apt[@]}" download "$@" >/dev/null)
for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/root"; done
mv "$work/root" "$target"
rm -rf "$work"
