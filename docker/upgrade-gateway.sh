#!/usr/bin/env bash
# Replaces the gateway with the image named in .prod.env. No connection is refused.
#
# Two containers cannot publish the same port, so for a short time there is no listener. During that
# time the kernel drops the SYN packets of new connections, and clients retransmit them a second
# later; the old gateway drains existing connections before it exits. Needs root, for iptables.
set -euo pipefail
cd "$(dirname "$0")/.."

container() { docker/compose ps -q gateway; }
published_ports() { docker port "$(container)" | sed 's/.*://' | sort -u; }

drop_rule() { # -I|-D PORT
    local tool
    for tool in iptables ip6tables; do
        command -v "$tool" >/dev/null || continue
        "$tool" -w -t raw "$1" PREROUTING -p tcp --syn --dport "$2" -j DROP
        "$tool" -w -t raw "$1" OUTPUT -p tcp --syn --dport "$2" -m addrtype --dst-type LOCAL -j DROP
    done 2>/dev/null || [ "$tool" = ip6tables ]
}

mapfile -t ports < <(published_ports)
delete_rules() {
    local port
    for port in "${ports[@]}"; do drop_rule -D "$port" || true; done
}
trap delete_rules EXIT
for port in "${ports[@]}"; do
    drop_rule -I "$port" || {
        echo "upgrade-gateway.sh: cannot add iptables rules: run it as root" >&2
        exit 1
    }
done

docker/compose up -d --no-deps gateway >/dev/null 2>&1
docker/wait-until-healthy.sh "$(container)" gateway
echo "replaced the gateway"
