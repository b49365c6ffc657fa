#!/usr/bin/env bash
# Makes local images of the names that docker/Dockerfile and compose.prod.yml build upon, from Debian
# packages. For machines that reach no registry, and for nothing else: where `docker pull` works,
# use the real ones.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly SUITE=bookworm
readonly RUST=rust:1.95-bookworm DISTROLESS=gcr.io/distroless/cc-debian12:nonroot
readonly POSTGRES=postgres:15-bookworm REDIS=redis:7-bookworm

[ "$(id -u)" = 0 ] || {
    echo "local-base-images.sh: debootstrap needs root" >&2
    exit 1
}
scripts/packages debootstrap=debootstrap

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

missing() { ! docker image inspect "$1" >/dev/null 2>&1; }
system() { # FOLDER PACKAGE...: a small Debian with these
    local packages
    packages=$(IFS=, && echo "${*:2}")
    debootstrap --variant=minbase --include="$packages" "$SUITE" "$1" >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        exit 1
    }
    rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
    # Whoever trusts further authorities on this machine needs them there too.
    mkdir -p "$1/etc/ssl/certs"
    cp --dereference "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$1/etc/ssl/certs/ca-certificates.crt"
}
import() { # FOLDER IMAGE CHANGE...
    local changes=() change
    for change in "${@:3}"; do changes+=(--change "$change"); done
    tar -C "$1" -c . | docker import "${changes[@]}" - "$2" >/dev/null
    rm -rf "$1"
    echo "made $2"
}

rust() {
    system "$work/rust" ca-certificates gcc g++ libc6-dev make cmake
    mkdir -p "$work/rust/usr/local/rust"
    cp -a "$(rustc --print sysroot)/." "$work/rust/usr/local/rust/"
    rm -rf "$work/rust/usr/local/rust/share/doc"
    import "$work/rust" "$RUST" "ENV PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        "ENV CARGO_HOME=/usr/local/cargo"
}

# A C library, the roots of TLS and a user; no shell.
distroless() {
    local root=$work/distroless package
    mkdir -p "$work/packages" "$root/etc/ssl/certs" "$root/tmp" "$root/home/nonroot"
    (cd "$work/packages" && apt-get download libc6 libgcc-s1 >/dev/null 2>&1)
    for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$root"; done
    rm -rf "${root:?}"/usr/share "$root"/usr/lib/*/gconv "$root"/usr/lib/*/audit
    chmod 1777 "$root/tmp"
    chown -R 65532:65532 "$root/home/nonroot"
    echo 'root:x:0:0:root:/root:/sbin/nologin
nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
    echo 'root:x:0:
nonroot:x:65532:' >"$root/etc/group"
    cp --dereference "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"
    import "$root" "$DISTROLESS" "USER 65532" "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
}

# What the real image's entrypoint does of the variables that compose.prod.yml sets.
postgres() {
    local root=$work/postgres
    system "$root" postgresql-15 util-linux
    cat >"$root/usr/local/bin/entrypoint" <<'ENTRYPOINT'
#!/bin/sh
set -eu
export PATH="/usr/lib/postgresql/15/bin:$PATH" PGDATA="${PGDATA:-/var/lib/postgresql/data}"
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
mkdir -p "$PGDATA" /var/run/postgresql
chown postgres:postgres "$PGDATA" /var/run/postgresql
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    (umask 077 && tr -d '\n' <"$POSTGRES_PASSWORD_FILE" >/tmp/password && chown postgres /tmp/password)
    as initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
    rm /tmp/password
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    sed -i 's/^local .*/local all all trust/' "$PGDATA/pg_hba.conf"
    as postgres --single -jE postgres <<SQL
CREATE DATABASE "$POSTGRES_DB";
SQL
fi
[ "$1" = postgres ] || exec "$@"
shift
exec setpriv --reuid postgres --regid postgres --clear-groups postgres -c listen_addresses='*' "$@"
ENTRYPOINT
    chmod 755 "$root/usr/local/bin/entrypoint"
    import "$root" "$POSTGRES" 'ENTRYPOINT ["/usr/local/bin/entrypoint"]' 'CMD ["postgres"]' \
        'ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

redis() {
    local root=$work/redis
    system "$root" redis-server redis-tools util-linux
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

! missing "$RUST" || rust
! missing "$DISTROLESS" || distroless
! missing "$POSTGRES" || postgres
! missing "$REDIS" || redis
