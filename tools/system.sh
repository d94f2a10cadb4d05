#!/bin/sh
# system.sh WHAT PACKAGE...: installs Debian packages if it runs as root and apt-get exists. Otherwise it prints what is missing, and fails.
set -u
what=$1
shift
install() { apt-get install -y -q --no-install-recommends "$@"; }
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    echo "installing $*" >&2
    { install "$@" || { apt-get update -q && install "$@"; }; } </dev/null >/dev/null 2>&1 && exit 0
fi
echo "softxent needs $what: on Debian or Ubuntu, as root, apt-get install $*" >&2
exit 1
