#!/bin/sh
# Stands in for ssh: runs the command on this machine in an almost empty environment, as a login elsewhere would.
# "unreachable" refuses, as does a host that has a file of its name in FAKE_SSH_DOWN; calls are noted in FAKE_SSH_LOG.
while [ "${1#-}" != "$1" ]; do
    case "$1" in
    -o | -p | -l | -i | -F) shift 2 ;;
    *) shift ;;
    esac
done
host=$1
shift
[ -n "$FAKE_SSH_LOG" ] && echo "$host $*" >> "$FAKE_SSH_LOG"
if [ "$host" = unreachable ] || [ -e "$FAKE_SSH_DOWN/$host" ]; then
    echo "ssh: connect to host $host port 22: No route to host" >&2
    exit 255
fi
# What start-up files of a shell print, the last line without an end.
printf 'Welcome to %s\n3\n{"maintenance": "tonight"}\n$ ' "$host"
cd /
exec env -i HOME="$HOME" PATH="$PATH" FAKE_HOST="$host" sh -c "$*"
