#!/usr/bin/env bash
# Writes the descriptor set that `buf breaking` compares the .proto files with, into baseline/.
#
# Before the first release it is unreleased.binpb, which may be written again. That of a release is
# v<version>.binpb: peers in the field are built from it, so it is written once and never again.
set -euo pipefail
cd "$(dirname "$0")"
release=${1:-}
shopt -s nullglob
released=(baseline/v*.binpb)

refuse() {
  echo "make baseline: $*" >&2
  exit 1
}

if [[ -z $release ]]; then
  ((${#released[@]} == 0)) || refuse "protos/${released[-1]} belongs to a release and is not" \
    "written again; change the .proto files so that nothing breaks a peer that was built from it"
  target=baseline/unreleased.binpb
else
  [[ $release =~ ^v[0-9]+\.[0-9]+\.[0-9]+$ ]] || refuse "RELEASE=$release is not v<major>.<minor>.<patch>"
  target=baseline/$release.binpb
  [[ ! -e $target ]] || refuse "protos/$target belongs to a release and is not written again"
fi

mapfile -t files < <(find porthole -name '*.proto' | sort)
python=${PYTHON:-../.venv/bin/python}
# protoc is beside the packages of .venv, not among them (requirements-protos.lock).
PYTHONPATH=$("$python" -c 'import sys; print(sys.prefix)')/protoc "$python" -m grpc_tools.protoc -I . --include_imports \
  --descriptor_set_out="$target" "${files[@]}"
[[ -z $release ]] || rm -f baseline/unreleased.binpb
