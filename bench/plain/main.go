// Command plain is what one would write oneself: the plainest net/http server
// that stores files durably. It is a peer in the benchmark, with no tricks and
// no mistakes: io.Copy, fsync, rename, fsync of the directory. With -sha256 it also
// computes the SHA-256 of what it stores, and sends it (RFC 9530).
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"hash"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

func main() {
	hashes := flag.Bool("sha256", false, "compute the SHA-256 of each artifact")
	flag.Parse()
	if flag.NArg() != 2 {
		log.Fatal("usage: plain [-sha256] ADDRESS DIRECTORY")
	}
	base := flag.Arg(1)
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /sites/{site}/artifacts/{build}", func(w http.ResponseWriter, r *http.Request) {
		dir := filepath.Join(base, "sites", r.PathValue("site"), "artifacts")
		var sum hash.Hash
		body := io.Reader(r.Body)
		if *hashes {
			sum = sha256.New()
			body = io.TeeReader(body, sum)
		}
		err := store(dir, r.PathValue("build")+".tar.gz", body)
		if *hashes {
			w.Header().Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum.Sum(nil))+":")
		}
		answer(w, err)
	})
	mux.HandleFunc("GET /sites/{site}/artifacts/{build}", func(w http.ResponseWriter, r *http.Request) {
		f, err := os.Open(filepath.Join(base, "sites", r.PathValue("site"), "artifacts", r.PathValue("build")+".tar.gz"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			answer(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/gzip")
		w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.Size(), info.ModTime().UnixNano()))
		http.ServeContent(w, r, "", info.ModTime(), f)
	})
	mux.HandleFunc("POST /sites/{site}/logs", func(w http.ResponseWriter, r *http.Request) {
		var entry struct {
			BuildID  string         `json:"build_id"`
			Action   string         `json:"action"`
			Status   string         `json:"status"`
			Metadata map[string]any `json:"metadata,omitempty"`
		}
		if err := json.NewDecoder(r.Body).Decode(&entry); err != nil || entry.BuildID == "" {
			http.Error(w, "bad entry", http.StatusBadRequest)
			return
		}
		data, err := json.Marshal(entry)
		if err != nil {
			answer(w, err)
			return
		}
		dir := filepath.Join(base, "sites", r.PathValue("site"), "logs", entry.BuildID)
		answer(w, store(dir, time.Now().UTC().Format("20060102T150405.000000000")+"-"+rand.Text()+".json", bytes.NewReader(data)))
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"status":"healthy"}`)
	})
	log.Fatal(http.ListenAndServe(flag.Arg(0), mux))
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		log.Print(err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	io.WriteString(w, `{"status":"success"}`)
}

// store writes the file durably: whole and on the disk, or not at all.
func store(path, name string, body io.Reader) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := os.CreateTemp(path, ".tmp-*")
	if err != nil {
		return err
	}
	placed := false
	defer func() {
		if !placed {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, body); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(path, name)); err != nil {
		return err
	}
	placed = true
	return dir.Sync()
}
