# The image of the storage service: the binary, the CA certificates, and the
# empty directory on which the store is mounted. No shell, no package manager,
# nobody who is root. Needs BuildKit (DOCKER_BUILDKIT=1 before Docker 23).

ARG GO_VERSION=1.26.8

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
WORKDIR /src

# A module proxy other than Go's own: --build-arg GOPROXY=...
ARG GOPROXY
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod \
    go mod download

COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
# Tags of Go: no_s3, no_azure and no_gcs leave an object store out. What the
# Makefile makes of BACKENDS.
ARG TAGS=disable_grpc_modules
# Same sources, same layers: no paths, no build ids, and no times but this one.
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -tags "$TAGS" \
        -ldflags "-s -w -buildid= -X main.version=$VERSION" \
        -o /out/pagewright-storage . \
    && mkdir -p /out/etc/ssl/certs /store/nfs \
    && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
    && find /out /store -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="pagewright-storage" \
      org.opencontainers.image.description="Stores and serves versioned builds of web sites" \
      org.opencontainers.image.vendor="PageWright contributors" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /out/ /
# Owned by the user below, so that a new named volume mounted here is his too.
COPY --from=build --chown=65532:65532 /store/ /
USER 65532:65532
EXPOSE 8080
# A store that is not mounted is an error, never a directory inside the
# container, which goes with it.
ENV PAGEWRIGHT_NFS_BASE_PATH=/nfs \
    PAGEWRIGHT_NFS_REQUIRE_MOUNT=true
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/pagewright-storage", "healthcheck"]
ENTRYPOINT ["/pagewright-storage"]
