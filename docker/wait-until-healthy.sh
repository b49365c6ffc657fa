#!/usr/bin/env bash
# Waits until the health check of a program in a container succeeds:
#   docker/wait-until-healthy.sh CONTAINER PROGRAM
set -euo pipefail

readonly TIMEOUT=60
container=$1 program=$2
deadline=$((SECONDS + TIMEOUT))
until docker exec "$container" "/usr/local/bin/$program" healthcheck >/dev/null 2>&1; do
    ((SECONDS < deadline)) || {
        echo "wait-until-healthy.sh: $program is not healthy after $TIMEOUT seconds: see docker logs $container" >&2
        exit 1
    }
    sleep 0.1
done
