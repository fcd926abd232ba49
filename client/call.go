package client

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// call is a command with its parsed arguments.
type call struct {
	IO
	args    []string // without the options
	service *service
	json    bool // print JSON instead of text
	quiet   bool // no progress, no notes
	flags   *pflag.FlagSet

	columns func() int // width of the terminal; nil if standard error is not a terminal
	bar     *progress  // the one that is shown; may be nil
}

const commonDetails = `PAGEWRIGHT_URL is the address of the service, for example https://store.example.org; it may have
a path. PAGEWRIGHT_TOKEN is the token, or PAGEWRIGHT_TOKEN_FILE names a file that has it, which
is read again for each request. There is no option for the token, because all users of a host
can see arguments. HTTPS_PROXY, HTTP_PROXY and NO_PROXY are honoured.`

// flagSets returns the options of the command itself, and those that all commands have.
func (c Command) flagSets() (own, common *pflag.FlagSet) {
	own, common = pflag.NewFlagSet(c.Name, pflag.ContinueOnError), pflag.NewFlagSet(c.Name, pflag.ContinueOnError)
	own.SortFlags, common.SortFlags = false, false
	if c.flags != nil {
		c.flags(own)
	}
	common.String("url", "", "address `URL` of the service, instead of PAGEWRIGHT_URL")
	common.String("ca", "", "`FILE` with the certificates (PEM) that may sign that of the service, instead of those of the system")
	common.String("cert", "", "`FILE` with the client certificate (PEM)")
	common.String("key", "", "`FILE` with the private key of --cert")
	common.String("oidc", "", "get a JWT from the CI `SYSTEM` and use it as the token: github")
	common.String("oidc-audience", "pagewright", "`AUDIENCE` of that JWT")
	common.Duration("retry-for", 10*time.Minute, "repeat failed requests for this `TIME`; 0: one attempt")
	common.Bool("json", false, "print the result as JSON")
	common.BoolP("quiet", "q", false, "no progress, no notes")
	return own, common
}

// newCall parses args, which have no command.
func newCall(cmd Command, args []string, with IO) (*call, error) {
	own, common := cmd.flagSets()
	own.AddFlagSet(common)
	own.SetOutput(io.Discard)
	own.Usage = func() {}
	if err := own.Parse(args); err != nil {
		return nil, usagef("%s: %v", cmd.Name, err)
	}
	c := &call{IO: with, args: own.Args(), flags: own}
	switch n := len(c.args); {
	case n < cmd.min:
		return nil, usagef("%s: too few arguments: want %s", cmd.Name, cmd.Args)
	case n > cmd.max && cmd.max == 0:
		return nil, usagef("%s: unexpected argument %q: it takes none", cmd.Name, c.args[0])
	case n > cmd.max:
		return nil, usagef("%s: unexpected argument %q: want %s", cmd.Name, c.args[cmd.max], cmd.Args)
	}
	c.json, c.quiet = c.on("json"), c.on("quiet")
	c.columns = columnsOf(c.Stderr, c.env("TERM"))
	var err error
	c.service, err = newService(c)
	return c, err
}

// text returns the value of an option.
func (c *call) text(option string) string { return c.flags.Lookup(option).Value.String() }

// on reports whether a switch is given.
func (c *call) on(option string) bool { return c.text(option) == "true" }

// given reports whether an option is on the command line.
func (c *call) given(option string) bool { return c.flags.Changed(option) }

// duration returns the value of an option that is a duration.
func (c *call) duration(option string) time.Duration {
	d, _ := c.flags.GetDuration(option)
	return d
}

// env returns the value of a variable.
func (c *call) env(name string) string {
	value := ""
	for _, v := range c.Environ { // the last one counts, as in os/exec
		if rest, ok := strings.CutPrefix(v, name+"="); ok {
			value = rest
		}
	}
	return value
}

// warn writes a line for people to standard error.
func (c *call) warn(format string, args ...any) {
	c.bar.hide()
	fmt.Fprintf(c.Stderr, "pagewright-storage: %s\n", printable(fmt.Sprintf(format, args...)))
}

// note is warn for what --quiet suppresses.
func (c *call) note(format string, args ...any) {
	if !c.quiet {
		c.warn(format, args...)
	}
}

// result prints the result of the command: value with --json, otherwise text.
func (c *call) result(value any, text string) error {
	if !c.json {
		_, err := fmt.Fprintln(c.Stdout, text)
		return err
	}
	encoder := json.NewEncoder(c.Stdout)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}
