#!/usr/bin/env bash
# Builds local substitutes for the base images of docker/Dockerfile and compose.prod.yml from Debian
# packages. Only for machines that cannot reach a registry: where `docker pull` works, use the real images.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly SUITE=bookworm
readonly RUST=rust:1.95-bookworm DISTROLESS=gcr.io/distroless/cc-debian12:nonroot
readonly POSTGRES=postgres:15-bookworm REDIS=redis:7-bookworm HAPROXY=haproxy:2.6-bookworm

[ "$(id -u)" = 0 ] || {
    echo "local-base-images.sh: debootstrap needs root" >&2
    exit 1
}
scripts/packages debootstrap=debootstrap

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

missing() { ! docker image inspect "$1" >/dev/null 2>&1; }

# Copies the trusted certificate authorities of this machine, which may have more than Debian's.
copy_certificate_authorities() { # ROOT
    mkdir -p "$1/etc/ssl/certs"
    cp --dereference "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$1/etc/ssl/certs/ca-certificates.crt"
}

# Installs a minimal Debian with the given packages.
install_debian() { # ROOT PACKAGE...
    local packages
    packages=$(IFS=, && echo "${*:2}")
    debootstrap --variant=minbase --include="$packages" "$SUITE" "$1" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        exit 1
    }
    rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
    copy_certificate_authorities "$1"
}

import() { # ROOT IMAGE DOCKERFILE-INSTRUCTION...
    local changes=() change
    for change in "${@:3}"; do changes+=(--change "$change"); done
    tar -C "$1" -c . | docker import "${changes[@]}" - "$2" >/dev/null
    rm -rf "$1"
    echo "built $2"
}

rust() {
    install_debian "$work/rust" ca-certificates gcc g++ libc6-dev make cmake
    mkdir -p "$work/rust/usr/local/rust"
    cp -a "$(rustc --print sysroot)/." "$work/rust/usr/local/rust/"
    rm -rf "$work/rust/usr/local/rust/share/doc"
    import "$work/rust" "$RUST" "ENV PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        "ENV CARGO_HOME=/usr/local/cargo"
}

# C library, certificate authorities and an unprivileged user; no shell.
distroless() {
    local root=$work/distroless package
    mkdir -p "$work/packages" "$root/etc" "$root/tmp" "$root/home/nonroot"
    (cd "$work/packages" && apt-get download libc6 libgcc-s1 >/dev/null 2>&1)
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$root"; done
    rm -rf "${root:?}"/usr/share "$root"/usr/lib/*/gconv "$root"/usr/lib/*/audit
    chmod 1777 "$root/tmp"
    chown -R 65532:65532 "$root/home/nonroot"
    echo 'root:x:0:0:root:/root:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
    echo 'root:x:0:
nonroot:x:65532:' >"$root/etc/group"
    copy_certificate_authorities "$root"
    import "$root" "$DISTROLESS" "USER 65532" "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
}

# The entrypoint implements those variables of the real image that compose.prod.yml sets.
postgres() {
    local root=$work/postgres
    install_debian "$root" postgresql-15 util-linux
    cat >"$root/usr/local/bin/entrypoint" <<'ENTRYPOINT'
#!/bin/sh
set -eu
export PATH="/usr/lib/postgresql/15/bin:$PATH" PGDATA="${PGDATA:-/var/lib/postgresql/data}"
as_postgres="setpriv --reuid postgres --regid postgres --clear-groups"
mkdir -p "$PGDATA" /var/run/postgresql
chown postgres:postgres "$PGDATA" /var/run/postgresql
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    (umask 077 && tr -d '\n' <"$POSTGRES_PASSWORD_FILE" >/tmp/password && chown postgres /tmp/password)
    $as_postgres initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
    rm /tmp/password
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    sed -i -E 's/^(local .*) [a-z0-9-]+$/\1 trust/' "$PGDATA/pg_hba.conf"
    $as_postgres postgres --single -jE postgres <<SQL
CREATE DATABASE "$POSTGRES_DB";
SQL
    $as_postgres pg_ctl --wait --options="-c listen_addresses=''" start
    for script in /docker-entrypoint-initdb.d/*.sh; do
        [ ! -e "$script" ] || $as_postgres sh "$script"
    done
    $as_postgres pg_ctl --wait stop
fi
[ "$1" = postgres ] || exec "$@"
shift
exec $as_postgres postgres -c listen_addresses='*' "$@"
ENTRYPOINT
    chmod 755 "$root/usr/local/bin/entrypoint"
    import "$root" "$POSTGRES" 'ENTRYPOINT ["/usr/local/bin/entrypoint"]' 'CMD ["postgres"]' \
        'ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

redis() {
    local root=$work/redis
    install_debian "$root" redis-server redis-tools util-linux
    cat >"$root/usr/local/bin/entrypoint" <<'ENTRYPOINT'
#!/bin/sh
set -eu
[ "$(id -u)" = 0 ] || exec "$@"
exec setpriv --reuid redis --regid redis --clear-groups "$@"
ENTRYPOINT
    chmod 755 "$root/usr/local/bin/entrypoint"
    mkdir -p "$root/data"
    chroot "$root" chown redis:redis /data
    import "$root" "$REDIS" 'ENTRYPOINT ["/usr/local/bin/entrypoint"]' "WORKDIR /data" 'CMD ["redis-server", "--protected-mode", "no"]'
}

haproxy() {
    install_debian "$work/haproxy" haproxy
    import "$work/haproxy" "$HAPROXY" 'CMD ["haproxy"]' "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"
}

! missing "$RUST" || rust
! missing "$DISTROLESS" || distroless
! missing "$POSTGRES" || postgres
! missing "$REDIS" || redis
! missing "$HAPROXY" || haproxy
