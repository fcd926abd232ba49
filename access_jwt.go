package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	maxJWTBytes   = 8 << 10
	maxJWTCached  = 4096
	maxJWTSubject = 200 // bytes of a subject in the name of an actor
	jwtSkew       = 60 * time.Second
	maxJWTTime    = 253402300799 // the end of the year 9999: what is later is no date
)

// jwtVerifier verifies JSON Web Tokens of the issuers in the access file (RFC 7519, RFC 8725).
// It remembers those that it verified. It is safe for concurrent use.
type jwtVerifier struct {
	keys   *keyStore
	parser *jwt.Parser

	mu     sync.Mutex
	policy *accessPolicy // that the cache is of
	cache  *simplelru.LRU[[sha256.Size]byte, verifiedJWT]
}

// verifiedJWT is valid for one policy, while the issuer has the same keys, until its actor expires.
type verifiedJWT struct {
	who    *actor
	issuer *issuerKeys
	set    *keySet
}

func newJWTVerifier(keys *keyStore) *jwtVerifier {
	return &jwtVerifier{
		keys:   keys,
		parser: jwt.NewParser(jwt.WithJSONNumber(), jwt.WithStrictDecoding()),
		cache:  newUnlockedLRU[[sha256.Size]byte, verifiedJWT](maxJWTCached, nil),
	}
}

// verify returns who sent a JWT. The error is an *accessError. It may wait for the keys of the issuer.
func (v *jwtVerifier) verify(token string, policy *accessPolicy, now time.Time) (*actor, error) {
	if len(token) > maxJWTBytes {
		return nil, &accessError{deniedMalformed, "the token is larger than 8 KiB"}
	}
	sum := sha256.Sum256([]byte(token))
	if who := v.cached(sum, policy, now); who != nil {
		return who, nil
	}
	t, parts, err := v.parser.ParseUnverified(token, jwt.MapClaims{})
	if errors.Is(err, jwt.ErrTokenUnverifiable) {
		return nil, errJWTAlgorithm
	} else if err != nil || strings.ContainsAny(token, "\r\n") { // encoding/base64 skips these
		return nil, &accessError{deniedMalformed, "the token is not a JWT"}
	}
	claims := t.Claims.(jwt.MapClaims)
	// All that needs no key comes first, so that only tokens which could be valid cause a read of keys.
	iss, _ := claims.GetIssuer()
	issuer := policy.issuer(iss)
	if issuer == nil {
		return nil, &accessError{deniedInvalid, "the issuer of the token is not accepted"}
	}
	if err := checkJWTHeader(t.Header, issuer); err != nil {
		return nil, err
	}
	who, err := checkJWTClaims(claims, issuer, now)
	if err != nil {
		return nil, err
	}
	keys := v.keys.of(iss)
	set, err := checkJWTSignature(t, strings.Join(parts[:2], "."), keys)
	if err != nil {
		return nil, err
	}
	who.rules = issuer.rules(claims)
	v.add(sum, policy, verifiedJWT{who, keys, set})
	return who, nil
}

// cached returns the actor of a token that was verified before.
func (v *jwtVerifier) cached(sum [sha256.Size]byte, policy *accessPolicy, now time.Time) *actor {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.policy != policy {
		v.cache.Purge()
		v.policy = policy
		return nil
	}
	known, ok := v.cache.Get(sum)
	if !ok || known.issuer.set.Load() != known.set || !now.Before(known.who.until) {
		return nil
	}
	return known.who
}

// add remembers a token, unless there is another policy by now.
func (v *jwtVerifier) add(sum [sha256.Size]byte, policy *accessPolicy, known verifiedJWT) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.policy == policy {
		v.cache.Add(sum, known)
	}
}

var errJWTAlgorithm = &accessError{deniedInvalid, "the algorithm of the token is not accepted"}

// checkJWTHeader accepts JWTs and access tokens (RFC 9068) of the algorithms of the issuer. The
// members jwk, jku, x5c and x5u are never used.
func checkJWTHeader(header map[string]any, issuer *oidcIssuer) error {
	// publicKey.fits is the other half: it knows no HMAC and no "none", whatever the file has.
	if alg, _ := header["alg"].(string); !slices.Contains(issuer.algorithms, alg) {
		return errJWTAlgorithm
	}
	if _, has := header["crit"]; has { // RFC 7515, 4.1.11
		return &accessError{deniedInvalid, "the token has a critical header, which is not supported"}
	}
	if typ, has := header["typ"]; has {
		text, _ := typ.(string)
		text = strings.TrimPrefix(strings.ToLower(text), "application/")
		if text != "jwt" && text != "at+jwt" {
			return &accessError{deniedInvalid, "the type of the token is not JWT or at+jwt"}
		}
	}
	if kid, has := header["kid"]; has {
		if _, ok := kid.(string); !ok {
			return &accessError{deniedMalformed, "the key id of the token is not a string"}
		}
	}
	return nil
}

// checkJWTClaims returns the actor, without rules, if the claims are valid now.
func checkJWTClaims(claims jwt.MapClaims, issuer *oidcIssuer, now time.Time) (*actor, error) {
	for _, name := range []string{"exp", "nbf", "iat"} {
		if value, has := claims[name]; has && !isJWTTime(value) {
			return nil, &accessError{deniedInvalid, name + " of the token is not a time"}
		}
	}
	err := jwt.NewValidator(jwt.WithIssuer(issuer.issuer), jwt.WithAudience(issuer.audience...), jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(), jwt.WithLeeway(jwtSkew), jwt.WithTimeFunc(func() time.Time { return now })).Validate(claims)
	switch {
	case len(issuer.audience) == 0: // would accept any
		return nil, errJWTAudience
	case err == nil:
	case errors.Is(err, jwt.ErrTokenExpired):
		return nil, &accessError{deniedExpired, "the token has expired"}
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return nil, &accessError{deniedExpired, "the token is not valid yet"}
	case claims["exp"] == nil:
		return nil, &accessError{deniedInvalid, "the token has no expiry"}
	default:
		return nil, errJWTAudience
	}
	expires, _ := claims.GetExpirationTime()
	issued, _ := claims.GetIssuedAt()
	longest := issuer.maxLifetime + jwtSkew
	if expires.Sub(now) > longest || issued != nil && expires.Sub(issued.Time) > longest {
		return nil, &accessError{deniedInvalid, "the token is valid for longer than max_lifetime allows"}
	}
	subject, _ := claims.GetSubject()
	if subject == "" || strings.ContainsFunc(subject, func(r rune) bool { return !unicode.IsGraphic(r) }) {
		return nil, &accessError{deniedInvalid, "the subject of the token is missing or has control characters"}
	}
	return &actor{kind: actorOIDC, name: issuer.name + ":" + clipSubject(subject), until: expires.Add(jwtSkew)}, nil
}

var errJWTAudience = &accessError{deniedInvalid, "the token is not for this audience"}

// isJWTTime reports whether a claim is a NumericDate (RFC 7519, 2). The library would take a string
// for an error, but numbers out of range for any time.
func isJWTTime(claim any) bool {
	number, ok := claim.(json.Number)
	if !ok {
		return false
	}
	seconds, err := number.Float64()
	return err == nil && seconds >= 0 && seconds <= maxJWTTime
}

func clipSubject(subject string) string {
	if len(subject) <= maxJWTSubject {
		return subject
	}
	end := maxJWTSubject
	for !utf8.RuneStart(subject[end]) {
		end--
	}
	return subject[:end]
}

// checkJWTSignature returns the keys that verified the signature, which is over text. With a key
// id it tries the keys that have it, else those that fit the algorithm, maxKeysToTry at most.
func checkJWTSignature(t *jwt.Token, text string, keys *issuerKeys) (used *keySet, err error) {
	id, _ := t.Header["kid"].(string)
	wrong := false
	err = errIssuerDown
	if keys != nil {
		err = keys.try(func(set *keySet) bool {
			fitting := set.find(id, t.Method.Alg())
			for _, key := range fitting {
				if t.Method.Verify(text, t.Signature, key) == nil {
					used = set
					return true
				}
			}
			// A key that has the id is the right one. Without an id the right one may be new.
			wrong = id != "" && len(fitting) > 0
			return wrong
		})
	}
	switch {
	case wrong:
		return nil, &accessError{deniedInvalid, "the signature of the token is wrong"}
	case errors.Is(err, errIssuerDown):
		return nil, &accessError{deniedIssuer, err.Error()}
	case err != nil:
		return nil, &accessError{deniedInvalid, err.Error()}
	}
	return used, nil
}
