package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
)

// openBackend opens the configured store. Its error names the variable at fault. It does
// not find out whether an object store can be reached.
func openBackend(ctx context.Context, cfg *Config, log *slog.Logger) (Backend, error) {
	switch cfg.StorageBackend {
	case "s3":
		return openS3(ctx, cfg.S3, cfg.UploadMemory, log)
	case "azure":
		return openAzure(cfg.Azure, cfg.UploadMemory, log)
	case "gcs":
		return openGCS(ctx, cfg.GCS, cfg.UploadMemory, log)
	case "nfs":
		if err := checkMount(cfg.NFSBasePath, cfg.NFSRequireMount, log); err != nil {
			return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		}
		n, err := openNFS(cfg.NFSBasePath, log)
		switch {
		case errors.Is(err, syscall.ENOTDIR):
			return nil, badConfig("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		case err != nil: // a missing directory too: it may be on a mount that is not there yet
			return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		}
		return n, nil
	}
	return nil, badConfig("PAGEWRIGHT_STORAGE_BACKEND=%s: this binary was built without this backend", cfg.StorageBackend)
}

// startJobs starts what the store does in the background until ctx ends.
func startJobs(ctx context.Context, store Backend, cfg *Config) {
	if n, ok := store.(*nfs); ok {
		go n.sweepTemps(ctx, cfg.TempMaxAge)
	}
}
