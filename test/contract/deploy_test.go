package contract

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// TestTheManifestsAreWhatKubernetesKnows decodes every document of
// deploy/kubernetes into the type that it says it is. A field that Kubernetes
// does not know, as a misspelt one or one in the wrong place, is an error.
func TestTheManifestsAreWhatKubernetesKnows(t *testing.T) {
	files, err := filepath.Glob("../../deploy/kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, document := range bytes.Split(data, []byte("\n---\n")) {
			var kind meta.TypeMeta
			if err := yaml.Unmarshal(document, &kind); err != nil {
				t.Errorf("%s, document %d: %v", file, i, err)
				continue
			}
			object, known := map[meta.TypeMeta]any{
				{APIVersion: "v1", Kind: "Service"}:                         &core.Service{},
				{APIVersion: "v1", Kind: "PersistentVolume"}:                &core.PersistentVolume{},
				{APIVersion: "v1", Kind: "PersistentVolumeClaim"}:           &core.PersistentVolumeClaim{},
				{APIVersion: "apps/v1", Kind: "Deployment"}:                 &apps.Deployment{},
				{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}:      &policy.PodDisruptionBudget{},
				{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}: &networking.NetworkPolicy{},
			}[kind]
			if !known {
				t.Errorf("%s, document %d: no type is known here for %+v", file, i, kind)
				continue
			}
			if err := yaml.UnmarshalStrict(document, object); err != nil {
				t.Errorf("%s, document %d: %v", file, i, err)
			}
			if d, ok := object.(*apps.Deployment); ok {
				checkDeployment(t, file, d)
			}
		}
	}
}

// checkDeployment sees to what the types alone do not: names that must agree.
func checkDeployment(t *testing.T, file string, d *apps.Deployment) {
	t.Helper()
	pod := d.Spec.Template
	for name, value := range d.Spec.Selector.MatchLabels {
		if pod.Labels[name] != value {
			t.Errorf("%s: the selector's %s=%s is no label of the pods", file, name, value)
		}
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range pod.Spec.Containers {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: there is no volume %s to mount", file, m.Name)
			}
		}
		ports := map[string]bool{}
		for _, p := range c.Ports {
			ports[p.Name] = true
		}
		for _, p := range []*core.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if p == nil || p.HTTPGet == nil || !ports[p.HTTPGet.Port.StrVal] {
				t.Errorf("%s: a probe is missing or asks a port that there is not: %v", file, p)
			}
		}
	}
}

// TestTheUnitIsWhatSystemdKnows has systemd verify the unit, with a program and
// a folder that there are. A setting that systemd ignores is an error.
func TestTheUnitIsWhatSystemdKnows(t *testing.T) {
	const name = "pagewright-storage.service"
	data, err := os.ReadFile("../../deploy/systemd/" + name)
	if err != nil {
		t.Fatal(err)
	}
	program := "/usr/local/bin/pagewright-storage"
	if !bytes.Contains(data, []byte("ExecStart="+program+"\n")) {
		t.Fatal("the unit does not start " + program)
	}
	unit := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(unit, bytes.ReplaceAll(data, []byte(program), []byte("/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
	if err != nil || strings.Contains(string(out), name) {
		t.Errorf("%v\n%s", err, out)
	}
}
