#!/usr/bin/env bash
# Brings the cluster up with a real container engine, runs the handshake in it, sees that it is valid on
# the page of its dashboard, and takes everything down again. Needs root, and what `make test` sets up.
# It works on a bare Debian machine without an image registry: it installs an engine if there is none,
# and starts one, with data of its own, if none is running; it then makes the base image that the
# Dockerfile names by debootstrap. What it installed it removes again, and nothing else.
#
# PORTHOLE_VERIFY_CACHE (default: ~/.cache/porthole-verify) keeps the base image for the next time.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${PORTHOLE_VERIFY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/porthole-verify}
named_image=python:3.11-slim-bookworm
stand_in=porthole-verify/base
work=$(mktemp -d /tmp/porthole-verify.XXXXXX)
compose=(docker compose --file "$here/compose.yaml" --project-name porthole-verify)
own_engine=
own_policy=
own_group=
began=$SECONDS

say() { printf '[%3d s] %s\n' "$((SECONDS - began))" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

install_missing() {
  local missing=()
  for need in "$@"; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need#*:}")
  done
  ((${#missing[@]})) || return 0
  say "installing ${missing[*]}"
  apt-get update -qq
  # Packages must not start daemons: this script starts the engine, unless one was running before.
  printf '#!/bin/sh\nexit 101\n' >"$work/policy-rc.d"
  chmod +x "$work/policy-rc.d"
  [[ -e /usr/sbin/policy-rc.d ]] || { cp "$work/policy-rc.d" /usr/sbin/; own_policy=1; }
  # The package of the engine makes this group, and leaves it when it goes.
  getent group docker >/dev/null || own_group=1
  new_packages "${missing[@]}" >>"$work/packages"
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}" >/dev/null
  remove_policy
}

remove_policy() {
  [[ -z $own_policy ]] || rm -f /usr/sbin/policy-rc.d
  own_policy=
}

# Prints the packages that installing these would bring, without those that it would upgrade.
new_packages() {
  apt-get install --simulate --no-install-recommends "$@" | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }'
}

# Others may have installed packages meanwhile. dpkg removes none but these, and keeps one of these that
# another package has come to need.
remove_installed() {
  remove_policy
  [[ -s $work/packages ]] || return 0
  DEBIAN_FRONTEND=noninteractive xargs dpkg --purge <"$work/packages" >/dev/null
  [[ -z $own_group ]] || ! getent group docker >/dev/null || groupdel docker
}

start_engine() {
  install_missing dockerd:docker.io docker:docker.io iptables-save:iptables
  iptables-save >"$work/iptables"
  cat /proc/sys/net/ipv4/ip_forward >"$work/ip_forward"
  ip -o link show type bridge | cut -d: -f2 | tr -d ' ' >"$work/bridges"
  engine_paths >"$work/paths"
  export DOCKER_HOST=unix://$work/docker.sock
  own_engine=1
  say "starting an engine of our own"
  dockerd --storage-driver=overlay2 --data-root="$work/data" --exec-root="$work/exec" \
    --pidfile="$work/dockerd.pid" --host="$DOCKER_HOST" >"$work/dockerd.log" 2>&1 &
  engine=$!
  until docker info >/dev/null 2>&1; do
    kill -0 "$engine" 2>/dev/null || { tail -n 5 "$work/dockerd.log" >&2; die "the engine ended"; }
    sleep 0.2
  done
}

# Prints the paths that exist of those that any engine leaves outside its own directories.
engine_paths() {
  find /run/docker /run/containerd /opt/containerd /etc/docker/key.json -maxdepth 0 2>/dev/null || true
  find /sys/fs/cgroup -maxdepth 2 -type d -name docker
}

# Compose and buildx are in the next suite of the same mirror; both are single binaries.
fetch_plugins() {
  docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 && return 0
  say "fetching compose and buildx"
  export DOCKER_CONFIG=$work/config
  mkdir -p "$DOCKER_CONFIG/cli-plugins" "$work/apt/lists/partial" "$work/apt/cache"
  local mirror
  mirror=$(debian_mirror)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/apt/sources"
  local apt=(-o "Dir::Etc::SourceList=$work/apt/sources" -o "Dir::Etc::SourceParts=-"
    -o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o "APT::Sandbox::User=root")
  apt-get "${apt[@]}" update -qq
  (cd "$work/apt" && apt-get "${apt[@]}" download -qq docker-compose docker-buildx >/dev/null)
  for package in "$work"/apt/*.deb; do dpkg -x "$package" "$work/apt/root"; done
  cp "$work"/apt/root/usr/libexec/docker/cli-plugins/* "$DOCKER_CONFIG/cli-plugins/"
  docker compose version >/dev/null || die "compose could not be set up"
}

debian_mirror() {
  apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' \
    | awk '$2 == "bookworm" && $3 == "main" { found = $1 } END { print found; exit !found }' \
    || die "apt knows no source of Debian 12 (bookworm), which the base image is made from"
}

# A stand-in for the image that the Dockerfile names, from the distribution's own packages.
make_base_image() {
  docker image inspect "$named_image" >/dev/null 2>&1 && return 0
  # The image has a name of its own, so that an engine that is not ours never uses it as the real one.
  export PORTHOLE_BASE_IMAGE=$stand_in
  mkdir -p "$cache"
  if [[ ! -s $cache/base.tar ]]; then
    install_missing debootstrap:debootstrap
    say "making the base image"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
      bookworm "$work/root" "$(debian_mirror)" >"$work/debootstrap.log" \
      || { tail -n 5 "$work/debootstrap.log" >&2; die "debootstrap failed"; }
    ln -sf /usr/bin/python3 "$work/root/usr/local/bin/python"
    rm -f "$work"/root/usr/lib/python3*/EXTERNALLY-MANAGED "$work"/root/var/cache/apt/archives/*.deb
    # The machine's own certificates, so that pip works in builds as it does outside.
    cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
    tar -C "$work/root" -cf "$cache/base.tar.part" .
    mv "$cache/base.tar.part" "$cache/base.tar"
    rm -rf "$work/root"
  fi
  say "importing the base image"
  local bundle=/etc/ssl/certs/ca-certificates.crt
  docker import -c "ENV PIP_CERT=$bundle SSL_CERT_FILE=$bundle REQUESTS_CA_BUNDLE=$bundle" \
    "$cache/base.tar" "$stand_in" >/dev/null
}

# iptables-save writes no empty table, so a table that was empty before must be cleared as well.
restore_firewall() {
  local table
  for table in $(iptables-save | sed -n 's/^\*//p'); do
    iptables -t "$table" -F
    iptables -t "$table" -X
  done
  iptables -P FORWARD ACCEPT
  iptables-restore <"$work/iptables"
}

tear_down() {
  local status=$?
  set +e
  say "taking everything down"
  if ((status)) && [[ -n ${ready:-} ]]; then "${compose[@]}" logs --no-color 2>&1 | tail -n 60; fi
  [[ -z ${ready:-} ]] || "${compose[@]}" --profile tools down --volumes --timeout 30 >/dev/null 2>&1
  if [[ -z $own_engine ]]; then
    docker image rm porthole/guest porthole/vm_owner porthole/devicehost porthole/dashboard \
      "$stand_in" >/dev/null 2>&1
  else
    kill "$engine" && wait "$engine"
    umount "$work/exec/netns/default" 2>/dev/null
    for bridge in $(ip -o link show type bridge | cut -d: -f2 | tr -d ' '); do
      grep -qx "$bridge" "$work/bridges" || ip link delete "$bridge"
    done
    restore_firewall
    cat "$work/ip_forward" >/proc/sys/net/ipv4/ip_forward
    engine_paths | grep -vxFf "$work/paths" | while read -r path; do
      # A control group is removed by rmdir: its files go with it, and cannot be removed.
      if [[ $path == /sys/* ]]; then find "$path" -depth -type d -exec rmdir {} +; else rm -rf "$path"; fi
    done
  fi
  remove_installed
  rm -rf "$work"
  exit "$status"
}

[[ $EUID -eq 0 ]] || die "needs root, for the container engine"
trap tear_down EXIT

if docker info >/dev/null 2>&1; then say "using the engine that runs here"; else start_engine; fi
fetch_plugins
make_base_image

ready=1
"${compose[@]}" config --quiet
say "building the images"
"${compose[@]}" build --quiet
say "starting the services"
"${compose[@]}" up --detach --wait --quiet-pull 2>&1 | tail -n 1
"${compose[@]}" ps --format '{{.Service}}: {{.Status}}'

for service in guest devicehost vm_owner; do
  container=$("${compose[@]}" ps --quiet "$service")
  user=$(docker inspect --format '{{.Config.User}} {{.HostConfig.NetworkMode}} {{.HostConfig.ReadonlyRootfs}}' "$container")
  [[ $user == "porthole none true" ]] || die "$service runs as: $user"
  # Asked inside, so that a command that does not run at all is no proof.
  "${compose[@]}" exec -T "$service" sh -c \
    'cd /run/porthole/telemetry && test -S dashboard.sock && ! touch own.sock 2>/dev/null' \
    || die "$service does not see the dashboard's socket, or can put one of its own in its place"
done
"${compose[@]}" exec -T guest test ! -e /run/porthole/owner.sock -a ! -e /var/lib/porthole/token \
  || die "the guest sees the owner's socket, or the token"

container=$("${compose[@]}" ps --quiet dashboard)
user=$(docker inspect --format '{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}' "$container")
[[ $user == "porthole true" ]] || die "dashboard runs as: $user"
ports=$(docker inspect --format '{{range .HostConfig.PortBindings}}{{json .}}{{end}}' "$container")
[[ $ports == '[{"HostIp":"127.0.0.1","HostPort":"'"${PORTHOLE_PAGE_PORT:-4380}"'"}]' ]] \
  || die "the page is published elsewhere than on loopback: $ports"
mode=$("${compose[@]}" exec -T dashboard stat --format '%a %U' /var/lib/porthole/token)
[[ $mode == "600 porthole" ]] || die "the token's file has mode and owner $mode"

say "the handshake"
"${compose[@]}" run --rm -T --no-deps handshake

say "looking at it"
# As a reader finds it.
link=$("${compose[@]}" logs --no-color dashboard | sed -n 's/.*the page: //p')
[[ $link == http://127.0.0.1:*/?token=* ]] || die "the dashboard's log has no link to its page: $link"
PORTHOLE_CLUSTER_PAGE=${link%/?token=*} PORTHOLE_CLUSTER_TOKEN=${link#*token=} \
  "$here/../.venv/bin/python" -m pytest --quiet --rootdir "$here/.." "$here/../tests/browser/check_cluster.py"

say "stopping"
stopped=$SECONDS
"${compose[@]}" stop
((SECONDS - stopped < 15)) || die "stopping took $((SECONDS - stopped)) s: a service ignores SIGTERM"
say "valid"
