package main

import (
	"bufio"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	accessCheckArgs    = "[FILE] [--action ACTION [--site SITE] [--token TOKEN | --jwt JWT | --cert FILE]]"
	accessCheckDetails = `Prints which rule of an access file allows an action, or why none does. Without --action it
checks the file, and lists the tokens that have expired or do within 14 days. FILE is
PAGEWRIGHT_ACCESS_FILE unless you name one.

  --action ACTION  read, create, write, log, label, delete or admin
  --site SITE      the site; without it, --action admin is about what concerns all sites
  --token TOKEN    a token; - reads it from standard input, so that ps and the history of the
                   shell do not show it
  --jwt JWT        the JWT of an issuer, verified as the service does it: with the keys that
                   the issuer serves; - reads it from standard input
  --cert FILE      a client certificate (PEM). Its chain is not verified

Without a token, JWT or certificate the client is anonymous. Exits with 0 if the action is
allowed, with 5 if it is denied, with 78 if the file is bad, and with 1 if the keys of the
issuer cannot be read.

Examples:
  pagewright-storage access check access.json
  pagewright-storage access check access.json --action create --site shop-1 --token - <token.txt`
)

// checkArgs are the arguments of "access check".
type checkArgs struct {
	file             string
	action           action // 0: only check the file
	site             string // empty: what concerns all sites
	token, jwt, cert string
}

// parseCheckArgs returns the arguments. What is - it reads from stdin, once all is valid.
func parseCheckArgs(args, environ []string, stdin io.Reader) (c checkArgs, err error) {
	flags := flag.NewFlagSet(accessCheckCommand, flag.ContinueOnError)
	name := flags.String("action", "", "")
	flags.StringVar(&c.site, "site", "", "")
	flags.StringVar(&c.token, "token", "", "")
	flags.StringVar(&c.jwt, "jwt", "", "")
	flags.StringVar(&c.cert, "cert", "", "")
	others, err := parseFlags(flags, args)
	if err != nil {
		return c, err
	}
	if len(others) > 1 { // not repeated in the error: it may be a secret
		return c, usageError("%s takes one FILE, got %d arguments", accessCheckCommand, len(others))
	}
	if c.file = accessFileOf(others, environ); c.file == "" {
		return c, usageError("%s: name the file, or set PAGEWRIGHT_ACCESS_FILE", accessCheckCommand)
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if err := c.setAction(*name, given); err != nil {
		return c, err
	}
	return c, c.readCredentials(given, stdin)
}

// setAction sets the action, and checks it and the site.
func (c *checkArgs) setAction(name string, given map[string]bool) error {
	i := slices.Index(actionNames[:], name)
	switch {
	case !given["action"] && len(given) == 0:
		return nil
	case !given["action"]:
		return usageError("%s: --action is missing", accessCheckCommand)
	case i < 0:
		return usageError("--action %q: must be one of %s", name, strings.Join(actionNames[:], ", "))
	}
	c.action = 1 << i
	switch {
	case c.site == "" && c.action != actionAdmin:
		return usageError("--action %s: --site is missing", name)
	case c.site != "" && checkID(c.site) != nil:
		return usageError("--site %q: must be the id of a site, not a glob", c.site)
	}
	return nil
}

// readCredentials checks that there is at most one of the credentials, and reads it from stdin
// if it is -.
func (c *checkArgs) readCredentials(given map[string]bool, stdin io.Reader) (err error) {
	credentials := 0
	for _, f := range []string{"token", "jwt", "cert"} {
		if given[f] {
			credentials++
		}
	}
	if credentials > 1 {
		return usageError("%s: give only one of --token, --jwt and --cert", accessCheckCommand)
	}
	for _, secret := range []*string{&c.token, &c.jwt} {
		if *secret == "-" {
			if *secret, err = readSecret(stdin); err != nil {
				return fmt.Errorf("standard input: %w", err)
			}
		}
	}
	switch {
	case credentials == 1 && c.token+c.jwt+c.cert == "": // an empty variable: not the same as an anonymous client
		return usageError("%s: the token, JWT or certificate is empty", accessCheckCommand)
	case strings.HasPrefix(c.jwt, tokenPrefix):
		return usageError("--jwt: this is a token of the service; use --token")
	case !strings.HasPrefix(c.token, tokenPrefix) && strings.Count(c.token, ".") == 2:
		return usageError("--token: this is a JWT; use --jwt")
	}
	return nil
}

// accessFileOf returns the file that is named, or else the one of the variable.
func accessFileOf(named, environ []string) string {
	if len(named) > 0 {
		return named[0]
	}
	for _, v := range environ {
		if path, ok := strings.CutPrefix(v, envPrefix+"ACCESS_FILE="); ok {
			return path
		}
	}
	return ""
}

// readSecret returns the first line of r.
func readSecret(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 64<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

// accessCheck is the command "access check".
func accessCheck(args, environ []string, stdin io.Reader, stdout io.Writer, log *slog.Logger) error {
	c, err := parseCheckArgs(args, environ, stdin)
	if err != nil {
		return err
	}
	now := time.Now()
	data, err := readSmallFile(c.file, maxAccessFile)
	if err != nil {
		return configError{err}
	}
	policy, err := parseAccessFile(data)
	if err != nil {
		return badConfig("%s: %w", c.file, err)
	}
	if c.action == 0 {
		return reportFile(stdout, c.file, policy, now)
	}
	who, err := identifyOnce(c, policy, now, log)
	if refused, ok := errors.AsType[*accessError](err); ok && refused.reason != deniedIssuer {
		fmt.Fprintf(stdout, "denied (%s): %s\n", refused.reason, refused.text)
		if expired, ok := errors.AsType[*expiredToken](err); ok {
			fmt.Fprintf(stdout, "  %s\n", describeExpiry(expired.who, now))
		}
		if claims := claimsOf(c.jwt); claims != nil {
			printIndented(stdout, policy.explainRefusal(claims))
		}
		return errDenied
	}
	if err != nil {
		return err
	}
	return reportDecision(stdout, policy, who, c)
}

// soon is how long before a token expires "access check" lists it.
const soon = 14 * 24 * time.Hour

// reportFile prints that a file is valid, and which of its tokens have expired or soon will.
func reportFile(w io.Writer, file string, policy *accessPolicy, now time.Time) error {
	entries := slices.SortedFunc(maps.Values(policy.tokenEntries()), func(a, b *actor) int {
		return cmp.Or(a.until.Compare(b.until), cmp.Compare(a.name, b.name))
	})
	fmt.Fprintf(w, "%s is valid\n", file)
	for _, who := range entries {
		if !who.until.IsZero() && who.until.Before(now.Add(soon)) {
			fmt.Fprintf(w, "  %s\n", describeExpiry(who, now))
		}
	}
	return nil
}

// describeExpiry returns the place of a token and when it expires.
func describeExpiry(who *actor, now time.Time) string {
	verb := "expires"
	if !now.Before(who.until) {
		verb = "expired"
	}
	return fmt.Sprintf("%s %s at %s", who.rules[0].place, verb, who.until.UTC().Format(time.RFC3339))
}

// identifyOnce returns the actor whom the credentials of c prove; nil is anonymous.
func identifyOnce(c checkArgs, policy *accessPolicy, now time.Time, log *slog.Logger) (*actor, error) {
	switch {
	case c.token != "":
		return policy.token(c.token, now)
	case c.jwt != "":
		return verifyOnce(c.jwt, policy, log)
	case c.cert != "":
		data, err := readSmallFile(c.cert, 1<<20)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, usageError("--cert %s: does not begin with a certificate in PEM", c.cert)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, usageError("--cert %s: %v", c.cert, err)
		}
		return policy.certificate(cert, now), nil
	}
	return nil, nil
}

// verifyOnce verifies a JWT with keys that it reads from the issuer. log gets why that fails.
func verifyOnce(jwt string, policy *accessPolicy, log *slog.Logger) (who *actor, err error) {
	keys := newKeyStore(log)
	defer keys.close()
	keys.use(policy.issuers())
	verifier := newJWTVerifier(keys)
	for range 3 { // verify waits for a shorter time than a read may take
		who, err = verifier.verify(jwt, policy, time.Now())
		if refused, ok := errors.AsType[*accessError](err); !ok || refused.reason != deniedIssuer {
			break
		}
	}
	return who, err
}

// reportDecision prints which rule allows what c asks for, or why none does.
func reportDecision(w io.Writer, policy *accessPolicy, who *actor, c checkArgs) error {
	name, rules := "an anonymous client", []accessRule(nil)
	if who != nil {
		name, rules = who.kind+" "+strconv.Quote(who.name), who.rules
	}
	what := c.action.String() + " on site " + c.site
	if c.site == "" {
		what = c.action.String() + " on what concerns all sites"
	}
	if rule := policy.allows(who, c.action, c.site); rule != nil {
		fmt.Fprintf(w, "allowed: %s, %s, by %s\n", name, what, describeRule(rule))
		reportUnverified(w, c)
		return nil
	}
	fmt.Fprintf(w, "denied: %s, %s: no rule allows it\n", name, what)
	reportUnverified(w, c)
	if c.cert != "" && who == nil {
		fmt.Fprintf(w, "  no entry of \"certificates\" fits the certificate, or it is not valid now\n")
	}
	if c.jwt != "" {
		printIndented(w, policy.explainClaims(claimsOf(c.jwt)))
	}
	for _, r := range append(slices.Clip(rules), policy.anonymous...) {
		why := "not on this site"
		if policy.allows(&actor{rules: []accessRule{{allow: c.action, sites: r.sites}}}, c.action, c.site) != nil {
			why = "not this action"
		}
		fmt.Fprintf(w, "  %s: %s\n", describeRule(&r), why)
	}
	return errDenied
}

// reportUnverified prints what the service verifies and this command does not.
func reportUnverified(w io.Writer, c checkArgs) {
	if c.cert != "" {
		fmt.Fprintln(w, "  the chain of the certificate is not verified")
	}
}

func printIndented(w io.Writer, lines []string) {
	for _, line := range lines {
		fmt.Fprintf(w, "  %s\n", line)
	}
}

// describeRule returns the place of a rule and what it allows.
func describeRule(r *accessRule) string {
	return fmt.Sprintf("%s (%s on %s)", r.place, r.allow, strings.Join(r.sites, ", "))
}
