package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// s3Config is the configuration of the S3 backend.
type s3Config struct {
	Bucket      string   `env:"BUCKET" help:"s3: the bucket; required"`
	Endpoint    string   `env:"ENDPOINT" help:"s3: URL of a store other than AWS"`
	Region      string   `env:"REGION" help:"s3: region; empty: that of the AWS configuration, or us-east-1 with an endpoint"`
	PathStyle   bool     `env:"PATH_STYLE" envDefault:"false" help:"s3: bucket in the path and not in the host name, as MinIO wants it"`
	Prefix      string   `env:"PREFIX" help:"s3: put before every key"`
	PartSize    byteSize `env:"PART_SIZE" envDefault:"8MiB" help:"s3: bytes of a part of a large artifact, at least 5MiB; larger parts are used where 10,000 would not do"`
	Concurrency int      `env:"CONCURRENCY" envDefault:"4" help:"s3: parts of one upload sent at once"`
}

const (
	s3MinPart = 5 << 20 // bytes of every part but the last
	s3MaxPart = 1 << 30 // bytes of a part that it is sensible to hold in memory
)

// check names the variable that is missing or wrong.
func (conf s3Config) check() error {
	_, id := os.LookupEnv("AWS_ACCESS_KEY_ID")
	_, secret := os.LookupEnv("AWS_SECRET_ACCESS_KEY")
	switch {
	case conf.Bucket == "":
		return errors.New("PAGEWRIGHT_S3_BUCKET: must name the bucket")
	case conf.Endpoint != "" && !strings.HasPrefix(conf.Endpoint, "http://") && !strings.HasPrefix(conf.Endpoint, "https://"):
		return fmt.Errorf("PAGEWRIGHT_S3_ENDPOINT=%q: must be a URL with http:// or https://", conf.Endpoint)
	case conf.PartSize < s3MinPart || conf.PartSize > s3MaxPart:
		return fmt.Errorf("PAGEWRIGHT_S3_PART_SIZE=%d: must be from 5MiB to 1GiB", conf.PartSize)
	case conf.Concurrency < 1 || conf.Concurrency > 64:
		return fmt.Errorf("PAGEWRIGHT_S3_CONCURRENCY=%d: must be from 1 to 64", conf.Concurrency)
	case id && !secret:
		return errors.New("AWS_SECRET_ACCESS_KEY: must be set, since AWS_ACCESS_KEY_ID is")
	case secret && !id:
		return errors.New("AWS_ACCESS_KEY_ID: must be set, since AWS_SECRET_ACCESS_KEY is")
	}
	return nil
}

// openBackend opens the store that is configured. It fails with a line that
// names the variable at fault; that a store in the net cannot be reached is not
// found out here.
func openBackend(ctx context.Context, cfg *Config, log *slog.Logger) (Backend, error) {
	switch cfg.StorageBackend {
	case "s3":
		return openS3(ctx, cfg.S3, log)
	case "nfs":
		if err := checkMount(cfg.NFSBasePath, cfg.NFSRequireMount, log); err != nil {
			return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		}
		n, err := openNFS(cfg.NFSBasePath, log)
		if err != nil {
			return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		}
		go n.sweepTemps(ctx, cfg.TempMaxAge)
		return n, nil
	}
	return nil, fmt.Errorf("PAGEWRIGHT_STORAGE_BACKEND=%s: not built in", cfg.StorageBackend)
}

// keyPrefix is a configured prefix as it stands before keys.
func keyPrefix(configured string) string {
	if p := strings.Trim(configured, "/"); p != "" {
		return p + "/"
	}
	return ""
}
