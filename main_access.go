package main

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
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
)

// errDenied: the command has printed that the action is denied, and why.
var errDenied = commandError{status: exitDenied}

// parseFlags parses args, in which flags and other arguments may stand in any order, and
// returns the other arguments.
func parseFlags(flags *flag.FlagSet, args []string) (others []string, err error) {
	flags.SetOutput(io.Discard)
	for {
		if err := flags.Parse(args); err != nil {
			return nil, usageError("%s: %s", flags.Name(), shortened(err.Error()))
		}
		if flags.NArg() == 0 {
			return others, nil
		}
		others, args = append(others, flags.Arg(0)), flags.Args()[1:]
	}
}

// shortened returns a text without its middle if it quotes a long argument.
func shortened(text string) string {
	const most, head = 512, 128
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:head]+"…"+text[len(text)-(most-head):], "")
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
	if _, err := parseAccessFile(file); err != nil {
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
