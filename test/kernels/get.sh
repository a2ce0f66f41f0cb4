#!/usr/bin/env bash
# get.sh DIR: installs an emulator and a busybox, and unpacks every small kernel
# that this machine's own apt has into DIR as vmlinuz-RELEASE. More kernels come
# by more releases in apt's sources, or by files that somebody puts there.
set -euo pipefail
dir=$1
mkdir -p "$dir"
missing=()
command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
busybox --list >/dev/null 2>&1 || missing+=(busybox-static)
if ((${#missing[@]})); then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
compgen -G "$dir/vmlinuz*" >/dev/null && exit 0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
apt-cache search --names-only '^linux-image-[0-9][^ ]*-(cloud-amd64|kvm)$' | cut -d' ' -f1 | while read -r package; do
	apt-get download -qq "$package" 2>/dev/null
	dpkg -x "$package"_*.deb one
	cp one/boot/vmlinuz-* "$dir/"
	rm -rf one
done
