//go:build no_gcs

package main

import (
	"context"
	"errors"
	"log/slog"
)

func openGCS(context.Context, gcsConfig, byteSize, *slog.Logger) (Backend, error) {
	return nil, errors.New("PAGEWRIGHT_STORAGE_BACKEND=gcs: this binary was built without this backend")
}
