#!/usr/bin/env bash
# Creates a private key and a self-signed certificate for localhost:
#   docker/self-signed-certificate.sh CERTIFICATE KEY DAYS [OPENSSL-KEY-OPTION...]
# Without key options the key is on the curve P-256.
set -euo pipefail

certificate=$1 key=$2 days=$3
algorithm=("${@:4}")
[ ${#algorithm[@]} -gt 0 ] || algorithm=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1)

mkdir -p "$(dirname "$certificate")" "$(dirname "$key")"
umask 077
openssl req -x509 "${algorithm[@]}" -nodes -days "$days" -subj /CN=localhost \
    -addext "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1" -addext basicConstraints=critical,CA:FALSE \
    -keyout "$key" -out "$certificate" 2>/dev/null || {
    echo "self-signed-certificate.sh: openssl cannot create the certificate $certificate" >&2
    exit 1
}
chmod 644 "$certificate"
