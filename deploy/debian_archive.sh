# Sourced by what fetches from a suite of Debian that this machine does not install from.
#
#     open_debian_archive <directory> <deb|deb-src> <suite>
#
# sets the array `apt` to the options with which apt-get and apt-cache use that suite, signed by
# Debian, from the mirror of the machine's own main component. What apt needs is kept in the
# directory, so nothing of the machine's own changes, and no right is needed.
open_debian_archive() {
  local state mirror
  state=$(realpath -m "$1")
  mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' \
    | awk '$2 ~ /^(bookworm|trixie|sid)$/ && $3 == "main" { found = $1 } END { print found; exit !found }') \
    || { echo "$0 fetches from Debian's archive, which apt does not have here" >&2; return 1; }
  mkdir -p "$state"/{lists/partial,cache/archives/partial}
  echo "$2 [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $3 main" >"$state/sources"
  # Absolute paths: apt's own directories are not relative to ours.
  apt=(-qq -o "Dir::Etc::SourceList=$state/sources" -o "Dir::Etc::SourceParts=-" -o "Dir::State::Lists=$state/lists"
    -o "Dir::Cache=$state/cache" -o "APT::Sandbox::User=root" -o "Acquire::Languages=none")
  apt-get "${apt[@]}" update
}
