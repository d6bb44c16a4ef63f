#!/usr/bin/env bash
# Builds passt, pasta and pesto from Debian's source package, for tests and benchmarks:
#
#     build_passt.sh <directory>
#
# The newest version in trixie-backports is built as it is, because its binaries need a newer C
# library than that of Debian 12. An index may still name a version that has left the archive, so
# the next one is tried then.
set -euo pipefail
# The make of passt is no part of ours.
unset MAKEFLAGS MAKELEVEL MAKEOVERRIDES
source "$(dirname "$0")/debian_archive.sh"
target=$(realpath -m "$1")
work=$target.part
for tool in gcc make xz; do
  command -v "$tool" >/dev/null || { echo "make passt needs $tool, which was not found" >&2; exit 1; }
done
rm -rf "$target" "$work"
mkdir -p "$work/source"
open_debian_archive "$work" deb-src trixie-backports
cd "$work"
version=
while read -r candidate; do
  if apt-get "${apt[@]}" source --download-only --tar-only "passt=$candidate" >>log 2>&1; then
    version=$candidate
    break
  fi
done < <(apt-cache "${apt[@]}" showsrc --only-source passt | awk '/^Version:/ { print $2 }' | sort -rVu)
[[ -n $version ]] || { cat log >&2; echo "no version of passt is in Debian's archive" >&2; exit 1; }
tar -xf passt_*.orig.tar.* -C source --strip-components=1
# Without the variant for AVX2 beside it, passt copies more slowly.
programs=(passt pasta pesto)
[[ $(uname -m) != x86_64 ]] || programs+=(passt.avx2)
nice make -C source -j"$(nproc)" VERSION="$version" "${programs[@]}" >>log 2>&1 \
  || { tail -n 30 log >&2; exit 1; }
mkdir built
cp -a $(printf 'source/%s ' "${programs[@]}") built/
mv built "$target"
rm -rf "$work"
