#!/usr/bin/env bash
# Replaces the containers of a service one by one with the image named in .prod.env: docker/roll.sh auth-api, or
# docker/roll.sh gateway where there are several behind a balancer. No request fails: a new container is ready before an
# old one is stopped. If a new one does not become ready, it is removed, the remaining old ones keep running, and the
# script fails. It may be run again at any time.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "roll.sh: $*" >&2
    exit 1
}

# Services are named after their programs.
readonly SERVICE=${1:-}
case $SERVICE in
    # The gateway in front of it finds new replicas before old ones have finished.
    auth-api) pause=0 ;;
    # Time in which the balancer finds a new gateway, of which there may be no other.
    gateway) pause=3 ;;
    *) fail "name the service, auth-api or gateway" ;;
esac
# Number of containers, kept while the script runs: after its abort there may be one more.
readonly COUNT_FILE=.roll-$SERVICE.count

exec 9<compose.prod.yml
flock --nonblock 9 || fail "another update of this deployment is running"

replicas() { docker/containers.sh "$SERVICE"; }

is_ready() { docker exec "$1" "/usr/local/bin/$SERVICE" healthcheck --ready >/dev/null 2>&1; }

# Lets a replica finish its requests, which takes at most 30 seconds.
retire() { # REPLICA
    docker stop -t 40 "$1" >/dev/null
    docker rm "$1" >/dev/null
}

remove() { # REPLICA...
    [ $# = 0 ] || docker rm --force "$@" >/dev/null
}

# Prints the replicas that were started since `old` was read.
added() {
    local replica
    for replica in $(replicas); do
        [[ " ${old[*]} " == *" $replica "* ]] || echo "$replica"
    done
}

docker/pull-image.sh "$SERVICE"

mapfile -t old < <(replicas)
if [ -s "$COUNT_FILE" ] && [ ${#old[@]} = $(($(cat "$COUNT_FILE") + 1)) ]; then
    # One is left over from a run that was killed: the old one that it had told to stop, or a new one.
    leftover=${old[-1]}
    for replica in "${old[@]}"; do
        is_ready "$replica" || { leftover=$replica && break; }
    done
    retire "$leftover"
    mapfile -t old < <(replicas)
fi
count=${#old[@]}
[ "$count" -gt 0 ] || fail "$SERVICE has no container: start the deployment with docker/compose up -d"
echo "$count" >"$COUNT_FILE"

replaced=0
clean_up() {
    # shellcheck disable=SC2046  # ids have no spaces
    remove $(added)
    rm -f "$COUNT_FILE"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP

for replica in "${old[@]}"; do
    output=$(docker/compose up -d --no-deps --no-recreate --scale "$SERVICE=$((count + 1))" "$SERVICE" 2>&1) ||
        fail "cannot start a new container: $output"
    new=$(added)
    docker/wait-until-ready.sh "$new" "$SERVICE" ||
        fail "replaced $replaced of $count containers of $SERVICE; the new one is not ready and is removed, the others keep running"
    # From now on the new replica is one of those to keep.
    old+=("$new")
    sleep "$pause"
    retire "$replica"
    replaced=$((replaced + 1))
done
echo "replaced $count containers of $SERVICE"
