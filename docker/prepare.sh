#!/usr/bin/env bash
# Creates the files that compose.prod.yml reads, unless they exist: .prod.env, config/gateway.yml, secrets/,
# acme/ for ACME challenges, and a self-signed certificate in ssl/, to be replaced with a real one.
set -euo pipefail
cd "$(dirname "$0")/.."

# User of the images.
readonly USER_ID=65532
# The containers' user reads what is created here; what it must not read gets a mode of its own.
umask 022

created() { echo "created $*"; }

[ -e ssl/cert.pem ] || command -v openssl >/dev/null || {
    echo "prepare.sh: openssl is missing: install it, or put your certificate and key into ssl/" >&2
    exit 1
}

[ -e .prod.env ] || { cp .prod.env.example .prod.env && created .prod.env; }
mkdir -p config acme
[ -e config/gateway.yml ] || { cp gateway.yml config/gateway.yml && created config/gateway.yml; }

# Containers read secrets as different users: the files are world-readable, their folder is not, whoever has created it.
mkdir -p secrets
chmod 700 secrets
create_secret() { # NAME, its content on standard input
    [ -s "secrets/$1" ] || {
        cat >"secrets/$1"
        chmod 644 "secrets/$1"
        created "secrets/$1"
    }
}
# Letters, digits, - and _, which need no escapes in URLs.
password() { head -c 36 /dev/urandom | base64 -w0 | tr '+/' '-_'; }
for secret in secret_key db_password db_superuser_password redis_password grafana_password \
    postgres_exporter_password redis_exporter_password; do
    create_secret "$secret" < <(password)
done
create_secret gateway_redis_url < <(echo "redis://gateway:$(password)@redis:6379/0")

# Receivers of alerts, whose URLs are secret.
[ -e secrets/alertmanager.yml ] || {
    cp docker/monitoring/alertmanager.yml secrets/alertmanager.yml
    chmod 644 secrets/alertmanager.yml
    created "secrets/alertmanager.yml: name the receivers of alerts in it"
}

# Keys that only verify, while a key is rotated, and the private key, which is optional: a line break is no key. A
# Swarm refuses an empty secret.
for secret in secret_key_previous secret_key_next signing_key signing_key_previous signing_key_next; do
    [ -e "secrets/$secret" ] || {
        echo >"secrets/$secret"
        chmod 644 "secrets/$secret"
    }
done

[ -e ssl/cert.pem ] || {
    docker/self-signed-certificate.sh ssl/cert.pem ssl/key.pem 90
    created "a self-signed certificate in ssl/: replace it before clients connect"
}
# Whatever was the umask of an operator who has created these, which have no secret: config/gateway.yml names those it needs
# as ${NAME}, from files in secrets/.
for path in config config/gateway.yml ssl ssl/cert.pem docker docker/balancer docker/balancer/* docker/postgres docker/postgres/*; do
    if [ "$(stat -c %u "$path")" != "$USER_ID" ] && [ -w "$path" ]; then
        chmod o+rX "$path"
    fi
done
# Only the gateway's user may read the key.
if [ "$(id -u)" = 0 ]; then
    chown "$USER_ID" ssl/key.pem
    chmod 400 ssl/key.pem
elif [ "$(stat -c %u ssl/key.pem)" != "$USER_ID" ]; then
    echo "allow the gateway's user to read its key: sudo chown $USER_ID ssl/key.pem && sudo chmod 400 ssl/key.pem" >&2
fi
