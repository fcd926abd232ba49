//go:build no_azure

package main

import (
	"errors"
	"log/slog"
)

func openAzure(azureConfig, byteSize, *slog.Logger) (Backend, error) {
	return nil, errors.New("PAGEWRIGHT_STORAGE_BACKEND=azure: this binary was built without this backend")
}
