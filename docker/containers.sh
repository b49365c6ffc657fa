#!/usr/bin/env bash
# Prints the ids of a service's containers, the oldest first, in whatever state they are, without those of
# `docker/compose run`: docker/containers.sh SERVICE
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t ids < <(docker/compose ps --all -q "$1" 2>/dev/null)
[ ${#ids[@]} -gt 0 ] || exit 0
docker inspect --format '{{.Created}} {{.Id}} {{index .Config.Labels "com.docker.compose.oneoff"}}' "${ids[@]}" |
    sort | awk '$3 == "False" { print $2 }'
