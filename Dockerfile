# The image of the storage service: the binary, the CA certificates, and the
# empty directory on which the store is mounted. No shell, no package manager,
# no root. Needs BuildKit (DOCKER_BUILDKIT=1 before Docker 23).

ARG GO_VERSION=1.26.8
# The digest of that image: else who controls the tag decides what builds the
# binary. Docker goes by the digest alone, so change both together; this shows it:
#	docker buildx imagetools inspect golang:1.26.8-bookworm
# `--build-arg GO_DIGEST=` takes the tag as it is now.
ARG GO_DIGEST=@sha256:a688600ca24f8a4d3ca77f95b0dd40704a9fc787c826660eb7ba0b641b8b175d

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm${GO_DIGEST} AS build
WORKDIR /src
ARG GO_VERSION
ARG GO_DIGEST
RUN [ -z "$GO_DIGEST" ] || [ "$(go env GOVERSION)" = "go$GO_VERSION" ] \
    || { echo "GO_DIGEST is not of Go $GO_VERSION but of $(go env GOVERSION)"; exit 1; }

# A module proxy other than Go's own: --build-arg GOPROXY=...
ARG GOPROXY
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod \
    go mod download

COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
# Tags of Go: no_s3, no_azure and no_gcs leave an object store out. The Makefile
# sets them from BACKENDS.
ARG TAGS=disable_grpc_modules
# Built twice by the same builder, the layers are the same: no paths, no build ids, and no times but this one.
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
# Where the sources are, and their commit. The Makefile sets both from git.
ARG SOURCE=
ARG REVISION=
LABEL org.opencontainers.image.title="pagewright-storage" \
      org.opencontainers.image.description="Stores and serves versioned builds of web sites" \
      org.opencontainers.image.vendor="PageWright contributors" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/ /
# Owned by the user below, so that a new named volume mounted here is too.
COPY --from=build --chown=65532:65532 /store/ /
USER 65532:65532
EXPOSE 8080
# A store that is not mounted is an error, never a directory inside the
# container, which is removed with it.
ENV PAGEWRIGHT_NFS_BASE_PATH=/nfs \
    PAGEWRIGHT_NFS_REQUIRE_MOUNT=true
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/pagewright-storage", "healthcheck"]
ENTRYPOINT ["/pagewright-storage"]
