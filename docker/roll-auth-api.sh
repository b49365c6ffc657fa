#!/usr/bin/env bash
# Replaces the replicas of auth-api one by one with the image named in .prod.env. No request fails:
# a new replica is healthy before an old one is stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

replicas() { docker/compose ps -q auth-api; }

mapfile -t old < <(replicas)
count=${#old[@]}
for replica in "${old[@]}"; do
    docker/compose up -d --no-deps --no-recreate --scale "auth-api=$((count + 1))" auth-api >/dev/null 2>&1
    for running in $(replicas); do
        docker/wait-until-healthy.sh "$running" auth-api
    done
    docker stop --time 40 "$replica" >/dev/null
    docker rm "$replica" >/dev/null
done
echo "replaced $count replicas"
