// Package client has the commands that talk to a running service. It imports nothing of the
// service: it knows only the HTTP API.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
)

// Exit statuses, the same as those of the other commands of the program.
const (
	exitFailure    = 1
	exitUsage      = 2 // a wrong argument or option
	exitAbsent     = 3
	exitCorrupt    = 4 // bytes do not have their digest
	exitDenied     = 5
	exitConflict   = 6
	exitIncomplete = 7
	exitConfig     = 78 // a wrong variable
)

// Error is an error with an exit status. Without a text nothing is to be reported: the
// command has printed why.
type Error struct {
	Status int
	text   string
	cause  error
}

func (e *Error) Error() string { return e.text }

// Unwrap returns the cause, or nil.
func (e *Error) Unwrap() error { return e.cause }

func errorf(status int, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{status, err.Error(), errors.Unwrap(err)}
}

func usagef(format string, args ...any) error {
	return errorf(exitUsage, "%s; run with -h for usage", fmt.Sprintf(format, args...))
}

// configf is errorf for what is wrong with a variable.
func configf(format string, args ...any) error { return errorf(exitConfig, format, args...) }

// Command is a command of the program.
type Command struct {
	Name    string // one word or two
	Summary string // one line
	Args    string // its arguments
	Details string // how it works, and examples

	min, max int                     // how many arguments it takes
	flags    func(fs *pflag.FlagSet) // declares its own options; nil: it has none
	run      func(ctx context.Context, c *call) error
}

// Commands are all commands, in the order of the help.
var Commands = []Command{
	pushCommand,
	pullCommand,
	versionsCommand,
	sitesCommand,
	labelSetCommand,
	labelRemoveCommand,
	labelListCommand,
	labelRollbackCommand,
	logCommand,
	removeCommand,
}

// Variables are the environment variables of the commands. The service ignores them.
var Variables = []Variable{
	{"PAGEWRIGHT_URL", "address of the service, for example https://store.example.org; it may have a path"},
	{"PAGEWRIGHT_TOKEN", "token; or a JWT of an issuer that the service knows"},
	{"PAGEWRIGHT_TOKEN_FILE", "file that has the token; it is read again for each request"},
}

// Variable is an environment variable.
type Variable struct{ Name, Help string }

// Help returns the details with all options.
func (c Command) Help() string {
	own, common := c.flagSets()
	text := c.Details + "\n\n"
	if own.HasFlags() {
		text += "Options:\n" + usages(own) + "\n"
	}
	return text + "Options of all commands that talk to a service:\n" + usages(common) + "\n" + commonDetails
}

// usages describes options. A switch is shown without the values that it may have.
func usages(fs *pflag.FlagSet) string {
	const values = "[=true|false]"
	return strings.ReplaceAll(fs.FlagUsages(), values, strings.Repeat(" ", len(values)))
}

// IO is what a command may use of its process.
type IO struct {
	Environ        []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Version        string // of the program
}

// Run runs the command with that name. An error is an *Error if its exit status is not
// exitFailure. Run stops early when ctx ends.
func Run(ctx context.Context, name string, args []string, with IO) error {
	// Without this Go ends the process when a write to standard output or error fails with EPIPE:
	// the exit status would be another, and a temporary file would stay. The channel is never read.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	i := slices.IndexFunc(Commands, func(c Command) bool { return c.Name == name })
	if i < 0 {
		return usagef("unknown command %q", name)
	}
	c, err := newCall(Commands[i], args, with)
	if err != nil {
		return err
	}
	defer c.service.close()
	if err := Commands[i].run(ctx, c); err != nil {
		return final(ctx, err)
	}
	return nil
}
