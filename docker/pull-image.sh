#!/usr/bin/env bash
# Makes the image of a service, as .prod.env names it, available on this machine: docker/pull-image.sh SERVICE
#
# An image whose name begins with a registry's is pulled. If that fails, the copy of this machine is used, and
# if there is none, the script fails. Any other name is that of an image built here.
set -euo pipefail
cd "$(dirname "$0")/.."

service=$1
docker version >/dev/null || {
    echo "pull-image.sh: cannot use the Docker Engine: run it as root or as a member of the group docker" >&2
    exit 1
}
config=$(docker/compose config 2>/dev/null)
image=$(awk -v service="  $1:" '/^  [^ ]/ { in_service = $0 == service } in_service && $1 == "image:" { print $2 }' <<<"$config")
exists() { docker image inspect "$image" >/dev/null 2>&1; }

[ -n "$image" ] || {
    echo "pull-image.sh: compose.prod.yml names no image for $service" >&2
    exit 1
}
registry=${image%%/*}
if [[ $registry != "$image" && $registry =~ [.:]|^localhost$ ]]; then
    docker pull --quiet "$image" >/dev/null || {
        exists || {
            echo "pull-image.sh: cannot pull $image: check its name in .prod.env, and docker login" >&2
            exit 1
        }
        echo "pull-image.sh: cannot pull $image: using the copy of this machine" >&2
    }
elif ! exists; then
    echo "pull-image.sh: there is no image $image: build it, or name one with its registry in .prod.env" >&2
    exit 1
fi
