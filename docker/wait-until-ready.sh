#!/usr/bin/env bash
# Waits until a program in a container can serve requests: docker/wait-until-ready.sh CONTAINER PROGRAM
# If it cannot within a minute, has exited twice, or is not started again, prints why and the last lines of its log, and fails.
set -euo pipefail

readonly TIMEOUT=60
container=$1 program=$2
deadline=$((SECONDS + TIMEOUT))

check() { docker exec "$container" "/usr/local/bin/$program" healthcheck "$@" 2>&1; }

is_ready() {
    local status=0
    problem=$(check --ready) || status=$?
    # Exit code of a program that is too old to know the option.
    [ "$status" != 2 ] || { status=0 && problem=$(check) || status=$?; }
    return "$status"
}

until is_ready; do
    read -r restarts status < <(docker inspect --format '{{.RestartCount}} {{.State.Status}}' "$container")
    # Docker does not start `exited` again.
    if ((SECONDS >= deadline || restarts > 1)) || [ "$status" = exited ]; then
        [ "$status" = running ] || problem="it exited"
        {
            echo "wait-until-ready.sh: $program is not ready: $problem"
            docker logs --tail 20 "$container"
        } >&2 2>&1
        exit 1
    fi
    sleep 0.1
done
