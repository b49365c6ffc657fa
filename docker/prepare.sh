#!/usr/bin/env bash
# Makes what compose.prod.yml reads and is not there yet: .prod.env, config/gateway.yml, secrets/ and,
# until there is a real one, a self-signed certificate in ssl/. Changes nothing that exists.
set -euo pipefail
cd "$(dirname "$0")/.."

# The user of the images.
readonly USER_ID=65532

made() { echo "made $*"; }

[ -e ssl/cert.pem ] || command -v openssl >/dev/null || {
    echo "prepare.sh: openssl is missing, which makes the first certificate: install it, or put yours into ssl/" >&2
    exit 1
}

[ -e .prod.env ] || { cp .prod.env.example .prod.env && made .prod.env; }
mkdir -p config
[ -e config/gateway.yml ] || { cp gateway.yml config/gateway.yml && made config/gateway.yml; }

# Containers read a secret as users of their own, so its file is open and its folder is not.
[ -d secrets ] || mkdir -m 700 secrets
for secret in secret_key db_password redis_password grafana_password; do
    [ -s "secrets/$secret" ] || {
        head -c 36 /dev/urandom | base64 -w0 | tr '+/' '-_' >"secrets/$secret"
        chmod 644 "secrets/$secret"
        made "secrets/$secret"
    }
done

mkdir -p ssl
if [ ! -e ssl/cert.pem ]; then
    (
        umask 077
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj /CN=localhost \
            -addext "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1" -addext basicConstraints=critical,CA:FALSE \
            -keyout ssl/key.pem -out ssl/cert.pem 2>/dev/null
    )
    chmod 644 ssl/cert.pem
    made "a self-signed certificate in ssl/: put a real one there before clients come"
fi
# The gateway's user reads the key, and nobody else.
if [ "$(id -u)" = 0 ]; then
    chown "$USER_ID" ssl/key.pem
    chmod 400 ssl/key.pem
elif [ "$(stat -c %u ssl/key.pem)" != "$USER_ID" ]; then
    echo "let the gateway's user read its key: sudo chown $USER_ID ssl/key.pem && sudo chmod 400 ssl/key.pem" >&2
fi
