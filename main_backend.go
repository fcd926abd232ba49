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
	store, err := openStore(ctx, cfg, log)
	if d, ok := store.(interface{ useDigests() }); ok && err == nil && cfg.Digest != digestOff {
		d.useDigests()
	}
	return store, err
}

func openStore(ctx context.Context, cfg *Config, log *slog.Logger) (Backend, error) {
	var store Backend
	var err error
	switch cfg.StorageBackend {
	case "s3":
		store, err = openS3(ctx, cfg.S3, cfg.UploadMemory, log)
	case "azure":
		conf := cfg.Azure
		conf.Create = conf.Create && !cfg.ReadOnly
		store, err = openAzure(conf, cfg.UploadMemory, log)
	case "gcs":
		store, err = openGCS(ctx, cfg.GCS, cfg.UploadMemory, log)
	case "nfs":
		return openNFSPath(cfg, log)
	default:
		err = badConfig("PAGEWRIGHT_STORAGE_BACKEND=%s: this binary was built without this backend", cfg.StorageBackend)
	}
	if s, ok := store.(*objectStore); ok && err == nil {
		s.readOnly = cfg.ReadOnly
	}
	return store, err
}

func openNFSPath(cfg *Config, log *slog.Logger) (Backend, error) {
	err := checkMount(cfg.NFSBasePath, cfg.NFSRequireMount, log)
	if err == nil {
		var n *nfs
		if n, err = openNFS(cfg.NFSBasePath, log); err == nil {
			n.readOnly = cfg.ReadOnly
			return n, nil
		}
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, badConfig("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
	}
	// A missing directory too: it may be on a mount that is not there yet.
	return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
}

// startPrune starts the removal of builds that the rules do not keep, if it is configured. stop
// waits for its end when ctx has ended.
func (s *service) startPrune(ctx context.Context, rules *retentionRules) (stop func(), err error) {
	if rules != nil {
		s.server.metrics.reloads("retention", rules.watch)
	}
	if s.server.cfg.PruneInterval == 0 || s.server.cfg.ReadOnly {
		return func() {}, nil
	}
	store, ok := s.backend.(schedulable)
	if !ok {
		return nil, badConfig("PAGEWRIGHT_PRUNE_INTERVAL: this backend cannot prune")
	}
	m := newPruneMetrics(s.server.metrics.set, s.server.cfg.PruneInterval, pruneResults, skipReasons)
	return newPruneJob(store, rules.current.Load, s.server.cfg.PruneInterval, m, s.server.log).start(ctx), nil
}

// startJobs starts what the store does in the background until ctx ends.
func startJobs(ctx context.Context, store Backend, cfg *Config) {
	if n, ok := store.(*nfs); ok && !cfg.ReadOnly {
		go n.sweepTemps(ctx, cfg.TempMaxAge)
	}
}
