package main

import (
	"strings"
	"testing"
)

// A backend that is configured by half ends the start, with a line that names
// the variable.
func TestHalfConfigured(t *testing.T) {
	for _, c := range []struct {
		vars []string // of the service
		env  []string // of the SDKs
		want string
	}{
		{[]string{"STORAGE_BACKEND=s3"}, nil, "PAGEWRIGHT_S3_BUCKET"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_ENDPOINT=host:9000"}, nil, "PAGEWRIGHT_S3_ENDPOINT"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_PART_SIZE=1MiB"}, nil, "PAGEWRIGHT_S3_PART_SIZE"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_CONCURRENCY=0"}, nil, "PAGEWRIGHT_S3_CONCURRENCY"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "S3_PART_SIZE=33MiB"}, nil, "PAGEWRIGHT_UPLOAD_MEMORY=268435456: must be at least 8 times PAGEWRIGHT_S3_PART_SIZE"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b", "UPLOAD_MEMORY=2TiB"}, nil, "PAGEWRIGHT_UPLOAD_MEMORY"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b"}, []string{"AWS_REGION=", "AWS_DEFAULT_REGION=", "AWS_CONFIG_FILE=/dev/null"}, "PAGEWRIGHT_S3_REGION"},
		{[]string{"STORAGE_BACKEND=s3", "S3_BUCKET=b"}, []string{"AWS_ACCESS_KEY_ID=x"}, "AWS_SECRET_ACCESS_KEY"},
		{[]string{"STORAGE_BACKEND=azure"}, nil, "PAGEWRIGHT_AZURE_CONTAINER"},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c"}, nil, "PAGEWRIGHT_AZURE_ACCOUNT_URL"},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c", "AZURE_ACCOUNT_URL=host"}, nil, "PAGEWRIGHT_AZURE_ACCOUNT_URL"},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c", "AZURE_ACCOUNT_URL=https://a"}, []string{azureConnection + "=x"}, azureConnection},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c", "AZURE_ACCOUNT_URL=https://a"}, []string{"AZURE_CLIENT_SECRET=x"}, "AZURE_CLIENT_ID"},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c"}, []string{azureConnection + "=AccountName=a"}, azureConnection},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c", "AZURE_ACCOUNT_URL=https://a", "AZURE_PART_SIZE=2GiB"}, nil, "PAGEWRIGHT_AZURE_PART_SIZE"},
		{[]string{"STORAGE_BACKEND=azure", "AZURE_CONTAINER=c", "AZURE_ACCOUNT_URL=https://a", "UPLOAD_MEMORY=63MiB"}, nil, "PAGEWRIGHT_UPLOAD_MEMORY"},
		{[]string{"STORAGE_BACKEND=gcs", "GCS_BUCKET=b", "UPLOAD_MEMORY=63MiB"}, nil, "PAGEWRIGHT_UPLOAD_MEMORY"},
		{[]string{"STORAGE_BACKEND=gcs"}, nil, "PAGEWRIGHT_GCS_BUCKET"},
		{[]string{"STORAGE_BACKEND=gcs", "GCS_BUCKET=b", "GCS_CHUNK_SIZE=300KiB"}, nil, "PAGEWRIGHT_GCS_CHUNK_SIZE"},
		{[]string{"STORAGE_BACKEND=gcs", "GCS_BUCKET=b"}, []string{"GOOGLE_APPLICATION_CREDENTIALS=/nowhere.json"}, "GOOGLE_APPLICATION_CREDENTIALS"},
	} {
		t.Run(strings.Join(append(c.vars, c.env...), " "), func(t *testing.T) {
			for _, kv := range c.env {
				name, value, _ := strings.Cut(kv, "=")
				t.Setenv(name, value)
			}
			_, err := runWith(nil, c.vars...)
			// A build that leaves this store out has no configuration of it to
			// check. make test leaves none out.
			if err != nil && strings.HasSuffix(err.Error(), "this binary was built without this backend") {
				if exitStatus(err) != exitConfig {
					t.Error("it is not an error of the configuration")
				}
				t.Skip(err)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v does not name %s in one line", err, c.want)
			}
			status := exitConfig
			if c.want == "GOOGLE_APPLICATION_CREDENTIALS" {
				status = exitFailure // the file may be there later
			}
			if got := exitStatus(err); got != status {
				t.Errorf("%v: exit status %d, want %d", err, got, status)
			}
		})
	}
}
