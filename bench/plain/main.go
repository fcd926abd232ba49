// Command plain is what one would write oneself: the plainest net/http server
// that stores files durably. It is a peer in the benchmark, with no tricks and
// no mistakes: io.Copy, fsync, rename, fsync of the directory.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: plain ADDRESS DIRECTORY")
	}
	base := os.Args[2]
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /sites/{site}/artifacts/{build}", func(w http.ResponseWriter, r *http.Request) {
		dir := filepath.Join(base, "sites", r.PathValue("site"), "artifacts")
		answer(w, store(dir, r.PathValue("build")+".tar.gz", r.Body))
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
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
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
