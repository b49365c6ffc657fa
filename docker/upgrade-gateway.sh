#!/usr/bin/env bash
# Replaces the gateway by one of the image that .prod.env names, with no connection refused.
#
# Two containers cannot have one port, so there is a moment without a listener. While it lasts the
# kernel drops the first packet of new connections, which their clients send again a second later;
# connections that exist are told to end and are finished first. Needs root, for iptables.
set -euo pipefail
cd "$(dirname "$0")/.."

gateway() { docker/compose ps -q gateway; }
answers() { docker exec "$(gateway)" /usr/local/bin/gateway healthcheck >/dev/null 2>&1; }
ports() { docker port "$(gateway)" | sed 's/.*://' | sort -u; }

rule() { # ADD-OR-DELETE PORT
    local tool
    for tool in iptables ip6tables; do
        command -v "$tool" >/dev/null || continue
        "$tool" -w -t raw "$1" PREROUTING -p tcp --syn --dport "$2" -j DROP
        "$tool" -w -t raw "$1" OUTPUT -p tcp --syn --dport "$2" -m addrtype --dst-type LOCAL -j DROP
    done 2>/dev/null || [ "$tool" = ip6tables ]
}

mapfile -t held < <(ports)
let_go() {
    local port
    for port in "${held[@]}"; do rule -D "$port" || true; done
}
trap let_go EXIT
for port in "${held[@]}"; do
    rule -I "$port" || {
        echo "upgrade-gateway.sh: iptables needs root" >&2
        exit 1
    }
done

docker/compose up -d --no-deps gateway >/dev/null 2>&1
deadline=$((SECONDS + 60))
until answers; do
    ((SECONDS < deadline)) || {
        echo "upgrade-gateway.sh: the new gateway does not answer: docker logs $(gateway)" >&2
        exit 1
    }
    sleep 0.1
done
echo "the gateway is replaced"
