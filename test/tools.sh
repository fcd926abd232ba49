#!/bin/sh
# Builds the real servers that the integration tests run against, once, into a
# cache outside of this tree. Their dependencies never enter the product's go.mod.
set -eu

TOOLS=${STORAGE_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/pagewright-storage-tools}
mkdir -p "$TOOLS"

# go_tool NAME PACKAGE VERSION
go_tool() {
	[ -x "$TOOLS/$1-$3" ] || {
		echo "building $1 $3" >&2
		(cd "$TOOLS" && GOBIN="$TOOLS/new" GOFLAGS=-mod=mod CGO_ENABLED=0 \
			go install -trimpath -ldflags "-s -w" "$2@$3")
		mv "$TOOLS/new/$1" "$TOOLS/$1-$3"
	}
	ln -sf "$1-$3" "$TOOLS/$1"
}

go_tool versitygw github.com/versity/versitygw/cmd/versitygw v1.8.0
go_tool minio github.com/minio/minio v0.0.0-20260212201848-7aac2a2c5b7c
go_tool fake-gcs-server github.com/fsouza/fake-gcs-server v1.56.1

# Azurite runs on Node. 3.35.0 is the last that does with Node 20.
AZURITE=3.35.0
[ -e "$TOOLS/azurite-$AZURITE/done" ] || {
	echo "installing azurite $AZURITE" >&2
	mkdir -p "$TOOLS/azurite-$AZURITE"
	(cd "$TOOLS/azurite-$AZURITE" && npm install --no-audit --no-fund --omit=optional "azurite@$AZURITE" && touch done) >&2
}
ln -sfn "azurite-$AZURITE" "$TOOLS/azurite"
