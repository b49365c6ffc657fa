#!/usr/bin/env bash
# Replaces the replicas of auth-api one by one with the image named in .prod.env. No request fails: a new
# replica is ready before an old one is stopped. If a new replica does not become ready, it is removed, the
# remaining old ones keep running, and the script fails. It may be run again at any time.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "roll-auth-api.sh: $*" >&2
    exit 1
}

# Number of replicas, kept while the script runs: after its abort there may be one more.
readonly COUNT_FILE=.roll-auth-api.count

exec 9<compose.prod.yml
flock --nonblock 9 || fail "another update of this deployment is running"

replicas() { docker/containers.sh auth-api; }

is_ready() { docker exec "$1" /usr/local/bin/auth-api healthcheck --ready >/dev/null 2>&1; }

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

docker/pull-image.sh auth-api

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
[ "$count" -gt 0 ] || fail "auth-api has no replica: start the deployment with docker/compose up -d"
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
    output=$(docker/compose up -d --no-deps --no-recreate --scale "auth-api=$((count + 1))" auth-api 2>&1) ||
        fail "cannot start a new replica: $output"
    new=$(added)
    docker/wait-until-ready.sh "$new" auth-api ||
        fail "replaced $replaced of $count replicas; the new one is not ready and is removed, the others keep running"
    # From now on the new replica is one of those to keep.
    old+=("$new")
    retire "$replica"
    replaced=$((replaced + 1))
done
echo "replaced $count replicas"
