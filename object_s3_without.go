//go:build no_s3

package main

import (
	"context"
	"log/slog"
)

func openS3(context.Context, s3Config, byteSize, *slog.Logger) (Backend, error) {
	return nil, badConfig("PAGEWRIGHT_STORAGE_BACKEND=s3: this binary was built without this backend")
}
