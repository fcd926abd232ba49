package main

import (
	"context"
	"log/slog"
	"os"
)

// reloadedFiles is what the service made of the files that it reloads when they change.
type reloadedFiles struct {
	access    *accessControl  // nil: everybody may do everything
	tls       *tlsFiles       // nil: no TLS
	retention *retentionRules // nil: no retention file
	watches   []*fileWatch
}

// openFiles reads the files that the service reloads when they change.
func openFiles(cfg *Config, log *slog.Logger) (f reloadedFiles, err error) {
	if f.tls, err = openTLS(&cfg.TLS, log); err != nil {
		return f, err
	}
	if f.tls != nil {
		f.watches = append(f.watches, f.tls.watch)
	}
	if cfg.RetentionFile != "" {
		if f.retention, err = openRetention(cfg.RetentionFile, log); err != nil {
			return f, fileError(err)
		}
		f.watches = append(f.watches, f.retention.watch)
	}
	if cfg.AccessFile == "" {
		return f, nil
	}
	if f.access, err = openAccess(cfg.AccessFile, cfg.TLS.ClientCA == "", log); err != nil {
		return f, fileError(err)
	}
	f.watches = append(f.watches, f.access.watch)
	return f, nil
}

// warn logs what access control does not protect.
func (f *reloadedFiles) warn(cfg *Config, log *slog.Logger) {
	switch {
	case f.access == nil && cfg.TLS.requires():
		log.Warn("access control is off: anyone with a client certificate may read, replace and delete builds; set PAGEWRIGHT_ACCESS_FILE")
	case f.access == nil:
		log.Warn("access control is off: anyone who can reach this service may read, replace and delete builds; set PAGEWRIGHT_ACCESS_FILE")
	case f.tls == nil && len(cfg.TrustedProxies) == 0 && !cfg.onLoopback():
		log.Warn("credentials are sent in clear: serve TLS, or put a proxy in front that does and set PAGEWRIGHT_TRUSTED_PROXIES")
	}
	if f.access != nil && isShared(cfg.BuildCacheControl) {
		log.Warn("shared caches may serve builds to anybody, with or without credentials: use private in PAGEWRIGHT_BUILD_CACHE_CONTROL unless anyone may read all builds", "value", cfg.BuildCacheControl)
	}
}

// checkFiles returns what is wrong with the files that openFiles reads.
func checkFiles(cfg *Config) error {
	if _, err := openTLS(&cfg.TLS, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	if cfg.RetentionFile != "" {
		if _, err := readRetention(cfg.RetentionFile); err != nil {
			return fileError(err)
		}
	}
	if cfg.AccessFile == "" {
		return nil
	}
	if _, err := readAccess(cfg.AccessFile); err != nil {
		return fileError(err)
	}
	return nil
}

// reload checks at intervals, and at each SIGHUP, whether files have changed, and reloads
// those that have. It ends with ctx.
func reload(ctx context.Context, hangUp <-chan os.Signal, watches []*fileWatch, log *slog.Logger) {
	if len(watches) > 0 {
		watchFiles(ctx, hangUp, watches)
		return
	}
	for {
		select {
		case <-hangUp:
			log.Info("SIGHUP ignored: there are no files to reload")
		case <-ctx.Done():
			return
		}
	}
}
