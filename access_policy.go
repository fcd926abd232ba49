package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// accessPolicy is the content of an access file. It never changes, so it is safe for concurrent
// use.
type accessPolicy struct {
	tokens       map[[sha256.Size]byte]*actor // by tokenHash
	oidc         []*oidcIssuer
	certificates []certificateEntry
	anonymous    []accessRule
}

// oidcIssuer is an entry for the JWTs of an issuer.
type oidcIssuer struct {
	name        string
	issuer      string   // the claim iss
	audience    []string // one of them must be in the claim aud
	jwksURL     string   // empty: discovery
	caFile      string   // CA certificates for the issuer; empty: those of the system
	tokenFile   string   // a bearer token for the issuer; empty: none
	algorithms  []string
	maxLifetime time.Duration // from iat to exp
	granted     []claimRule
}

// claimRule is a rule for JWTs whose claims match all of claims.
type claimRule struct {
	accessRule
	claims []claimMatch
	fill   int // index of the claim whose first * is {1}; any, if no site has {1}
}

// claimMatch matches a claim if any of the globs matches its value.
type claimMatch struct {
	name  string   // as in the file
	path  []string // names of members, from the outermost object to the claim
	globs []string
}

// certificateEntry is a rule for clients with a certificate.
type certificateEntry struct {
	accessRule
	name  string
	globs []string // one of them must match a subject alternative name
}

// filledIn stands in a site glob for what the first * of the claim matched.
const filledIn = "{1}"

// token returns who has a token. The error is an *accessError, of a token that has expired an
// *expiredToken.
func (p *accessPolicy) token(token string, now time.Time) (*actor, error) {
	sum, ok := tokenHash(token)
	if !ok {
		return nil, &accessError{deniedMalformed, "the token is malformed or incomplete"}
	}
	who := p.tokens[sum]
	switch {
	case who == nil:
		return nil, &accessError{deniedUnknown, "the token is unknown"}
	case !who.until.IsZero() && !now.Before(who.until):
		return nil, &expiredToken{accessError{deniedExpired, "the token has expired"}, who}
	}
	return who, nil
}

// tokenEntries returns an actor of each entry for tokens, by name.
func (p *accessPolicy) tokenEntries() map[string]*actor {
	entries := map[string]*actor{}
	for _, who := range p.tokens {
		entries[who.name] = who
	}
	return entries
}

// certificate returns who has a certificate that the TLS handshake has verified, with the rights
// of all entries that match it. It returns nil if none does, or if the certificate is not valid
// now.
func (p *accessPolicy) certificate(cert *x509.Certificate, now time.Time) *actor {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil
	}
	var who *actor
	names := alternativeNames(cert)
	for i := range p.certificates {
		entry := &p.certificates[i]
		values, ok := matchAny(entry.globs, names)
		if !ok {
			continue
		}
		if who == nil {
			who = &actor{kind: actorCertificate, name: entry.name, until: cert.NotAfter}
		} else {
			who.name += ", " + entry.name
		}
		if rule := entry.filled(values); len(rule.sites) > 0 {
			who.rules = append(who.rules, rule)
		}
	}
	return who
}

// alternativeNames returns the subject alternative names of a certificate as text. It leaves out
// names that read like a name of another kind: a CA that lets clients choose their DNS names
// must not thereby let them choose a SPIFFE id or an address.
func alternativeNames(cert *x509.Certificate) (names []string) {
	for _, uri := range cert.URIs {
		if uri.IsAbs() {
			names = append(names, uri.String())
		}
	}
	for _, name := range cert.DNSNames {
		if _, err := netip.ParseAddr(name); err != nil && !strings.ContainsAny(name, ":/@") {
			names = append(names, name)
		}
	}
	for _, address := range cert.EmailAddresses {
		if strings.Contains(address, "@") && !strings.ContainsAny(address, ":/") {
			names = append(names, address)
		}
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// issuers returns all entries for issuers, in the order of the file.
func (p *accessPolicy) issuers() []*oidcIssuer { return p.oidc }

// issuer returns the entry for an issuer, or nil.
func (p *accessPolicy) issuer(iss string) *oidcIssuer {
	for _, o := range p.oidc {
		if o.issuer == iss {
			return o
		}
	}
	return nil
}

// rules returns the rules whose claims match those of a verified JWT, with {1} filled in. Numbers
// in claims must be of type json.Number; a float64 matches nothing.
func (o *oidcIssuer) rules(claims map[string]any) (rules []accessRule) {
	for i := range o.granted {
		values, ok := o.granted[i].match(claims)
		if !ok {
			continue
		}
		if rule := o.granted[i].filled(values); len(rule.sites) > 0 {
			rules = append(rules, rule)
		}
	}
	return rules
}

// match reports whether all claims of the rule match, and returns what {1} stands for: of an
// array each of its values that matches has a value of its own.
func (r *claimRule) match(claims map[string]any) (values []string, ok bool) {
	for i, m := range r.claims {
		captured, ok := matchAny(m.globs, claimTexts(claims, m.path))
		if !ok {
			return nil, false
		}
		if i == r.fill {
			values = captured
		}
	}
	return values, true
}

// matchAny reports whether a glob matches a text. It returns for each text that matches what the
// first * of the first glob that matches it stands for.
func matchAny(globs, texts []string) (captured []string, ok bool) {
	for _, text := range texts {
		for _, glob := range globs {
			if first, ok := globCapture(glob, text); ok {
				captured = append(captured, first)
				break
			}
		}
	}
	return captured, len(captured) > 0
}

// filled returns the rule with {1} replaced by each of the values. A value that cannot be in the
// id of a site allows nothing: neither does an empty one, as {1}* would be all sites, nor one
// with a *.
func (r *accessRule) filled(values []string) accessRule {
	rule := accessRule{place: r.place, allow: r.allow}
	for _, site := range r.sites {
		if !strings.Contains(site, filledIn) {
			rule.sites = append(rule.sites, site)
			continue
		}
		for _, value := range values {
			if isSiteText(value) {
				rule.sites = append(rule.sites, strings.ReplaceAll(site, filledIn, value))
			}
		}
	}
	return rule
}

// isSiteText reports whether s can be a part of the id of a site.
func isSiteText(s string) bool {
	for i := range len(s) {
		if checkID("0"+s[i:i+1]) != nil {
			return false
		}
	}
	return s != ""
}

// claimTexts returns the value of a claim as text; of an array those of its elements. Objects,
// null and what is missing have no text.
func claimTexts(claims map[string]any, path []string) (texts []string) {
	value := any(claims)
	for _, name := range path {
		switch outer := value.(type) {
		case map[string]any:
			value = outer[name] // nil if it is missing
		case []any:
			i, err := strconv.ParseUint(name, 10, 32)
			if err != nil || i >= uint64(len(outer)) || strconv.FormatUint(i, 10) != name {
				return nil
			}
			value = outer[i]
		default:
			return nil
		}
	}
	elements, isArray := value.([]any)
	if !isArray {
		elements = []any{value}
	}
	for _, element := range elements {
		switch v := element.(type) {
		case string:
			texts = append(texts, v)
		case json.Number:
			texts = append(texts, v.String())
		case bool:
			texts = append(texts, strconv.FormatBool(v))
		}
	}
	return texts
}

// allows returns a rule that allows an action on a site: one of who, else one for anonymous
// clients. It returns nil if no rule allows it. A siteID of "" is what concerns all sites: a rule
// allows it only if its sites include the glob * itself.
func (p *accessPolicy) allows(who *actor, want action, siteID string) *accessRule {
	if who != nil {
		if rule := findRule(who.rules, want, siteID); rule != nil {
			return rule
		}
	}
	return findRule(p.anonymous, want, siteID)
}

// findRule returns the first rule that allows all actions of want on a site.
func findRule(rules []accessRule, want action, siteID string) *accessRule {
	for i := range rules {
		if rules[i].allow&want == want && rules[i].covers(siteID) {
			return &rules[i]
		}
	}
	return nil
}

// covers reports whether a site is one of the rule's.
func (r *accessRule) covers(siteID string) bool {
	if siteID == "" {
		return slices.Contains(r.sites, "*")
	}
	for _, glob := range r.sites {
		if globMatch(glob, siteID) {
			return true
		}
	}
	return false
}
