# A host on which systemd runs the programs.
FROM redis:7-bookworm AS host
RUN apt-get update \
    && apt-get install --yes --no-install-recommends systemd systemd-sysv libc6 libgcc-s1 openssl \
    && rm -rf /var/lib/apt/lists/* \
    && { systemctl disable redis-server || true; }
COPY --from=gateway:e2e-1 /usr/local/bin/gateway /usr/local/bin/gateway
COPY --from=auth-api:e2e-1 /usr/local/bin/auth-api /usr/local/bin/auth-api
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/lib/systemd/systemd"]
CMD []
