//go:build no_s3

package main

import (
	"context"
	"errors"
	"log/slog"
)

func openS3(context.Context, s3Config, byteSize, *slog.Logger) (Backend, error) {
	return nil, errors.New("PAGEWRIGHT_STORAGE_BACKEND=s3: this binary was built without this backend")
}
