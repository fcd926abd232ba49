//go:build integration

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// copyBuilds is the variable with the number of builds that TestRealStoresCopy copies.
const copyBuilds = "COPY_BUILDS"

// TestRealStoresCopy copies a directory to each store and back, and kills each copy ten times. What
// comes back is equal.
func TestRealStoresCopy(t *testing.T) {
	n := 120
	if text := os.Getenv(copyBuilds); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		noError(t, err)
	}
	base := t.TempDir()
	source := openCopyNFS(t, base)
	fillStore(t, source)
	at := time.Date(2023, 1, 2, 3, 4, 5, 678, time.UTC)
	for i := range n {
		site, build := fmt.Sprint("many-", i%3), fmt.Sprint("build-", i)
		storeWithDigest(t, source, site, build, body(100+i%5000, byte(i)))
		for j := range i % 3 {
			e := entry(fmt.Sprint(build, j), build, at.Add(time.Duration(i)*time.Second))
			e.Copied, e.Metadata = true, json.RawMessage(fmt.Sprintf(`{"i": %d}`, i))
			noError(t, source.WriteLog(site, e))
		}
	}
	noError(t, source.StoreArtifact("many-0", "large", known(body(largeBody, 3))))
	storeWithDigest(t, source, "many-0", "large-with-digest", body(largeBody, 4))
	eachStore(t, func(t *testing.T, s *realStore) {
		there, back := envFileOf(t, s.environ("")...), t.TempDir()
		started := time.Now()
		kills := killedCopies(t, dirEnv(t, base), there, n)
		to := time.Since(started)
		sameBuilds(t, source, s.open(t, "").(copyable))
		started = time.Now()
		killsBack := killedCopies(t, there, dirEnv(t, back), n)
		t.Logf("%d builds to the store in %v, killed %d times; back in %v, killed %d times", n+8, to, kills, time.Since(started), killsBack)
		sameBuilds(t, source, openCopyNFS(t, back))
	})
}

// killedCopies copies until all is there, and kills the first ten runs. It returns how many it
// killed.
func killedCopies(t *testing.T, from, to string, n int) (killed int) {
	t.Helper()
	for try := range 30 {
		cmd := exec.Command(os.Args[0], copyCommand, "--json", "--from-env", from, "--to-env", to)
		cmd.Env = append(os.Environ(), childVariable+"=main")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		noError(t, err)
		noError(t, cmd.Start())
		lines, wanted := 0, max(1, n/12)
		last := ""
		for scan := bufio.NewScanner(stdout); scan.Scan(); last = scan.Text() {
			if lines++; lines == wanted && try < 10 {
				noError(t, cmd.Process.Kill())
				killed++
			}
		}
		_ = cmd.Wait()
		switch status := cmd.ProcessState.ExitCode(); {
		case status == 0:
			return killed
		case status > 0:
			t.Fatalf("exit status %d after %d kills: %s\n%s", status, killed, last, stderr.String())
		}
	}
	t.Fatal("it does not come to an end")
	return killed
}

// sameBuilds is sameStores, but labels that were killed between two moves may have lost what they
// named before.
func sameBuilds(t *testing.T, from, to copyable) {
	t.Helper()
	if want, got := withoutPrevious(storeText(t, from)), withoutPrevious(storeText(t, to)); want != got {
		t.Errorf("the target has\n%s\ninstead of\n%s", got, want)
	}
}
