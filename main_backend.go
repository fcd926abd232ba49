package main

import (
	"context"
	"fmt"
	"log/slog"
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
		if err != nil {
			return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		}
		return n, nil
	}
	return nil, fmt.Errorf("PAGEWRIGHT_STORAGE_BACKEND=%s: this binary was built without this backend", cfg.StorageBackend)
}

// startJobs starts what the store does in the background until ctx ends.
func startJobs(ctx context.Context, store Backend, cfg *Config) {
	if n, ok := store.(*nfs); ok {
		go n.sweepTemps(ctx, cfg.TempMaxAge)
	}
}
