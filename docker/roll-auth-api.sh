#!/usr/bin/env bash
# Replaces every replica of auth-api by one of the image that .prod.env names, one by one, with no
# request failed: a new one answers before an old one goes.
set -euo pipefail
cd "$(dirname "$0")/.."

replicas() { docker/compose ps -q auth-api; }
answers() { docker exec "$1" /usr/local/bin/auth-api healthcheck >/dev/null 2>&1; }

mapfile -t old < <(replicas)
count=${#old[@]}
for replica in "${old[@]}"; do
    docker/compose up -d --no-deps --no-recreate --scale "auth-api=$((count + 1))" auth-api >/dev/null 2>&1
    deadline=$((SECONDS + 60))
    for new in $(replicas); do
        until answers "$new"; do
            ((SECONDS < deadline)) || {
                echo "roll-auth-api.sh: a new replica does not answer: docker logs $new" >&2
                exit 1
            }
            sleep 0.2
        done
    done
    docker stop --time 40 "$replica" >/dev/null
    docker rm "$replica" >/dev/null
done
echo "replaced $count replicas"
