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
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' \
  | awk '$2 ~ /^(bookworm|trixie|sid)$/ && $3 == "main" { found = $1 } END { print found; exit !found }')
rm -rf "$work"
mkdir -p "$work"/{lists/partial,cache/archives/partial,deb,root}
# An absolute path: apt's own directories are not relative to ours.
here=$PWD/$work
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$here/sources"
apt=(-o "Dir::Etc::SourceList=$here/sources" -o "Dir::Etc::SourceParts=-" -o "Dir::State::Lists=$here/lists"
  -o "Dir::Cache=$here/cache" -o "APT::Sandbox::User=root")
apt-get "${apt[@]}" update -qq
(cd "$here/deb" && apt-get "${apt[@]}" download -qq virtiofsd libc6 libcap-ng0 libgcc-s1 libseccomp2 >/dev/null)
for package in "$here"/deb/*.deb; do dpkg -x "$package" "$here/root"; done
rm -rf "$here"/{lists,cache,deb,sources}
libraries=$(dirname "$(find "$here/root" -name 'libc.so.6' | head -n 1)")
loader=$(find "$libraries" -name 'ld-linux-*.so.*' | head -n 1)
printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
  "$loader" "$libraries" "$(find "$here/root" -name virtiofsd -type f -perm -u+x | head -n 1)" >"$work/run.part"
chmod +x "$work/run.part"
mv "$work/run.part" "$work/run"
