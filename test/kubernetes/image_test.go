package kubernetes

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestImage runs the command that the head of each overlay gives, and sees that it
// replaces the placeholder, and that it writes what the head says. It also does so from a
// kustomization outside of the tree, which sets another namespace.
func TestImage(t *testing.T) {
	for _, overlay := range []string{"nfs", "object-store"} {
		t.Run(overlay, func(t *testing.T) {
			dir := filepath.Join(copyManifests(t), "overlays", overlay)
			if image := decode(t, kustomize(t, dir, "build")).container().Image; image != placeholder {
				t.Errorf("the image is %s", image)
			}
			own := filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(dir))), "own-"+overlay)
			if err := os.Mkdir(own, 0o755); err != nil {
				t.Fatal(err)
			}
			kustomize(t, own, "create", "--resources", "../manifests/overlays/"+overlay, "--namespace", "web")
			kustomize(t, own, "edit", "set", "image", "registry.example.com/pagewright-storage=localhost:5000/storage:2")
			m := decode(t, kustomize(t, own, "build"))
			if got := m.container().Image; got != "localhost:5000/storage:2" {
				t.Errorf("from outside, the image is %s", got)
			}
			if m.namespace.Name != "web" {
				t.Errorf("from outside, the namespace is %s", m.namespace.Name)
			}
			if err := inNamespace(m, "web"); err != nil {
				t.Error(err)
			}

			head, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			command := strings.Fields(string(regexp.MustCompile(`(?m)^#\tkustomize (edit set image .*)$`).FindSubmatch(head)[1]))
			_, image, _ := strings.Cut(command[3], "=")
			kustomize(t, dir, command...)
			if got := decode(t, kustomize(t, dir, "build")).container().Image; got != image {
				t.Errorf("the image is %s, want %s", got, image)
			}
			documented := bytes.ReplaceAll(regexp.MustCompile(`(?m)^#\timages:\n(#\t  .*\n)+`).Find(head), []byte("#\t"), nil)
			written, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := imagesIn(t, written), imagesIn(t, documented); want == "" || got != want {
				t.Errorf("the command wrote %s, the head says %s", got, want)
			}
		})
	}
}

func imagesIn(t *testing.T, kustomization []byte) string {
	t.Helper()
	var k struct {
		Images []struct{ Name, NewName, NewTag string }
	}
	if err := yaml.Unmarshal(kustomization, &k); err != nil {
		t.Fatal(err)
	}
	if k.Images == nil {
		return ""
	}
	return fmt.Sprint(k.Images)
}
