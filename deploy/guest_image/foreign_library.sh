#!/usr/bin/env bash
# Fetches the static library of a development package of another architecture, from Debian's archive:
#
#     foreign_library.sh <architecture> <package> <target>
#
# The lists of packages that apt needs for it are kept beside the target, so nothing of the machine's
# own changes, and no right is needed.
set -euo pipefail
architecture=$1 package=$2 target=$(realpath -m "$3")
state=$(dirname "$target")/apt
mkdir -p "$state"/{lists/partial,cache/archives/partial}
touch "$state/status"
options=(-qq -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
  -o "Dir::State=$state" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache"
  -o "Dir::Etc::SourceParts=/etc/apt/sources.list.d" -o APT::Sandbox::User=
  -o Acquire::Languages=none -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false)
apt-get "${options[@]}" update
(cd "$state" && apt-get "${options[@]}" download "$package" && dpkg-deb -x "$package"_*.deb root)
find "$state/root" -name 'lib*nanopb.a' -exec cp {} "$target" \;
rm -rf "$state"
