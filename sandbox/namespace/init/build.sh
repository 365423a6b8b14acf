#!/bin/sh
# Builds the resident init for both machines into the directory given (default:
# beside this script). The committed binaries come from the compilers of Debian
# 12: gcc 12.2 and gcc-aarch64-linux-gnu 12.2. Debian's package carries the cross
# compiler; other versions make other bytes, and the test says so.
set -eu
here=$(dirname "$0")
out=${1:-$here}
flags="-Os -Wall -Wextra -Werror -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie
-fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns -fcf-protection=none
-Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,noseparate-code -Wl,-z,max-page-size=4096 -s"
armflags=$(echo $flags | sed 's/-fcf-protection=none/-mbranch-protection=none -mno-outline-atomics/; s/max-page-size=4096/max-page-size=65536/')
x86_64-linux-gnu-gcc $flags -o "$out/init_linux_amd64" "$here/init.c"
aarch64-linux-gnu-gcc $armflags -o "$out/init_linux_arm64" "$here/init.c"
