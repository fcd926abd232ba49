//go:build no_gcs

package main

import (
	"context"
	"log/slog"
)

func openGCS(context.Context, gcsConfig, byteSize, *slog.Logger) (Backend, error) {
	return nil, badConfig("PAGEWRIGHT_STORAGE_BACKEND=gcs: this binary was built without this backend")
}
