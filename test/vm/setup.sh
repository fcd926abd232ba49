#!/bin/sh
# setup.sh CACHE: gets what the machines of these tests are made of.
#
# Tools that are missing on this machine come from Debian's packages, installed
# if this runs as root. The kernel and the NFS programs are never installed,
# only unpacked below CACHE: installing them would start services.
set -eu

cache=$1
mkdir -p "$cache"
PATH=$PATH:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive
exec 9>"$cache/lock"
flock 9 # several packages of tests begin at once

if [ "$(uname -m)" != x86_64 ] || ! command -v apt-get >/dev/null; then
	echo "setup.sh: needs Debian or a relative of it on x86_64" >&2
	exit 1
fi

missing=
need() { # COMMAND PACKAGE
	command -v "$1" >/dev/null || missing="$missing $2"
}
need qemu-system-x86_64 qemu-system-x86
need busybox busybox-static
need depmod kmod
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs

[ -z "$missing" ] && [ -e "$cache/kernel" ] && exit 0

if [ "$(id -u)" != 0 ]; then
	echo "setup.sh: run once as root, to get:$missing and a kernel" >&2
	exit 1
fi
apt() { apt-get -o DPkg::Lock::Timeout=300 -q -y --no-install-recommends "$@" >&2; }

apt update
if [ -n "$missing" ]; then
	# shellcheck disable=SC2086
	apt install $missing
fi

if [ ! -e "$cache/kernel" ]; then
	image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
	rm -rf "$cache/debs" "$cache/root"
	mkdir -p "$cache/debs/partial" "$cache/root"
	# With what they need, but for what is installed here already.
	apt -o Dir::Cache::archives="$cache/debs" -o APT::Sandbox::User=root \
		install --reinstall --download-only "$image" nfs-kernel-server nfs-common rpcbind
	for deb in "$cache/debs/"*.deb; do
		dpkg -x "$deb" "$cache/root"
	done
	rm -rf "$cache/debs"
	depmod -b "$cache/root" "${image#linux-image-}"
	echo "${image#linux-image-}" >"$cache/kernel.new"
	mv "$cache/kernel.new" "$cache/kernel"
fi
