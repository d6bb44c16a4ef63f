#!/bin/sh
# Plays the WSLC session once against a running cluster; run by compose.yaml's service `handshake`.
set -eu

vm=$(porthole vm create --kind wslc --machine unix:/run/porthole/vm/machine.sock)
trap 'porthole vm terminate "$vm"' EXIT
porthole session apply "$vm"
porthole share add "$vm" /srv/share --ro --tag source >/dev/null
porthole share hash "$vm" source >/tmp/digests
(cd /srv/share && sha256sum --quiet --check /tmp/digests)
porthole vm show "$vm"
echo "$(wc -l </tmp/digests) files read through the aperture, all equal"
