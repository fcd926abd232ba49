package main

import (
	"math/bits"
	"strings"
	"time"
)

// action is a set of what rules can allow. No action implies another, except that a rule that
// allows write allows create too.
type action uint8

const (
	actionRead   action = 1 << iota // download builds, list versions
	actionCreate                    // upload a build that does not exist
	actionWrite                     // upload a build, whether or not it exists
	actionLog                       // append to the logs of builds
	actionLabel                     // move labels
	actionDelete                    // delete builds
	actionAdmin                     // what concerns all sites, and deleting a site

	actionOpen // of routes only: everybody may, no rule is needed
)

// actionNames are the names of the actions in files and messages.
var actionNames = [...]string{"read", "create", "write", "log", "label", "delete", "admin"}

// isOne reports whether a is one action, or actionOpen.
func (a action) isOne() bool { return bits.OnesCount8(uint8(a)) == 1 }

// String returns the names, separated by commas.
func (a action) String() string {
	var names []string
	for i, name := range actionNames {
		if a&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// The kinds of actors, as the service log has them.
const (
	actorToken       = "token"
	actorOIDC        = "oidc"
	actorCertificate = "certificate"
)

// actor is who sent a request, as its credentials prove. A nil *actor is anonymous. It never
// changes.
type actor struct {
	kind  string
	name  string       // of the entry in the file; of OIDC the name of the issuer's entry, a colon and the subject
	rules []accessRule // what it may do, besides what anonymous clients may
	until time.Time    // when the credentials expire; zero: never

	credential string // of a token the first 8 digits of its SHA-256, else empty: an entry has two hashes while its token is replaced
}

// accessRule allows actions on sites. It never changes.
type accessRule struct {
	place string // in the file, for people: tokens[0] "ci-shop"
	allow action
	sites []string // globs: * is any run of characters
}

// accessError says why credentials are not accepted. text is for the client, and reason is
// the label of the metric.
type accessError struct{ reason, text string }

func (e *accessError) Error() string { return e.text }

// expiredToken is the accessError of a token that has expired. who is for the service log and
// for "access check" only: it has no rights, and the client does not learn its name.
type expiredToken struct {
	accessError
	who *actor
}

func (e *expiredToken) Unwrap() error { return &e.accessError }

// The reasons of an accessError, and those for which handlers refuse a request.
const (
	deniedMissing   = "missing"     // no credentials
	deniedMalformed = "malformed"   // of no form that is accepted
	deniedUnknown   = "unknown"     // a token that is not in the file, or a client certificate that no entry fits
	deniedExpired   = "expired"     // a token or JWT that has expired, or is not valid yet
	deniedInvalid   = "invalid"     // a JWT with a wrong signature, issuer, audience, algorithm or lifetime; a client certificate whose CA was removed
	deniedIssuer    = "issuer_down" // a JWT that cannot be verified because its issuer does not respond: 503
	deniedRights    = "rights"      // the credentials are good, but allow too little: 403
	deniedExists    = "exists"      // the build exists, and the credentials allow only to create: 403
)

// deniedReasons are all of them, for the metrics.
var deniedReasons = [...]string{deniedMissing, deniedMalformed, deniedUnknown, deniedExpired, deniedInvalid, deniedIssuer, deniedRights, deniedExists}
