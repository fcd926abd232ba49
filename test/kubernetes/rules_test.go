package kubernetes

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"
)

// rule is what must hold for the objects of every variant. breaks makes one change that the
// rule must refuse; it reports false where the variant has nothing to break.
type rule struct {
	name   string
	check  func(m *manifests) error
	breaks func(m *manifests) bool
}

var rules = []rule{
	{"every object is in the namespace", func(m *manifests) error { return inNamespace(m, "pagewright") },
		func(m *manifests) bool { m.policies[len(m.policies)-1].Namespace = "default"; return true }},
	{"the namespace enforces the restricted profile, and the pods pass it", podSecurity,
		func(m *manifests) bool { m.container().SecurityContext.AllowPrivilegeEscalation = nil; return true }},
	{"the volume is reserved for the claim, without a claimRef", volumes,
		func(m *manifests) bool {
			if m.volume == nil {
				return false
			}
			m.volume.Spec.ClaimRef = &core.ObjectReference{Namespace: "default", Name: "pagewright-storage"}
			return true
		}},
	{"no fsGroup", noFSGroup,
		func(m *manifests) bool {
			m.deployment.Spec.Template.Spec.SecurityContext.FSGroup = new(int64)
			return true
		}},
	{"selectors match the pods", selectors,
		func(m *manifests) bool { m.budget.Spec.Selector.MatchLabels["x"] = "y"; return true }},
	{"the monitor selects the pods, and its job is that of the alerts", monitor,
		func(m *manifests) bool {
			if m.podMonitor == nil {
				return false
			}
			m.podMonitor.Spec.JobLabel = "app"
			return true
		}},
	{"ports are those the service listens on, and are named", ports,
		func(m *manifests) bool { m.service.Spec.Ports[0].TargetPort = intstr.FromString("web"); return true }},
	{"probes ask the admin port, and only /ready asks the store", probes,
		func(m *manifests) bool { m.container().LivenessProbe.HTTPGet.Path = "/ready"; return true }},
	{"a stop has more time than the service takes", grace,
		func(m *manifests) bool {
			*m.deployment.Spec.Template.Spec.TerminationGracePeriodSeconds = 57
			return true
		}},
	{"the memory limit bears the uploads", memory,
		func(m *manifests) bool {
			m.container().Resources.Limits[core.ResourceMemory] = resource.MustParse("500Mi")
			return true
		}},
	{"a roll-out that fails stops, and keeps the old pods", rollOut,
		func(m *manifests) bool { *m.deployment.Spec.ProgressDeadlineSeconds = 100; return true }},
	{"a drain leaves a pod, and is never blocked by pods that are not ready", drain,
		func(m *manifests) bool { m.budget.Spec.UnhealthyPodEvictionPolicy = nil; return true }},
	{"the pods of one version spread over zones and hosts", spread,
		func(m *manifests) bool {
			m.deployment.Spec.Template.Spec.TopologySpreadConstraints[0].MatchLabelKeys = nil
			return true
		}},
	{"only named peers get in", ingress,
		func(m *manifests) bool { m.policies[0].Spec.Ingress[1].From = nil; return true }},
	{"pods on NFS reach nothing, others name servers and HTTPS", egress,
		func(m *manifests) bool {
			last := m.policies[len(m.policies)-1]
			last.Spec.Egress = append(last.Spec.Egress[:0:0], networking.NetworkPolicyEgressRule{})
			return true
		}},
	{"files that are reloaded are in directories that Kubernetes replaces", reloaded,
		func(m *manifests) bool {
			mounts := m.container().VolumeMounts
			for i := range mounts {
				if strings.HasPrefix(mounts[i].MountPath, "/etc/pagewright/") {
					mounts[i].SubPath = "access.json"
					return true
				}
			}
			return false
		}},
	{"with TLS the Service is https, and probes do without", withTLS,
		func(m *manifests) bool {
			if m.env("PAGEWRIGHT_TLS_CERT") == "" {
				return false
			}
			m.service.Spec.Ports[0].Port = 80
			return true
		}},
	{"verify has the store of the service, and nothing reaches its pods", verifies,
		func(m *manifests) bool {
			if m.verify == nil {
				return false
			}
			m.verify.Spec.JobTemplate.Spec.Template.Labels = m.deployment.Spec.Template.Labels
			return true
		}},
	{"no token of the API server and no variables of Services", noToken,
		func(m *manifests) bool { m.deployment.Spec.Template.Spec.EnableServiceLinks = nil; return true }},
}

func inNamespace(m *manifests, want string) error {
	for _, o := range m.objects {
		object, err := meta.Accessor(o)
		if err != nil {
			return err
		}
		namespace := object.GetNamespace()
		switch o.(type) {
		case *core.Namespace:
			namespace = object.GetName()
		case *core.PersistentVolume: // of the cluster
			if namespace == "" {
				continue
			}
		}
		if namespace != want {
			return fmt.Errorf("%T %s is in %q", o, object.GetName(), namespace)
		}
		if object.GetLabels()["app.kubernetes.io/name"] != "pagewright-storage" {
			return fmt.Errorf("%T %s has no label app.kubernetes.io/name", o, object.GetName())
		}
	}
	return nil
}

// podSecurity has the code of Pod Security Admission judge the pods.
func podSecurity(m *manifests) error {
	const level = "pod-security.kubernetes.io/enforce"
	if m.namespace.Labels[level] != "restricted" {
		return fmt.Errorf("%s is %q", level, m.namespace.Labels[level])
	}
	if err := passesRestricted(&m.deployment.Spec.Template); err != nil {
		return err
	}
	if c := m.container().SecurityContext; c.ReadOnlyRootFilesystem == nil || !*c.ReadOnlyRootFilesystem {
		return errors.New("the root file system is writable")
	}
	return nil
}

func passesRestricted(pod *core.PodTemplateSpec) error {
	admission, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks(), nil)
	if err != nil {
		return err
	}
	for _, r := range admission.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec) {
		if !r.Allowed {
			return fmt.Errorf("%s: %s", r.ForbiddenReason, r.ForbiddenDetail)
		}
	}
	return nil
}

// verifies checks the CronJob: the same variables and mounts as the service, and labels by which
// no Service, budget or policy of the service selects its pods.
func verifies(m *manifests) error {
	if m.verify == nil {
		return nil
	}
	pod, service := &m.verify.Spec.JobTemplate.Spec.Template, &m.deployment.Spec.Template
	c := &pod.Spec.Containers[0]
	switch {
	case !reflect.DeepEqual(c.Env, m.container().Env), !reflect.DeepEqual(c.EnvFrom, m.container().EnvFrom), c.Image != m.container().Image:
		return errors.New("its variables or its image are not those of the service")
	case !reflect.DeepEqual(c.VolumeMounts, m.container().VolumeMounts) && m.volume != nil, !reflect.DeepEqual(pod.Spec.Volumes, service.Spec.Volumes) && m.volume != nil:
		return errors.New("its volumes are not those of the service")
	case len(c.Args) == 0 || c.Args[0] != "verify":
		return fmt.Errorf("its arguments are %q", c.Args)
	case pod.Spec.ServiceAccountName != service.Spec.ServiceAccountName, pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks:
		return errors.New("it has another service account, or variables of Services")
	case labels.SelectorFromSet(m.service.Spec.Selector).Matches(labels.Set(pod.Labels)):
		return errors.New("the Service selects its pods")
	case m.verifyPolicy == nil || !labels.SelectorFromSet(m.verifyPolicy.Spec.PodSelector.MatchLabels).Matches(labels.Set(pod.Labels)):
		return errors.New("no policy selects its pods")
	case len(m.verifyPolicy.Spec.Ingress) > 0 || (len(m.verifyPolicy.Spec.Egress) > 0) != (m.volume == nil):
		return fmt.Errorf("its policy is %v", m.verifyPolicy.Spec)
	}
	return passesRestricted(pod)
}

func volumes(m *manifests) error {
	if m.volume == nil {
		return nil
	}
	v, c := m.volume, m.claim
	switch {
	case v.Spec.ClaimRef != nil:
		return fmt.Errorf("claimRef: %v", v.Spec.ClaimRef)
	case c.Spec.VolumeName != v.Name || c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != v.Spec.StorageClassName || v.Spec.StorageClassName == "":
		return errors.New("the claim and the volume do not name each other")
	case !slices.Equal(c.Spec.AccessModes, v.Spec.AccessModes) || c.Spec.Resources.Requests.Storage().Cmp(*v.Spec.Capacity.Storage()) > 0:
		return errors.New("the claim asks for more than the volume is")
	case v.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimRetain:
		return fmt.Errorf("reclaim policy: %s", v.Spec.PersistentVolumeReclaimPolicy)
	case !slices.Contains(v.Spec.MountOptions, "hard") || !slices.Contains(v.Spec.MountOptions, "nfsvers=4.2"):
		return fmt.Errorf("mount options: %v", v.Spec.MountOptions)
	}
	for _, mounted := range m.container().VolumeMounts {
		for _, volume := range m.deployment.Spec.Template.Spec.Volumes {
			if volume.Name == mounted.Name && volume.PersistentVolumeClaim != nil && volume.PersistentVolumeClaim.ClaimName == c.Name &&
				mounted.MountPath == m.env("PAGEWRIGHT_NFS_BASE_PATH") && m.env("PAGEWRIGHT_NFS_REQUIRE_MOUNT") == "true" {
				return nil
			}
		}
	}
	return errors.New("the claim is not mounted where the service looks")
}

func noFSGroup(m *manifests) error {
	c := m.deployment.Spec.Template.Spec.SecurityContext
	if c.FSGroup != nil || c.FSGroupChangePolicy != nil || *c.RunAsUser != 65532 || *c.RunAsGroup != 65532 {
		return fmt.Errorf("securityContext: %v", c)
	}
	return nil
}

func monitor(m *manifests) error {
	if m.podMonitor == nil {
		return nil
	}
	spec, pod := m.podMonitor.Spec, m.deployment.Spec.Template
	selector, err := metav1.LabelSelectorAsSelector(&spec.Selector)
	if err != nil || selector.Empty() || !selector.Matches(labels.Set(pod.Labels)) {
		return fmt.Errorf("%v does not select the pods", spec.Selector)
	}
	if job := pod.Labels[spec.JobLabel]; job != "pagewright-storage" {
		return fmt.Errorf("the job is %q", job)
	}
	for _, e := range spec.PodMetricsEndpoints {
		if e.Port == nil || *e.Port != "admin" || e.Path != "/metrics" {
			return fmt.Errorf("it asks %v", e)
		}
	}
	return nil
}

func probes(m *manifests) error {
	c := m.container()
	for path, list := range map[string][]*core.Probe{"/health": {c.StartupProbe, c.LivenessProbe}, "/ready": {c.ReadinessProbe}} {
		for _, p := range list {
			if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != path || p.HTTPGet.Port != intstr.FromString("admin") {
				return fmt.Errorf("want a probe of %s on admin: %v", path, p)
			}
		}
	}
	if c.ReadinessProbe.TimeoutSeconds <= 2 { // /ready itself waits 2 s for the store
		return fmt.Errorf("the readiness probe waits %d s", c.ReadinessProbe.TimeoutSeconds)
	}
	return nil
}

func grace(m *manifests) error {
	service := 7 * time.Second // 5 s to clean up after the grace, 2 s for the log
	for _, name := range []string{"PAGEWRIGHT_SHUTDOWN_DELAY", "PAGEWRIGHT_SHUTDOWN_GRACE"} {
		d, err := time.ParseDuration(m.env(name))
		if err != nil || d == 0 {
			return fmt.Errorf("%s: %v %v", name, d, err)
		}
		service += d
	}
	pod := time.Duration(*m.deployment.Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
	if pod <= service {
		return fmt.Errorf("the pod has %v, the service needs %v", pod, service)
	}
	return nil
}

// memory follows "Sizing" in docs/operations.md: 256 MiB, on an object store twice the
// memory of uploads more; and 1 MiB for the buffers of each upload and of its socket.
func memory(m *manifests) error {
	need, err := resource.ParseQuantity(m.env("PAGEWRIGHT_MAX_UPLOADS") + "Mi")
	if err != nil || need.IsZero() {
		return fmt.Errorf("PAGEWRIGHT_MAX_UPLOADS: %q %v", m.env("PAGEWRIGHT_MAX_UPLOADS"), err)
	}
	need.Add(resource.MustParse("256Mi"))
	if m.volume == nil {
		parts, err := resource.ParseQuantity(strings.TrimSuffix(m.env("PAGEWRIGHT_UPLOAD_MEMORY"), "B"))
		if err != nil {
			return err
		}
		need.Add(parts)
		need.Add(parts)
	}
	r := m.container().Resources
	if r.Limits.Memory().Cmp(need) < 0 {
		return fmt.Errorf("the limit is %v, %v are needed", r.Limits.Memory(), &need)
	}
	if r.Requests.Memory().IsZero() || r.Requests.Cpu().IsZero() {
		return errors.New("nothing is requested")
	}
	return nil
}

func rollOut(m *manifests) error {
	d := m.deployment.Spec
	update := d.Strategy.RollingUpdate
	if update == nil || update.MaxUnavailable.IntValue() != 0 || update.MaxSurge.IntValue() < 1 {
		return fmt.Errorf("strategy: %v", d.Strategy)
	}
	start := m.container().StartupProbe
	if longest := start.PeriodSeconds*start.FailureThreshold + d.MinReadySeconds; d.ProgressDeadlineSeconds == nil || *d.ProgressDeadlineSeconds <= longest {
		return fmt.Errorf("a start may take %d s, and the deadline is %v", longest, *d.ProgressDeadlineSeconds)
	}
	if d.RevisionHistoryLimit == nil || *d.RevisionHistoryLimit < 1 {
		return errors.New("no old revision to go back to")
	}
	return nil
}

func drain(m *manifests) error {
	b := m.budget.Spec
	if b.UnhealthyPodEvictionPolicy == nil || *b.UnhealthyPodEvictionPolicy != policy.AlwaysAllow {
		return errors.New("unhealthyPodEvictionPolicy is not AlwaysAllow")
	}
	if b.MaxUnavailable == nil || b.MaxUnavailable.IntValue() != 1 || *m.deployment.Spec.Replicas < 2 {
		return fmt.Errorf("budget: %v", b)
	}
	return nil
}

func spread(m *manifests) error {
	var over []string
	for _, c := range m.deployment.Spec.Template.Spec.TopologySpreadConstraints {
		if !slices.Equal(c.MatchLabelKeys, []string{"pod-template-hash"}) {
			return fmt.Errorf("%s: matchLabelKeys: %v", c.TopologyKey, c.MatchLabelKeys)
		}
		over = append(over, c.TopologyKey)
	}
	if !slices.Equal(over, []string{"topology.kubernetes.io/zone", "kubernetes.io/hostname"}) {
		return fmt.Errorf("over %v", over)
	}
	return nil
}

// reloaded: a file in a volume that is mounted with subPath never changes.
func reloaded(m *manifests) error {
	for _, name := range []string{"ACCESS_FILE", "RETENTION_FILE", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA"} {
		file := m.env("PAGEWRIGHT_" + name)
		if file == "" {
			continue
		}
		found := false
		for _, mount := range m.container().VolumeMounts {
			if mount.MountPath != path.Dir(file) {
				continue
			}
			for _, v := range m.deployment.Spec.Template.Spec.Volumes {
				mayLack := v.Secret != nil && v.Secret.Optional != nil || v.ConfigMap != nil && v.ConfigMap.Optional != nil
				found = found || v.Name == mount.Name && (v.Secret != nil || v.ConfigMap != nil) && !mayLack && mount.SubPath == "" && mount.ReadOnly
			}
		}
		if !found {
			return fmt.Errorf("%s=%s: no volume is mounted on its directory", name, file)
		}
	}
	return nil
}

func withTLS(m *manifests) error {
	port := m.service.Spec.Ports[0]
	want := "http"
	if m.env("PAGEWRIGHT_TLS_CERT") != "" {
		want = "https"
	}
	if port.Name != want || port.AppProtocol == nil || *port.AppProtocol != want || (port.Port == 443) != (want == "https") {
		return fmt.Errorf("the Service publishes %v", port)
	}
	for _, p := range []*core.Probe{m.container().StartupProbe, m.container().LivenessProbe, m.container().ReadinessProbe} {
		if p.HTTPGet.Scheme == core.URISchemeHTTPS {
			return errors.New("a probe uses TLS, which the admin port has not")
		}
	}
	return nil
}

func noToken(m *manifests) error {
	pod := m.deployment.Spec.Template.Spec
	for _, token := range []*bool{pod.AutomountServiceAccountToken, m.account.AutomountServiceAccountToken} {
		if token == nil || *token {
			return errors.New("a token is mounted")
		}
	}
	if pod.ServiceAccountName != m.account.Name {
		return fmt.Errorf("the account is %q", pod.ServiceAccountName)
	}
	if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
		return errors.New("Services make variables")
	}
	return nil
}
