package main

import (
	"net/url"
	"os"
	"strings"
)

// s3Config is the configuration of the S3 backend.
type s3Config struct {
	Bucket      string   `env:"BUCKET" help:"s3: the bucket; required"`
	Endpoint    string   `env:"ENDPOINT" redact:"url" help:"s3: URL of an S3-compatible store; empty means AWS"`
	Region      string   `env:"REGION" help:"s3: region; empty means the region of the AWS configuration, or us-east-1 if an endpoint is set"`
	PathStyle   bool     `env:"PATH_STYLE" envDefault:"false" help:"s3: put the bucket in the path instead of the host name; MinIO needs this"`
	Prefix      string   `env:"PREFIX" help:"s3: prefix for all keys"`
	PartSize    byteSize `env:"PART_SIZE" envDefault:"8MiB" help:"s3: part size of a multipart upload, at least 5MiB; grows if 10,000 parts are not enough, up to 1/8 of PAGEWRIGHT_UPLOAD_MEMORY"`
	Concurrency int      `env:"CONCURRENCY" envDefault:"4" help:"s3: parts of one upload that are sent in parallel"`
}

const (
	s3MinPart = 5 << 20 // bytes of every part except the last
	maxPart   = 1 << 30 // bytes of the largest part that is held in memory
)

// check names the variable that is missing or wrong.
func (conf s3Config) check() error {
	_, id := os.LookupEnv("AWS_ACCESS_KEY_ID")
	_, secret := os.LookupEnv("AWS_SECRET_ACCESS_KEY")
	switch {
	case conf.Bucket == "":
		return badConfig("PAGEWRIGHT_S3_BUCKET: must be set")
	case conf.Endpoint != "" && !isURL(conf.Endpoint):
		return badConfig("PAGEWRIGHT_S3_ENDPOINT=%q: must be a URL with http:// or https://", redactURL(conf.Endpoint))
	case conf.PartSize < s3MinPart || conf.PartSize > maxPart:
		return badConfig("PAGEWRIGHT_S3_PART_SIZE=%d: must be from 5MiB to 1GiB", conf.PartSize)
	case conf.Concurrency < 1 || conf.Concurrency > 64:
		return badConfig("PAGEWRIGHT_S3_CONCURRENCY=%d: must be from 1 to 64", conf.Concurrency)
	case id && !secret:
		return badConfig("AWS_SECRET_ACCESS_KEY: must be set, because AWS_ACCESS_KEY_ID is set")
	case secret && !id:
		return badConfig("AWS_ACCESS_KEY_ID: must be set, because AWS_SECRET_ACCESS_KEY is set")
	}
	return nil
}

// azureConfig is the configuration of the Azure backend.
type azureConfig struct {
	Container   string   `env:"CONTAINER" help:"azure: the container; required"`
	AccountURL  string   `env:"ACCOUNT_URL" redact:"url" help:"azure: account URL, https://ACCOUNT.blob.core.windows.net, used with the default Azure credentials; if empty, AZURE_STORAGE_CONNECTION_STRING is used"`
	Prefix      string   `env:"PREFIX" help:"azure: prefix for all keys"`
	Create      bool     `env:"CREATE" envDefault:"false" help:"azure: create the container if it does not exist"`
	PartSize    byteSize `env:"PART_SIZE" envDefault:"8MiB" help:"azure: block size of a large upload; grows if 50,000 blocks are not enough, up to 1/8 of PAGEWRIGHT_UPLOAD_MEMORY"`
	Concurrency int      `env:"CONCURRENCY" envDefault:"4" help:"azure: blocks of one upload that are sent in parallel"`
}

// azureConnection is Azure's own variable for an account and its key.
const azureConnection = "AZURE_STORAGE_CONNECTION_STRING"

// check names the variable that is missing or wrong.
func (conf azureConfig) check() error {
	connection := os.Getenv(azureConnection)
	switch {
	case conf.Container == "":
		return badConfig("PAGEWRIGHT_AZURE_CONTAINER: must be set")
	case conf.AccountURL == "" && connection == "":
		return badConfig("PAGEWRIGHT_AZURE_ACCOUNT_URL or %s must be set", azureConnection)
	case conf.AccountURL != "" && connection != "":
		return badConfig("PAGEWRIGHT_AZURE_ACCOUNT_URL: must not be set together with %s", azureConnection)
	case conf.AccountURL != "" && !isURL(conf.AccountURL):
		return badConfig("PAGEWRIGHT_AZURE_ACCOUNT_URL=%q: must be a URL with http:// or https://", redactURL(conf.AccountURL))
	case conf.PartSize < 1<<20 || conf.PartSize > maxPart:
		return badConfig("PAGEWRIGHT_AZURE_PART_SIZE=%d: must be from 1MiB to 1GiB", conf.PartSize)
	case conf.Concurrency < 1 || conf.Concurrency > 64:
		return badConfig("PAGEWRIGHT_AZURE_CONCURRENCY=%d: must be from 1 to 64", conf.Concurrency)
	}
	if os.Getenv("AZURE_CLIENT_SECRET") != "" {
		for _, name := range []string{"AZURE_CLIENT_ID", "AZURE_TENANT_ID"} {
			if os.Getenv(name) == "" {
				return badConfig("%s: must be set, because AZURE_CLIENT_SECRET is set", name)
			}
		}
	}
	return nil
}

// gcsConfig is the configuration of the Google Cloud Storage backend.
type gcsConfig struct {
	Bucket    string   `env:"BUCKET" help:"gcs: the bucket, accessed with Google's application default credentials; required"`
	Prefix    string   `env:"PREFIX" help:"gcs: prefix for all keys"`
	ChunkSize byteSize `env:"CHUNK_SIZE" envDefault:"8MiB" help:"gcs: chunk size of an upload, sent in one request and buffered in memory; a multiple of 256KiB; reduced when PAGEWRIGHT_UPLOAD_MEMORY runs low"`
}

// gcsChunkStep divides the size of every chunk except the last.
const gcsChunkStep = 256 << 10

// check names the variable that is missing or wrong.
func (conf gcsConfig) check() error {
	switch {
	case conf.Bucket == "":
		return badConfig("PAGEWRIGHT_GCS_BUCKET: must be set")
	case conf.ChunkSize < gcsChunkStep || conf.ChunkSize > maxPart || conf.ChunkSize%gcsChunkStep != 0:
		return badConfig("PAGEWRIGHT_GCS_CHUNK_SIZE=%d: must be a multiple of 256KiB, at most 1GiB", conf.ChunkSize)
	}
	return nil
}

// maxUploadMemory is more than any upload can use: 10,000 parts of an eighth of it.
const maxUploadMemory = 1 << 40

// checkUploadMemory fails if the memory of all uploads is too small for parts of the
// size that the variable called name sets.
func checkUploadMemory(memory, size byteSize, name string) error {
	if memory < partsInMemory*size || memory > maxUploadMemory {
		return badConfig("PAGEWRIGHT_UPLOAD_MEMORY=%d: must be at least %d times PAGEWRIGHT_%s (%d), and at most 1TiB",
			memory, partsInMemory, name, size)
	}
	return nil
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// checkStore checks the settings of the store as opening it does.
func (c *Config) checkStore() error {
	var err error
	var part byteSize
	var name string
	switch c.StorageBackend {
	case "s3":
		err, part, name = c.S3.check(), c.S3.PartSize, "S3_PART_SIZE"
	case "azure":
		err, part, name = c.Azure.check(), c.Azure.PartSize, "AZURE_PART_SIZE"
	case "gcs":
		err, part, name = c.GCS.check(), c.GCS.ChunkSize, "GCS_CHUNK_SIZE"
	}
	if err != nil || name == "" {
		return err
	}
	return checkUploadMemory(c.UploadMemory, part, name)
}

// keyPrefix returns a configured prefix in the form that keys begin with.
func keyPrefix(configured string) string {
	if p := strings.Trim(configured, "/"); p != "" {
		return p + "/"
	}
	return ""
}

// partsInMemory is how many parts of the largest size fit into the memory of all
// uploads, so that no upload takes most of it.
const partsInMemory = 8
