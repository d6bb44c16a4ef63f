#!/usr/bin/env bash
# Unpacks packages of a suite of Debian that this machine does not install from:
#
#     unpack_from_debian.sh <suite> <directory> <package>…
#
# The mirror is that of the machine's own main component. What apt needs is kept beside the
# directory, so nothing of the machine's own changes, and no right is needed.
set -euo pipefail
suite=$1 target=$(realpath -m "$2")
shift 2
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' \
  | awk '$2 ~ /^(bookworm|trixie|sid)$/ && $3 == "main" { found = $1 } END { print found; exit !found }')
work=$target.apt
rm -rf "$target" "$work"
mkdir -p "$work"/{lists/partial,cache/archives/partial,deb,root}
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources"
apt=(-qq -o "Dir::Etc::SourceList=$work/sources" -o "Dir::Etc::SourceParts=-" -o "Dir::State::Lists=$work/lists"
  -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=root")
apt-get "${apt[@]}" update
(cd "$work/deb" && apt-get "${apt[@]}" download "$@" >/dev/null)
for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/root"; done
mv "$work/root" "$target"
rm -rf "$work"
