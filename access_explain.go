package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// This file says for operators why a JWT has no rights. The service itself needs none of it: a
// client must not learn what rules expect.

// explainRefusal returns why the file does not accept a JWT for its issuer or its audience; nil
// if it does. Numbers in claims must be of type json.Number.
func (p *accessPolicy) explainRefusal(claims map[string]any) []string {
	iss, _ := claims["iss"].(string)
	issuer := p.issuer(iss)
	if issuer == nil {
		var known []string
		for _, o := range p.oidc {
			known = append(known, o.issuer)
		}
		return []string{fmt.Sprintf("the issuer of the token is %s, the file has %s", strconv.Quote(iss), quotedList(known))}
	}
	audience := claimTexts(claims, []string{"aud"})
	if !slices.ContainsFunc(audience, func(a string) bool { return slices.Contains(issuer.audience, a) }) {
		entry := named(fmt.Sprintf("oidc[%d]", slices.Index(p.oidc, issuer)), issuer.name)
		return []string{fmt.Sprintf("the audience of the token is %s, %s has %s", quotedList(audience), entry, quotedList(issuer.audience))}
	}
	return nil
}

// explainClaims returns for each rule of the issuer that gives a verified JWT no rights why not.
func (p *accessPolicy) explainClaims(claims map[string]any) (lines []string) {
	iss, _ := claims["iss"].(string)
	issuer := p.issuer(iss)
	if issuer == nil {
		return nil
	}
	for i := range issuer.granted {
		if why := issuer.granted[i].explain(claims); why != "" {
			lines = append(lines, issuer.granted[i].place+": "+why)
		}
	}
	return lines
}

// explain returns why a rule gives a JWT no rights; "" if it gives some.
func (r *claimRule) explain(claims map[string]any) string {
	for _, m := range r.claims {
		name, texts := strings.TrimPrefix(memberPlace(m.name), "."), claimTexts(claims, m.path)
		if _, ok := matchAny(m.globs, texts); ok {
			continue
		}
		if len(texts) == 0 {
			return fmt.Sprintf("claim %s is missing, the rule has %s", name, quotedList(m.globs))
		}
		return fmt.Sprintf("claim %s is %s, the rule has %s", name, quotedList(texts), quotedList(m.globs))
	}
	values, _ := r.match(claims)
	if len(r.filled(values).sites) == 0 {
		return fmt.Sprintf("{1} would be %s, which cannot be in the id of a site", quotedList(values))
	}
	return ""
}

// quotedList returns texts in quotes. They are whole: what differs may be at the end.
func quotedList(texts []string) string {
	if len(texts) == 0 {
		return "none"
	}
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = strconv.Quote(text)
	}
	return strings.Join(quoted, ", ")
}

// claimsOf returns the claims of a JWT in the compact form, which it does not verify.
func claimsOf(token string) (claims map[string]any) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	if dec.Decode(&claims) != nil {
		return nil
	}
	return claims
}
