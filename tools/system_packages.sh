#!/usr/bin/env bash
# Installs the system packages that the tests use: a second compiler and emulator for Cortex-M, and a
# browser for the pictures. Does nothing when all are there.
set -euo pipefail

declare -A package_of=(
  [arm-none-eabi-gcc]="gcc-arm-none-eabi libnewlib-arm-none-eabi"
  [qemu-system-arm]="qemu-system-arm"
  [chromium]="chromium"
  [cmake]="cmake"
  [cc]="gcc libc6-dev"
  [make]="make"
)

missing=()
for tool in "${!package_of[@]}"; do
  command -v "$tool" >/dev/null || missing+=(${package_of[$tool]})
done
# The libraries that gcc needs for programs of 32 bits belong to no command.
if [ "$(uname -m)" = x86_64 ] && ! echo 'int main(void) { return 0; }' | cc -m32 -xc - -o /dev/null 2>/dev/null; then
  missing+=(gcc-multilib)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "The tests need these packages; install them with your package manager: ${missing[*]}" >&2
  exit 1
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}"
