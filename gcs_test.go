//go:build !no_gcs

package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A service account's key signs URLs without asking anybody. The emulators have
// no keys, so this is looked at here.
func TestGCSSignsURLs(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "k", "client_email": "storage@p.iam.gserviceaccount.com",
		"client_id": "1", "token_uri": "http://127.0.0.1:1/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "account.json")
	if err := os.WriteFile(file, account, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	b, err := newGCSBucket(context.Background(), gcsConfig{Bucket: "builds", ChunkSize: 8 << 20}, 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	link, err := b.presign(context.Background(), "sites/s/artifacts/b+1.tar.gz", 5*time.Minute, "s-b+1.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Scheme != "https" || u.Host != "storage.googleapis.com" || u.Path != "/builds/sites/s/artifacts/b+1.tar.gz" ||
		q.Get("X-Goog-Signature") == "" || q.Get("X-Goog-Expires") != "299" && q.Get("X-Goog-Expires") != "300" ||
		q.Get("response-content-disposition") != `attachment; filename="s-b+1.tar.gz"` {
		t.Errorf("the URL is %s", link)
	}
}
