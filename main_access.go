package main

import (
	"bufio"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	tokenNewArgs    = "--name NAME --allow ACTIONS --sites GLOBS [--expires WHEN]"
	tokenNewDetails = `Prints a new token, and on the next line its entry for "tokens" of the access file. The
entry has only the SHA-256 of the token: nobody can print the token again.

  --name NAME      whom the token is for; the service log names it
  --allow ACTIONS  separated by commas: read, create, write, log, label, delete, admin
  --sites GLOBS    separated by commas; * is any run of characters
  --expires WHEN   a number of days (90d), a duration (12h), or a time (2027-01-31T00:00:00Z);
                   without it the token never expires

Example:
  pagewright-storage token new --name ci-shop --allow create,log --sites 'shop-*' --expires 90d`

	accessCheckArgs    = "[FILE] [--action ACTION [--site SITE] [--token TOKEN | --jwt JWT | --cert FILE]]"
	accessCheckDetails = `Prints which rule of an access file allows an action, or why none does. Without --action it
only checks the file. FILE is PAGEWRIGHT_ACCESS_FILE unless you name one.

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

// The exit statuses of commands that take arguments, besides those of all commands.
const (
	exitUsage  = 2
	exitDenied = 5
)

// commandError is an error that has an exit status of its own. Without a text nothing is
// reported: the command has printed why.
type commandError struct {
	status int
	text   string
}

func (e commandError) Error() string { return e.text }

func usageError(format string, args ...any) error {
	return commandError{exitUsage, fmt.Sprintf(format, args...) + "; run with -h for usage"}
}

// errDenied: the command has printed that the action is denied, and why.
var errDenied = commandError{status: exitDenied}

// parseFlags parses args, in which flags and other arguments may stand in any order, and
// returns the other arguments.
func parseFlags(flags *flag.FlagSet, args []string) (others []string, err error) {
	flags.SetOutput(io.Discard)
	for {
		if err := flags.Parse(args); err != nil {
			return nil, usageError("%s: %v", flags.Name(), err)
		}
		if flags.NArg() == 0 {
			return others, nil
		}
		others, args = append(others, flags.Arg(0)), flags.Args()[1:]
	}
}

// splitList splits a list that is separated by commas. An empty list has no values.
func splitList(list string) []string {
	values := []string{} // not nil, which is null in JSON
	for value := range strings.SplitSeq(list, ",") {
		if value = strings.TrimSpace(value); value != "" {
			values = append(values, value)
		}
	}
	return values
}

// tokenEntry is an entry of "tokens" in the access file.
type tokenEntry struct {
	Name    string     `json:"name"`
	SHA256  []string   `json:"sha256"`
	Allow   []string   `json:"allow"`
	Sites   []string   `json:"sites"`
	Expires *time.Time `json:"expires,omitzero"`
}

// tokenNew is the command "token new".
func tokenNew(args []string, stdout io.Writer, now time.Time) error {
	flags := flag.NewFlagSet(tokenNewCommand, flag.ContinueOnError)
	name, allow := flags.String("name", "", ""), flags.String("allow", "", "")
	sites, expires := flags.String("sites", "", ""), flags.String("expires", "", "")
	others, err := parseFlags(flags, args)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return usageError("%s: unexpected argument %q", tokenNewCommand, others[0])
	}
	for _, f := range []string{"name", "allow", "sites"} {
		if flags.Lookup(f).Value.String() == "" {
			return usageError("%s: --%s is missing", tokenNewCommand, f)
		}
	}
	until, err := parseExpiry(*expires, now)
	if err != nil {
		return err
	}
	token := newToken()
	sum, _ := tokenHash(token)
	entry, err := json.Marshal(tokenEntry{*name, []string{hex.EncodeToString(sum[:])}, splitList(*allow), splitList(*sites), until})
	if err != nil {
		return err
	}
	// The service must accept the entry. Its members have the names of the flags.
	file := fmt.Appendf(nil, `{"tokens":[%s]}`, entry)
	if _, err := parseAccessFile(file, now); err != nil {
		return usageError("%s: --%s", tokenNewCommand, strings.TrimPrefix(err.Error(), "tokens[0]."))
	}
	_, err = fmt.Fprintf(stdout, "%s\n%s\n", token, entry)
	return err
}

// parseExpiry returns the time that --expires means; nil if it is empty.
func parseExpiry(text string, now time.Time) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	until, err := time.Parse(time.RFC3339, text)
	if err != nil {
		var after time.Duration
		if number, ok := strings.CutSuffix(text, "d"); ok {
			var days int
			days, err = strconv.Atoi(number)
			until = now.AddDate(0, 0, days)
		} else {
			after, err = time.ParseDuration(text)
			until = now.Add(after)
		}
	}
	switch until = until.UTC().Truncate(time.Second); {
	case err != nil:
		return nil, usageError("--expires %q: must be a number of days (90d), a duration (12h) or a time (2027-01-31T00:00:00Z)", text)
	case !until.After(now), until.Year() > 9999: // RFC 3339 has four digits
		return nil, usageError("--expires %q: must be a time from now to the year 9999", text)
	}
	return &until, nil
}

// checkArgs are the arguments of "access check".
type checkArgs struct {
	file             string
	action           action // 0: only check the file
	site             string // empty: what concerns all sites
	token, jwt, cert string
}

// parseCheckArgs reads what is - from stdin.
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
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	i := slices.Index(actionNames[:], *name)
	if i >= 0 {
		c.action = 1 << i
	}
	c.file = accessFileOf(others, environ)
	credentials := 0
	for _, f := range []string{"token", "jwt", "cert"} {
		if given[f] {
			credentials++
		}
	}
	for _, secret := range []*string{&c.token, &c.jwt} {
		if *secret == "-" {
			if *secret, err = readSecret(stdin); err != nil {
				return c, fmt.Errorf("standard input: %w", err)
			}
		}
	}
	switch {
	case len(others) > 1: // not repeated in the error: it may be a secret
		return c, usageError("%s takes one FILE, got %d arguments", accessCheckCommand, len(others))
	case c.file == "":
		return c, usageError("%s: name the file, or set PAGEWRIGHT_ACCESS_FILE", accessCheckCommand)
	case credentials > 1:
		return c, usageError("%s: give only one of --token, --jwt and --cert", accessCheckCommand)
	case credentials == 1 && c.token+c.jwt+c.cert == "": // an empty variable: not the same as an anonymous client
		return c, usageError("%s: the token, JWT or certificate is empty", accessCheckCommand)
	case !given["action"] && len(given) > 0:
		return c, usageError("%s: --action is missing", accessCheckCommand)
	case given["action"] && i < 0:
		return c, usageError("--action %q: must be one of %s", *name, strings.Join(actionNames[:], ", "))
	case given["action"] && c.site == "" && c.action != actionAdmin:
		return c, usageError("--action %s: --site is missing", *name)
	case c.site != "" && checkID(c.site) != nil:
		return c, usageError("--site %q: must be the id of a site, not a glob", c.site)
	}
	return c, nil
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
	policy, err := parseAccessFile(data, now)
	if err != nil {
		return badConfig("%s: %w", c.file, err)
	}
	if c.action == 0 {
		_, err := fmt.Fprintf(stdout, "%s is valid\n", c.file)
		return err
	}
	who, err := identifyOnce(c, policy, now, log)
	if refused, ok := errors.AsType[*accessError](err); ok && refused.reason != deniedIssuer {
		fmt.Fprintf(stdout, "denied (%s): %s\n", refused.reason, refused.text)
		return errDenied
	}
	if err != nil {
		return err
	}
	return reportDecision(stdout, policy, who, c)
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
		_, err := fmt.Fprintf(w, "allowed: %s, %s, by %s\n", name, what, describeRule(rule))
		return err
	}
	fmt.Fprintf(w, "denied: %s, %s: no rule allows it\n", name, what)
	if c.cert != "" && who == nil {
		fmt.Fprintf(w, "  no entry of \"certificates\" fits the certificate, or it is not valid now\n")
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

// describeRule returns the place of a rule and what it allows.
func describeRule(r *accessRule) string {
	return fmt.Sprintf("%s (%s on %s)", r.place, r.allow, strings.Join(r.sites, ", "))
}
