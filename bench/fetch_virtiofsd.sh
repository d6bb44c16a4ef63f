#!/usr/bin/env bash
# Put the two packaged virtiofsd where the benchmark looks for them: the C one of Debian 12
# (qemu-system-common, installed) and Debian's newest Rust one (sid), unpacked with its own libc.
set -euo pipefail
cd "$(dirname "$0")/.."
work=build/bench/virtiofsd

if [[ ! -x /usr/lib/qemu/virtiofsd ]] && ((EUID == 0)); then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends qemu-system-common >/dev/null
fi

[[ -x $work/run ]] && exit 0
rm -rf "$work"
mkdir -p "$work"
deploy/unpack_from_debian.sh sid "$work/root" virtiofsd libc6 libcap-ng0 libgcc-s1 libseccomp2
# An absolute path: the loader's own is not relative to ours.
here=$PWD/$work
libraries=$(dirname "$(find "$here/root" -name 'libc.so.6' | head -n 1)")
loader=$(find "$libraries" -name 'ld-linux-*.so.*' | head -n 1)
printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
  "$loader" "$libraries" "$(find "$here/root" -name virtiofsd -type f -perm -u+x | head -n 1)" >"$work/run.part"
chmod +x "$work/run.part"
mv "$work/run.part" "$work/run"
