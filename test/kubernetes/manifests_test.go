// Package kubernetes checks the manifests of deploy/kubernetes with the code of kustomize
// and of the API server. It is a module of its own: what it needs never enters the service.
package kubernetes

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/api/pod"
	apiapps "k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	apibatch "k8s.io/kubernetes/pkg/apis/batch"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	apicore "k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	apinetworking "k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	apipolicy "k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
)

const (
	manifestsDir = "../../deploy/kubernetes"
	placeholder  = "registry.example.com/pagewright-storage:VERSION"
)

// bin is the directory of kustomize and of the service.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if bin, err = os.MkdirTemp("", "manifests"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(bin)
		for _, build := range []*exec.Cmd{
			exec.Command("go", "build", "-o", bin, "sigs.k8s.io/kustomize/kustomize/v5"),
			exec.Command("go", "build", "-C", "../..", "-buildvcs=false", "-tags", "no_s3,no_azure,no_gcs", "-o", filepath.Join(bin, "service"), "."),
		} {
			build.Env = append(os.Environ(), "GOFLAGS=-trimpath", "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				panic(fmt.Sprintf("%v: %v\n%s", build, err, out))
			}
		}
		return m.Run()
	}())
}

// variants are the overlays, with each of their optional blocks in use somewhere.
var variants = []struct {
	name, overlay string
	store         string // the patch of an object store; "": the one that is on
	blocks        []string
}{
	{"nfs", "nfs", "", nil},
	{"nfs with all that is optional", "nfs", "", []string{"clients", "pod-monitor", "release", "trusted-proxies"}},
	{"nfs with access control and TLS", "nfs", "", []string{"access", "tls", "client-certificates"}},
	{"nfs with issuers", "nfs", "", []string{"access", "issuers", "cluster-issuer", "pod-monitor"}},
	{"object-store with access control and TLS", "object-store", "", []string{"access", "tls"}},
	{"object-store with the service accounts of its cluster", "object-store", "", []string{"access", "issuers", "cluster-issuer"}},
	{"nfs with retention", "nfs", "", []string{"retention", "prune", "access"}},
	{"object-store with retention", "object-store", "", []string{"retention"}},
	{"nfs with verify", "nfs", "", []string{"verify", "access", "tls"}},
	{"s3 with verify", "object-store", "", []string{"verify", "verify-object-store", "keys"}},
	{"azure with verify", "object-store", "azure.yaml", []string{"verify", "verify-object-store", "azure-workload-identity"}},
	{"object-store", "object-store", "", nil},
	{"s3 with keys", "object-store", "", []string{"keys", "pod-monitor"}},
	{"s3-compatible in the cluster", "object-store", "", []string{"s3-compatible", "keys", "in-cluster"}},
	{"s3 with IRSA", "object-store", "", []string{"irsa"}},
	{"s3 with EKS Pod Identity", "object-store", "", []string{"eks-pod-identity"}},
	{"azure with a connection string", "object-store", "azure.yaml", []string{"keys"}},
	{"azure with a workload identity", "object-store", "azure.yaml", []string{"azure-workload-identity"}},
	{"gcs with a key", "object-store", "gcs.yaml", []string{"keys"}},
	{"gcs on GKE", "object-store", "gcs.yaml", []string{"gke"}},
}

// TestManifests builds each variant with the real kustomize, decodes its objects strictly
// into the types of Kubernetes, applies the API server's defaults and validation to them,
// and checks them against rules. Each rule must also refuse an object that breaks it.
func TestManifests(t *testing.T) {
	help, err := service(nil, "-h").Output()
	if err != nil {
		t.Fatal(err)
	}
	used, refused := map[string]bool{}, map[string]bool{}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			dir := copyManifests(t)
			for _, block := range v.blocks {
				used[block] = true
				uncomment(t, dir, block)
			}
			if v.store != "" {
				replaceIn(t, filepath.Join(dir, "overlays", v.overlay, "kustomization.yaml"), "- path: s3.yaml", "- path: "+v.store)
			}
			built := kustomize(t, filepath.Join(dir, "overlays", v.overlay), "build")
			for _, o := range decode(t, built).objects {
				if err := validate(o); err != nil {
					t.Error(err)
				}
			}
			for _, r := range rules {
				if err := r.check(decode(t, built)); err != nil {
					t.Errorf("%s: %v", r.name, err)
				}
				if m := decode(t, built); r.breaks(m) {
					refused[r.name] = true
					if r.check(m) == nil {
						t.Errorf("%s: the rule accepts what breaks it", r.name)
					}
				}
			}
			for _, e := range decode(t, built).container().Env {
				if strings.HasPrefix(e.Name, "PAGEWRIGHT_") && !bytes.Contains(help, []byte("  "+e.Name+" ")) {
					t.Errorf("the service has no variable %s", e.Name)
				}
			}
			// healthcheck reads the configuration first. Its error names the variable at
			// fault; any other error says that the service does not run here.
			out, _ := service(decode(t, built).container().Env, "healthcheck").CombinedOutput()
			if strings.Contains(string(out), "PAGEWRIGHT_") {
				t.Errorf("the service refuses its variables: %s", out)
			}
		})
	}
	for _, r := range rules {
		if !refused[r.name] {
			t.Errorf("%s: no variant was broken to try the rule", r.name)
		}
	}
	for _, block := range blocksOf(t) {
		if !used[block] {
			t.Errorf("no variant uses the block [%s]", block)
		}
	}
}

// manifests are the objects of one variant, as the file gives them.
type manifests struct {
	objects    []runtime.Object
	namespace  *core.Namespace
	account    *core.ServiceAccount
	deployment *apps.Deployment
	service    *core.Service
	budget     *policy.PodDisruptionBudget
	policies   []*networking.NetworkPolicy
	volume     *core.PersistentVolume      // nil on an object store
	claim      *core.PersistentVolumeClaim // nil on an object store
	podMonitor *monitoring.PodMonitor      // nil without the component

	verify       *batch.CronJob // nil without the component
	verifyPolicy *networking.NetworkPolicy
}

func (m *manifests) container() *core.Container {
	return &m.deployment.Spec.Template.Spec.Containers[0]
}

func (m *manifests) env(name string) string {
	for _, e := range m.container().Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// decode decodes what kustomize built. A field that Kubernetes does not know is an error.
func decode(t *testing.T, built []byte) *manifests {
	t.Helper()
	if err := monitoring.AddToScheme(legacyscheme.Scheme); err != nil {
		t.Fatal(err)
	}
	strict := serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	m := &manifests{}
	documents := yamlreader.NewYAMLReader(bufio.NewReader(bytes.NewReader(built)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := strict.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		m.objects = append(m.objects, object)
		switch o := object.(type) {
		case *core.Namespace:
			m.namespace = o
		case *core.ServiceAccount:
			m.account = o
		case *apps.Deployment:
			m.deployment = o
		case *batch.CronJob:
			m.verify = o
		case *core.Service:
			m.service = o
		case *policy.PodDisruptionBudget:
			m.budget = o
		case *networking.NetworkPolicy:
			if o.Name == "pagewright-storage-verify" {
				m.verifyPolicy = o
				break
			}
			m.policies = append(m.policies, o)
		case *core.PersistentVolume:
			m.volume = o
		case *core.PersistentVolumeClaim:
			m.claim = o
		case *monitoring.PodMonitor:
			m.podMonitor = o
		case *core.ConfigMap: // see reloaded
		default:
			t.Errorf("no rule knows %T", o)
		}
	}
	if m.namespace == nil || m.account == nil || m.deployment == nil || m.service == nil || m.budget == nil || m.policies == nil {
		t.Fatalf("an object is missing in:\n%s", built)
	}
	return m
}

// validate does to an object what the API server does before it stores it: defaults, and
// validation.
func validate(object runtime.Object) error {
	object = object.DeepCopyObject()
	legacyscheme.Scheme.Default(object)
	if _, custom := object.(*monitoring.PodMonitor); custom {
		return nil // validated by the schema of its CRD, which is not in a Go module
	}
	object, err := legacyscheme.Scheme.ConvertToVersion(object, runtime.InternalGroupVersioner)
	if err != nil {
		return err
	}
	var errs field.ErrorList
	switch o := object.(type) {
	case *apicore.Namespace:
		errs = corevalidation.ValidateNamespace(o)
	case *apicore.ServiceAccount:
		errs = corevalidation.ValidateServiceAccount(o)
	case *apicore.ConfigMap:
		errs = corevalidation.ValidateConfigMap(o)
	case *apicore.Service:
		errs = corevalidation.ValidateServiceCreate(o)
	case *apicore.PersistentVolume:
		errs = corevalidation.ValidatePersistentVolume(o, corevalidation.ValidationOptionsForPersistentVolume(o, nil))
	case *apicore.PersistentVolumeClaim:
		errs = corevalidation.ValidatePersistentVolumeClaim(o, corevalidation.ValidationOptionsForPersistentVolumeClaim(o, nil))
	case *apiapps.Deployment:
		errs = appsvalidation.ValidateDeployment(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *apibatch.CronJob:
		errs = batchvalidation.ValidateCronJobCreate(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.JobTemplate.Spec.Template, nil))
	case *apipolicy.PodDisruptionBudget:
		errs = policyvalidation.ValidatePodDisruptionBudget(o, policyvalidation.PodDisruptionBudgetValidationOptions{})
	case *apinetworking.NetworkPolicy:
		errs = networkingvalidation.ValidateNetworkPolicy(o, networkingvalidation.NetworkPolicyValidationOptions{})
	default:
		return fmt.Errorf("no validation is known for %T", o)
	}
	return errs.ToAggregate()
}

// kustomize runs the real kustomize in dir and returns what it prints. A warning, as of a
// deprecated field, is an error.
func kustomize(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "kustomize"), args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("kustomize %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

// copyManifests returns a copy of the manifests in a directory named manifests.
func copyManifests(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "manifests")
	if err := os.CopyFS(dir, os.DirFS(manifestsDir)); err != nil {
		t.Fatal(err)
	}
	return dir
}
