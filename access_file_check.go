package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

const maxAccessName = 128 // bytes

// policyBuilder checks the content of an access file.
type policyBuilder struct {
	accessPolicy
	hashes  map[[sha256.Size]byte]string // places of the hashes of tokens
	names   map[string]string            // places, by kind and name
	issuers map[string]string            // places, by issuer
}

// policy returns the policy of a file, or the first fault of the file.
func (f *accessFile) policy() (*accessPolicy, error) {
	b := &policyBuilder{hashes: map[[sha256.Size]byte]string{}, names: map[string]string{}, issuers: map[string]string{}}
	b.tokens = map[[sha256.Size]byte]*actor{}
	if err := each("tokens", f.Tokens, b.addToken); err != nil {
		return nil, err
	}
	if err := each("oidc", f.OIDC, b.addIssuer); err != nil {
		return nil, err
	}
	if err := each("certificates", f.Certificates, b.addCertificate); err != nil {
		return nil, err
	}
	if err := each("anonymous", f.Anonymous, b.addAnonymous); err != nil {
		return nil, err
	}
	p := b.accessPolicy // without what only the builder needs
	return &p, nil
}

func (b *policyBuilder) addToken(place string, t *fileToken) error {
	if err := b.checkName("token", place, t.Name); err != nil {
		return err
	}
	rule, err := t.rule(place, named(place, t.Name), wildcard{})
	if err != nil {
		return err
	}
	who := &actor{kind: actorToken, name: t.Name, rules: []accessRule{rule}}
	if who.until, err = checkTime(place+".expires", t.Expires); err != nil {
		return err
	}
	if len(t.SHA256) == 0 {
		return fmt.Errorf("%s.sha256: missing or empty; it lists the SHA-256 of the token, and of the next one while it is replaced", place)
	}
	return each(place+".sha256", t.SHA256, func(place string, text *string) error { return b.addHash(place, *text, who) })
}

func (b *policyBuilder) addHash(place, text string, who *actor) error {
	var sum [sha256.Size]byte
	if strings.HasPrefix(text, tokenPrefix) {
		return fmt.Errorf("%s: a token instead of its SHA-256; make a new token, as this one is no longer secret", place)
	}
	if n, err := hex.Decode(sum[:], []byte(text[:min(len(text), 2*len(sum))])); err != nil || n != len(sum) || len(text) != 2*len(sum) || text != strings.ToLower(text) {
		return fmt.Errorf("%s: %s is not a SHA-256 as 64 hexadecimal digits in lower case", place, shownSecret(text))
	}
	if other, used := b.hashes[sum]; used {
		return fmt.Errorf("%s: the same hash as %s; each token belongs to one entry", place, other)
	}
	of := *who
	of.credential = text[:8]
	b.hashes[sum], b.tokens[sum] = place, &of
	return nil
}

func (b *policyBuilder) addIssuer(place string, f *fileIssuer) error {
	if err := b.checkName("oidc", place, f.Name); err != nil {
		return err
	}
	if strings.Contains(f.Name, ":") {
		return fmt.Errorf("%s.name: %s contains a colon; the service log writes name, colon and subject", place, shown(f.Name))
	}
	if err := checkURL(place+".issuer", f.Issuer); err != nil {
		return err
	}
	if strings.ContainsAny(f.Issuer, "?#") {
		return fmt.Errorf("%s.issuer: %s contains a query or a fragment; an issuer has neither", place, shown(f.Issuer))
	}
	if other, used := b.issuers[f.Issuer]; used {
		return fmt.Errorf("%s.issuer: %s is also the issuer of %s; put the rules of both into one entry", place, shown(f.Issuer), other)
	}
	b.issuers[f.Issuer] = place
	if err := checkStrings(place+".audience", f.Audience, "it lists the audiences of which a JWT must have one"); err != nil {
		return err
	}
	if f.JWKSURL != "" {
		if err := checkURL(place+".jwks_url", f.JWKSURL); err != nil {
			return err
		}
	}
	if err := checkPath(place+".ca_file", f.CAFile); err != nil {
		return err
	}
	if err := checkPath(place+".token_file", f.TokenFile); err != nil {
		return err
	}
	o := &oidcIssuer{name: f.Name, issuer: f.Issuer, audience: f.Audience, jwksURL: f.JWKSURL, caFile: f.CAFile, tokenFile: f.TokenFile}
	var err error
	if o.algorithms, err = checkAlgorithms(place+".algorithms", f.Algorithms); err != nil {
		return err
	}
	if o.maxLifetime, err = checkLifetime(place+".max_lifetime", f.MaxLifetime); err != nil {
		return err
	}
	b.oidc = append(b.oidc, o)
	return each(place+".rules", f.Rules, func(rulePlace string, r *fileRule) error {
		rule, err := r.claimRule(rulePlace, named(place, f.Name)+" "+strings.TrimPrefix(rulePlace, place+"."))
		o.granted = append(o.granted, rule)
		return err
	})
}

func (b *policyBuilder) addCertificate(place string, f *fileCertificate) error {
	if err := b.checkName("certificates", place, f.Name); err != nil {
		return err
	}
	if err := checkGlobs(place+".san", f.SAN, "it lists subject alternative names, of which a certificate must have one"); err != nil {
		return err
	}
	rule, err := f.rule(place, named(place, f.Name), wildcard{source: "san", place: place + ".san", globs: f.SAN, shared: f.Shared, everybody: slices.Contains(f.SAN, "*")})
	b.certificates = append(b.certificates, certificateEntry{accessRule: rule, name: f.Name, globs: f.SAN})
	return err
}

func (b *policyBuilder) addAnonymous(place string, g *fileGrant) error {
	rule, err := g.rule(place, place, wildcard{})
	b.anonymous = append(b.anonymous, rule)
	return err
}

// claimRule returns the rule. label is its place with the name of its entry.
func (r *fileRule) claimRule(place, label string) (rule claimRule, err error) {
	if len(r.Claims) == 0 {
		return rule, fmt.Errorf("%s.claims: missing or empty; all JWTs of the issuer would match", place)
	}
	star := wildcard{source: "claims", shared: r.Shared, everybody: true}
	for i, name := range slices.Sorted(maps.Keys(r.Claims)) { // sorted: the first error is always the same
		globs, claimPlace := r.Claims[name], place+".claims"+memberPlace(name)
		path, err := claimPath(name)
		if err != nil {
			return rule, fmt.Errorf("%s: %w", claimPlace, err)
		}
		if err := checkGlobs(claimPlace, globs, "it lists the values of which the claim must have one"); err != nil {
			return rule, err
		}
		rule.claims = append(rule.claims, claimMatch{name: name, path: path, globs: globs})
		star.everybody = star.everybody && slices.Contains(globs, "*")
		switch {
		case !slices.ContainsFunc(globs, hasStar):
		case star.present():
			star.second = claimPlace
		default:
			star.place, star.globs, rule.fill = claimPlace, globs, i
		}
	}
	rule.accessRule, err = r.rule(place, label, star)
	return rule, err
}

// wildcard is what {1} in the sites of a rule stands for: what the first * of globs matched.
type wildcard struct {
	source string   // member of the file that may contain *; empty: this kind of rule has none
	place  string   // of globs
	globs  []string // of the claim with a *, or of the certificate
	second string   // place of another claim with a *; may be empty
	shared bool     // clients with different values may share sites

	everybody bool // each value matches
}

func (w *wildcard) present() bool { return slices.ContainsFunc(w.globs, hasStar) }

func hasStar(glob string) bool { return strings.Contains(glob, "*") }

// rule checks what is allowed where.
func (g *fileGrant) rule(place, label string, w wildcard) (rule accessRule, err error) {
	rule = accessRule{place: label, sites: g.Sites}
	if rule.allow, err = checkActions(place+".allow", g.Allow); err != nil {
		return rule, err
	}
	if err := checkGlobs(place+".sites", g.Sites, `"*" is all sites`); err != nil {
		return rule, err
	}
	return rule, each(place+".sites", g.Sites, func(place string, glob *string) error { return w.checkSite(place, *glob) })
}

// checkSite checks a glob for the ids of sites.
func (w *wildcard) checkSite(place, glob string) error {
	filled := strings.Contains(glob, filledIn)
	switch {
	case filled && w.source == "":
		return fmt.Errorf("%s: %s contains {1}, which is allowed only where claims or san may contain *", place, shown(glob))
	case filled && !w.present():
		return fmt.Errorf("%s: %s contains {1}, but %s contains no * for which it could stand", place, shown(glob), w.source)
	case filled && w.second != "":
		// The members of an object have no order: tools that write JSON may sort them.
		return fmt.Errorf("%s: %s contains {1}, which would depend on the order of the claims: only one claim may contain *, but both %s and %s do", place, shown(glob), w.place, w.second)
	}
	if i := slices.IndexFunc(w.globs, func(g string) bool { return !hasStar(g) }); filled && i >= 0 {
		return fmt.Errorf("%s[%d]: %s contains no *, so {1} in sites would have no value; move it to a rule of its own", w.place, i, shown(w.globs[i]))
	}
	if other := otherFilledIn(glob); other != "" {
		return fmt.Errorf("%s: %s contains %s, but only {1} exists", place, shown(glob), other)
	}
	if err := w.checkShared(place, glob, filled); err != nil {
		return err
	}
	id := strings.NewReplacer(filledIn, "0", "*", "0").Replace(glob)
	if len(id) > maxIDLen {
		return fmt.Errorf("%s: %s is longer than a site id, which has at most %d characters", place, shown(glob), maxIDLen)
	}
	if err := checkID(id); err != nil {
		return fmt.Errorf("%s: %s cannot match any site: a site id %w", place, shown(glob), err)
	}
	return nil
}

// checkShared refuses a glob with which clients of different values could reach the same site,
// unless the rule says that they share it.
func (w *wildcard) checkShared(place, glob string, filled bool) error {
	switch {
	case w.shared:
	case !filled && w.everybody:
		return fmt.Errorf("%s: %s would be open to every client: each value of %s is accepted; list the values, or set \"shared\": true", place, shown(glob), w.place)
	case !filled && hasStar(glob) && w.present():
		return fmt.Errorf("%s: %s would be shared by all clients that match %s; write {1} for what its first * matches, or set \"shared\": true", place, shown(glob), w.place)
	case filled && hasStar(glob):
		return fmt.Errorf("%s: %s would also match the sites of longer values of {1}; leave out the *, or set \"shared\": true", place, shown(glob))
	case filled && (len(w.globs) > 1 || strings.Count(w.globs[0], "*") > 1):
		return fmt.Errorf("%s: different values could give the same {1}; write one value with one *, or set \"shared\": true", w.place)
	}
	return nil
}

// otherFilledIn returns the first of {0}, {2} and so on in a glob.
func otherFilledIn(glob string) string {
	for _, part := range strings.Split(strings.ReplaceAll(glob, filledIn, ""), "{")[1:] {
		number, _, closed := strings.Cut(part, "}")
		if _, err := strconv.ParseUint(number, 10, 8); closed && err == nil {
			return "{" + number + "}"
		}
	}
	return ""
}

// checkName checks the name of an entry, and that no other of its kind has it.
func (b *policyBuilder) checkName(kind, place, name string) error {
	if name == "" {
		return fmt.Errorf("%s.name: missing or empty", place)
	}
	if len(name) > maxAccessName {
		return fmt.Errorf("%s.name: %s is %d bytes long; the maximum is %d", place, shown(name), len(name), maxAccessName)
	}
	// Of the spaces only U+0020 is allowed: others look like it, and the label of a metric, which
	// is quoted by %q, has no escape for them.
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s.name: %s contains a control character, or a space other than U+0020", place, shown(name))
	}
	if other, used := b.names[kind+name]; used {
		return fmt.Errorf("%s.name: %s is also the name of %s", place, shown(name), other)
	}
	b.names[kind+name] = place
	return nil
}
