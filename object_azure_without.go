//go:build no_azure

package main

import (
	"log/slog"
)

func openAzure(azureConfig, byteSize, *slog.Logger) (Backend, error) {
	return nil, badConfig("PAGEWRIGHT_STORAGE_BACKEND=azure: this binary was built without this backend")
}
