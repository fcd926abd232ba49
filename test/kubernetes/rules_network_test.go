package kubernetes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func selectors(m *manifests) error {
	pods := labels.Set(m.deployment.Spec.Template.Labels)
	all := []*metav1.LabelSelector{m.deployment.Spec.Selector, m.budget.Spec.Selector, {MatchLabels: m.service.Spec.Selector}}
	for _, p := range m.policies {
		all = append(all, &p.Spec.PodSelector)
	}
	for _, c := range m.deployment.Spec.Template.Spec.TopologySpreadConstraints {
		all = append(all, c.LabelSelector)
	}
	for _, s := range all {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil || selector.Empty() || !selector.Matches(pods) {
			return fmt.Errorf("%v does not select the pods %v: %v", s, pods, err)
		}
	}
	return nil
}

func ports(m *manifests) error {
	admin, err := netip.ParseAddrPort(m.env("PAGEWRIGHT_ADMIN_LISTEN"))
	if err != nil || !admin.Addr().IsUnspecified() || m.env("PAGEWRIGHT_PORT") != "" {
		return fmt.Errorf("PAGEWRIGHT_ADMIN_LISTEN: %v %v", admin, err)
	}
	named := map[string]int32{}
	for _, p := range m.container().Ports {
		named[p.Name] = p.ContainerPort
	}
	if named["http"] != 8080 || named["admin"] != int32(admin.Port()) {
		return fmt.Errorf("the container has %v", named)
	}
	if len(m.service.Spec.Ports) != 1 || m.service.Spec.Ports[0].TargetPort != intstr.FromString("http") {
		return fmt.Errorf("the Service publishes %v", m.service.Spec.Ports)
	}
	for _, r := range m.policies[0].Spec.Ingress {
		for _, p := range r.Ports {
			if _, known := named[p.Port.String()]; !known {
				return fmt.Errorf("the policy names the port %v", p.Port)
			}
		}
	}
	return nil
}

func ingress(m *manifests) error {
	if !slices.Contains(m.policies[0].Spec.PolicyTypes, networking.PolicyTypeIngress) {
		return errors.New("the policy is not of type Ingress")
	}
	var in []string
	for _, p := range m.policies {
		for _, r := range p.Spec.Ingress {
			if len(r.From) == 0 || len(r.Ports) != 1 {
				return fmt.Errorf("a rule names no peer or not one port: %v", r)
			}
			for _, peer := range r.From {
				if peer.PodSelector == nil || len(peer.PodSelector.MatchLabels) == 0 || peer.NamespaceSelector != nil && len(peer.NamespaceSelector.MatchLabels) == 0 {
					return fmt.Errorf("a peer has no label: %v", peer)
				}
			}
			in = append(in, r.Ports[0].Port.String())
		}
	}
	if !slices.Equal(in, []string{"http", "admin"}) {
		return fmt.Errorf("open are %v", in)
	}
	return nil
}

func egress(m *manifests) error {
	if !slices.Contains(m.policies[0].Spec.PolicyTypes, networking.PolicyTypeEgress) {
		return errors.New("the policy is not of type Egress")
	}
	for i, p := range m.policies {
		out, err := openTo(p)
		switch want := []string{"53/named", "53/named", "443/any"}; {
		case err != nil:
			return err
		case i == 0 && len(out) == 0:
		case i == 0, m.volume != nil && p.Name != "pagewright-storage-issuers":
			return fmt.Errorf("%s opens %v", p.Name, out)
		case p.Name == "pagewright-storage-issuers" && m.env("PAGEWRIGHT_ACCESS_FILE") == "":
			return errors.New("issuers can be reached without access control")
		case len(out) < len(want) || !slices.Equal(out[:len(want)], want):
			return fmt.Errorf("%s opens %v", p.Name, out)
		default:
			for _, extra := range out[len(want):] {
				if !strings.HasSuffix(extra, "/named") {
					return fmt.Errorf("%s opens %v", p.Name, out)
				}
			}
		}
	}
	return nil
}

// openTo returns the ports that a policy opens, each with whether it names who is reached.
func openTo(p *networking.NetworkPolicy) (out []string, err error) {
	for _, r := range p.Spec.Egress {
		if len(r.Ports) == 0 {
			return nil, fmt.Errorf("a rule opens every port: %v", r)
		}
		for _, port := range r.Ports {
			to := "/any"
			if len(r.To) > 0 {
				to = "/named"
			}
			out = append(out, port.Port.String()+to)
		}
	}
	return out, nil
}
