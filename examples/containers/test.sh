#!/bin/sh
# A test of a program that uses a tunnel, where the program runs: in a container, or on a CI machine. It needs no rights.
set -e
export MEMTUN_CONTROL="${TMPDIR:-/tmp}/memtun-test.sock"

memtun run --front-end notify -- my-tun-program tun0 &
trap 'kill $!' EXIT
memtun wait tun0 reading --timeout 30s
memtun inject tun0 --ping --from 10.0.0.1 --to 10.0.0.2
memtun take tun0 --timeout 30s
