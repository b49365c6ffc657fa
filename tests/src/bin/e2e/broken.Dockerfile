# Images that an upgrade must survive.

# Its start fails: there is no such program.
FROM auth-api:e2e-1 AS auth-api-absent
ENTRYPOINT ["/usr/local/bin/absent"]

# It starts and exits, again and again.
FROM auth-api:e2e-1 AS auth-api-exits
ENTRYPOINT ["/usr/local/bin/auth-api", "--absent"]

# It accepts the configuration, starts and exits.
FROM redis:7-bookworm AS gateway-exits
USER 65532:65532
WORKDIR /app
ENV SSL_CERTFILE=/app/.ssl/cert.pem SSL_KEYFILE=/app/.ssl/key.pem
COPY --from=gateway:e2e-1 /usr/local/bin/gateway /usr/local/bin/gateway
ENTRYPOINT ["sh", "-c", "[ \"$1\" = check ] && exec gateway check; echo the broken image exits >&2; exit 1", "sh"]

# It accepts the configuration and serves as the temporary gateway, but exits in the place of the old one, where the
# name `gateway` is its own.
FROM gateway-exits AS gateway-exits-in-service
ENTRYPOINT ["sh", "-c", "[ \"$1\" != check ] || exec gateway check; own=$(getent hosts gateway | awk '{ print $1 }'); grep -qwF \"$own\" /etc/hosts || exec gateway; echo the broken image exits in service >&2; exit 1", "sh"]
