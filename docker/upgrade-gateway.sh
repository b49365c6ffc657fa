#!/usr/bin/env bash
# Replaces the gateway with the image named in .prod.env. No connection is refused, and none waits. Several gateways
# behind a balancer are replaced one by one, by docker/roll.sh.
#
# One gateway: two containers cannot publish the same port, and the old gateway may need 40 seconds to finish its requests. So
# a temporary gateway with the new image serves meanwhile: iptables rules send new connections to it, the others
# stay where they are. Until it is ready nothing is changed, so an image or a configuration that does not work
# leaves the old gateway as it is. It may be run again at any time. Needs root, for iptables, unless there are several.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "upgrade-gateway.sh: $*" >&2
    exit 1
}

# The oldest, if a run was killed between the creation of the new container and the removal of the old one.
container() { docker/containers.sh gateway | sed -n 1p; }

check_config() {
    local output
    # A run that was killed here has left its container.
    docker container prune --force --filter "label=com.docker.compose.project=$project" \
        --filter label=com.docker.compose.service=gateway --filter label=com.docker.compose.oneoff=True >/dev/null
    output=$(docker/compose run --rm --no-deps -T gateway check 2>&1) ||
        fail "the new image does not accept the configuration: $output"
}

# Reads the gateway that is to be replaced, and its project.
read_old() {
    old=$(container)
    [ -n "$old" ] || fail "there is no gateway: start the deployment with docker/compose up -d"
    project=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.project"}}' "$old")
}

if grep -qx balancer <<<"$(docker/compose config --services 2>/dev/null)"; then
    docker/pull-image.sh gateway
    read_old
    [ -n "$(docker/containers.sh balancer)" ] ||
        fail "the gateways have no balancer yet: start it with docker/compose up -d"
    check_config
    exec docker/roll.sh gateway
fi

[ "$(id -u)" = 0 ] || fail "run it as root: it needs iptables for the time of the upgrade"
PATH=$PATH:/usr/sbin:/sbin
command -v iptables >/dev/null || fail "iptables is missing: install it"
exec 9<compose.prod.yml
flock --nonblock 9 || fail "another update of this deployment is running"

docker/pull-image.sh gateway
read_old
check_config
old_image=$(docker inspect --format '{{.Image}}' "$old")
temporary=${project}_gateway_upgrade
# A rule for the port alone would take over that port of every address.
addresses=$(docker inspect --format \
    '{{range .HostConfig.PortBindings}}{{range .}}{{println .HostIp}}{{end}}{{end}}' "$old" | grep -vxE '|0\.0\.0\.0|::' || true)
[ -z "$addresses" ] ||
    fail "the gateway is published on ${addresses//$'\n'/ } alone: replace it by docker/compose up -d --no-deps --force-recreate gateway"
# Each line is the container's port and the machine's, also of a container that a killed run has stopped.
ports=$(docker inspect --format \
    '{{range $port, $bindings := .HostConfig.PortBindings}}{{range $bindings}}{{$port}} {{.HostPort}}{{"\n"}}{{end}}{{end}}' \
    "$old" | sed -nE 's|^([0-9]+)/tcp ([0-9]+)$|\1 \2|p' | sort -u)
[ -n "$ports" ] ||
    fail "the gateway publishes no port: see \"Several gateways\" in docs/operations.md if it was started behind a balancer"

delete_rules() {
    local tool rule
    for tool in iptables ip6tables; do
        command -v "$tool" >/dev/null || continue
        while read -r rule; do
            # shellcheck disable=SC2086  # the words of the rule
            "$tool" -w -t nat -D ${rule#-A }
        done < <("$tool" -w -t nat -S 2>/dev/null | grep -w -- "--comment $temporary")
    done
}

# Sends new connections for a port of this machine to the temporary gateway, at the same addresses as Docker
# does: those to loopback and those of IPv6 through Docker's proxy, which listens on another port.
# Rules that a killed run has left stay in force.
add_rules() { # CONTAINER-PORT PORT
    local address proxy local_port=(-p tcp --dport "$2" -m addrtype --dst-type LOCAL -m comment --comment "$temporary")
    address=$(docker inspect --format \
        '{{range $name, $network := .NetworkSettings.Networks}}{{$name}} {{$network.IPAddress}}{{"\n"}}{{end}}' \
        "$temporary" | awk '$1 ~ /_edge$/ { print $2 }')
    proxy=$(docker port "$temporary" "$1/tcp" | sed -n '1s/.*://p')
    add_rule iptables PREROUTING "${local_port[@]}" -j DNAT --to-destination "$address:$1"
    add_rule iptables OUTPUT "${local_port[@]}" ! -d 127.0.0.0/8 -j DNAT --to-destination "$address:$1"
    add_rule iptables OUTPUT "${local_port[@]}" -d 127.0.0.0/8 -j REDIRECT --to-ports "$proxy"
    command -v ip6tables >/dev/null || return 0
    # Fails on a machine without IPv6.
    add_rule ip6tables PREROUTING "${local_port[@]}" -j REDIRECT --to-ports "$proxy" 2>/dev/null || return 0
    add_rule ip6tables OUTPUT "${local_port[@]}" -j REDIRECT --to-ports "$proxy"
}

add_rule() { # TOOL CHAIN RULE...
    "$1" -w -t nat -C "${@:2}" 2>/dev/null || "$1" -w -t nat -I "${@:2}"
}

clean_up() {
    delete_rules
    docker stop -t 40 "$temporary" >/dev/null 2>&1 || true
    docker rm --force "$temporary" >/dev/null 2>&1 || true
}

# A run that was killed may have left its temporary gateway, which may be the only one that serves: it stays.
if ! docker exec "$temporary" /usr/local/bin/gateway healthcheck --ready >/dev/null 2>&1; then
    clean_up
    trap clean_up EXIT
    trap 'exit 1' INT TERM HUP
    publish=()
    while read -r port _; do publish+=(--publish "$port"); done <<<"$ports"
    output=$(docker/compose run -d --no-deps --name "$temporary" "${publish[@]}" gateway 2>&1) ||
        fail "the new image does not start: $output"
    docker/wait-until-ready.sh "$temporary" gateway || fail "the new gateway is not ready: the old one keeps running"
fi
trap clean_up EXIT

# An interruption would leave the ports without a gateway.
trap '' INT TERM HUP
while read -r port published; do add_rules "$port" "$published"; done <<<"$ports"

# Also if the image and the settings are the same: files that are read at the start may have changed.
replace() {
    local output
    output=$(docker/compose up -d --no-deps --force-recreate gateway 2>&1) || {
        echo "$output" >&2
        return 1
    }
    docker/wait-until-ready.sh "$(container)" gateway
}

replace || {
    echo "upgrade-gateway.sh: the new gateway does not start: restoring the old one" >&2
    export GATEWAY_IMAGE=$old_image
    replace || {
        trap - EXIT
        fail "the old gateway does not start either: $temporary serves until this script runs again"
    }
    fail "the old gateway is restored"
}
echo "replaced the gateway"
