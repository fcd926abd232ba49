//go:build !no_s3

package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// TestCopyUsesTheCredentialsOfEachStore: two buckets in one process, each with its own key.
func TestCopyUsesTheCredentialsOfEachStore(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "OFTHEPROCESS")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_SESSION_TOKEN", "token")
	var args copyArgs
	seen := map[string]*sync.Map{}
	for key, path := range map[string]*string{"SOURCEKEY": &args.from, "TARGETKEY": &args.to} {
		keys := &sync.Map{}
		seen[key] = keys
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, credential, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
			id, _, _ := strings.Cut(credential, "/")
			keys.Store(id+r.Header.Get("X-Amz-Security-Token"), true)
			_, _ = w.Write([]byte(`<ListBucketResult><Name>builds</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>`))
		}))
		defer server.Close()
		*path = envFileOf(t, "PAGEWRIGHT_STORAGE_BACKEND=s3", "PAGEWRIGHT_S3_BUCKET=builds", "PAGEWRIGHT_S3_PATH_STYLE=true",
			"PAGEWRIGHT_S3_ENDPOINT="+server.URL, "AWS_ACCESS_KEY_ID="+key, "AWS_SECRET_ACCESS_KEY='"+key+"'")
	}
	var out bytes.Buffer
	from, to, err := args.open(t.Context(), &copyReport{commandOutput: commandOutput{stdout: &out, stderr: &out}})
	noError(t, err)
	for _, s := range []copyable{from, to, from} {
		_, err := s.ListSites("", "", 1, nil)
		noError(t, err)
	}
	for key, keys := range seen {
		n := 0
		keys.Range(func(id, _ any) bool {
			if n++; id != key {
				t.Errorf("the store of %s got the key %v", key, id)
			}
			return true
		})
		if n == 0 {
			t.Errorf("the store of %s got no request", key)
		}
	}
}
