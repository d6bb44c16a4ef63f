#!/usr/bin/env bash
# Build the guest's kernel: Debian's linux-source-6.12, our patches, our configuration (docs/kernel.md).
# Usage: build.sh [x86_64|arm64]; by default for this machine.
#
# build/kernel/ARCH is then a link to what was built: vmlinux, or Image; config; version.
# What was built is kept by what it was made of, and is not built again. Without build/kernel/source
# the newest source of Debian 13 is fetched.
set -euo pipefail
# The kernel's make is no part of ours.
unset MAKEFLAGS MAKELEVEL MAKEOVERRIDES
cd "$(dirname "$0")/../.."
source deploy/debian_archive.sh
recipe=deploy/kernel
cache=build/kernel
source=$cache/source
release=6.12

arch=${1:-$(uname -m)}
case $arch in
  x86_64) target=vmlinux image=vmlinux triple=x86_64-linux-gnu ;;
  arm64 | aarch64) arch=arm64 target=Image image=arch/arm64/boot/Image triple=aarch64-linux-gnu ;;
  *) echo "make kernel builds for x86_64 and arm64, not for $arch: give ARCH=x86_64 or ARCH=arm64" >&2; exit 2 ;;
esac
# A compiler for another machine has its name as a prefix.
cross=
[[ $(uname -m) == "${triple%%-*}" ]] || cross=$triple-

need() { # need PACKAGE COMMAND…: note the package, if the command fails
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

fetch() {
  missing=()
  need apt command -v apt-get
  need dpkg command -v dpkg-deb
  need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
  refuse_missing
  local here=$PWD/$source.part
  rm -rf "$here"
  open_debian_archive "$here" deb trixie
  (cd "$here" && apt-get "${apt[@]}" download "linux-source-$release" >/dev/null)
  local package=("$here"/*.deb)
  dpkg-deb --field "${package[0]}" Version >"$here/version"
  dpkg-deb --fsys-tarfile "${package[0]}" | tar -xO "./usr/src/linux-source-$release.tar.xz" >"$here/linux.tar.xz"
  rm -rf "$here"/{lists,cache,sources,*.deb} "$source"
  mv "$here" "$source"
}

refuse_missing() {
  ((${#missing[@]} == 0)) && return
  echo "make kernel lacks tools; on Debian: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
[[ -e $source/version ]] || fetch
version=$(<"$source/version")
key=$(cat "$source/version" "$recipe"/{build.sh,never-built,config,"config.$arch",patches/*.patch} \
  | sha256sum | cut -c1-12)
built=$cache/$arch-$key

if [[ ! -e $built/version ]]; then
  missing=()
  need make command -v make
  need "gcc${cross:+-${cross%-}}" command -v "${cross}gcc"
  need flex command -v flex
  need bison command -v bison
  need bc command -v bc
  need patch command -v patch
  need xz-utils command -v xz
  [[ $arch != x86_64 ]] || need libelf-dev test -e /usr/include/gelf.h
  refuse_missing

  work=$cache/work-$arch
  rm -rf "$work"
  mkdir -p "$work/made"
  echo "building linux $version for $arch; the log is $work/log" >&2
  # Every Kconfig file and Makefile is needed, but not the sources of other machines.
  tar -xf "$source/linux.tar.xz" -C "$work" --strip-components=1 --exclude-from="$recipe/never-built"
  for patch in "$recipe"/patches/*.patch; do
    patch --directory="$work" --strip=1 --forward --no-backup-if-mismatch <"$patch" >>"$work/log" \
      || { tail "$work/log" >&2; echo "$patch does not apply to linux $version" >&2; exit 1; }
  done
  cat "$recipe/config" "$recipe/config.$arch" >"$work/fragment"
  run=(make -C "$work" ARCH="$arch" CROSS_COMPILE="$cross" KBUILD_BUILD_USER=porthole
    KBUILD_BUILD_HOST=porthole KBUILD_BUILD_TIMESTAMP="1970-01-01" KBUILD_BUILD_VERSION=1)
  logged() {
    nice "$@" >>"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; exit 1; }
  }
  logged "${run[@]}" KCONFIG_ALLCONFIG=fragment allnoconfig
  dropped=$(grep -E '^(CONFIG_|# CONFIG_.* is not set)' "$work/fragment" | grep -Fxv -f "$work/.config" || true)
  [[ -z $dropped ]] || { printf 'Kconfig does not take:\n%s\n' "$dropped" >&2; exit 1; }
  logged "${run[@]}" -j"$(nproc)" "$target"
  cp "$work/$image" "$work/made/"
  [[ $arch != x86_64 ]] || "${cross}strip" "$work/made/vmlinux"
  cp "$work/.config" "$work/made/config"
  echo "$version" >"$work/made/version"
  rm -rf "$built"
  mv "$work/made" "$built"
  rm -rf "$work"
fi
ln -sfn "$arch-$key" "$cache/$arch"
echo "$cache/$arch: linux $version"
