package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"pagewright/storage/client"
)

// command is one of the commands of the program.
type command struct {
	name    string // one word or two
	summary string // one line
	args    string // its arguments; empty: it takes none
	details string
}

// Names of commands.
const (
	serveCommand       = "serve" // the default
	tokenNewCommand    = "token new"
	accessCheckCommand = "access check"
)

var commands = []command{
	{serveCommand, "serve the API (the default)", "",
		`Serves the API until SIGTERM or SIGINT. Requests in flight then have
PAGEWRIGHT_SHUTDOWN_GRACE to finish. A second signal ends it at once.
The service log goes to standard error.`},
	{"healthcheck", "check the health of the running service", "",
		`Requests /health from the service that runs on this host with the same variables, at
PAGEWRIGHT_ADMIN_LISTEN if that is set. Exits with 0 if the service is healthy, otherwise
with 1.`},
	{"doctor", "test whether the store supports what the service needs", "",
		`Tests the store that the variables name, and leaves nothing behind. Prints a line for each
check: ok, warn (the service works, but promises or does less) or FAIL. Exits with 0 if
there is no FAIL, otherwise with 1.`},
	{pruneCommand, "remove the builds that the retention file does not keep", pruneUsage, pruneDetails},
	{verifyCommand, "compare the stored builds with their digests", verifyUsage, verifyDetails},
	{copyCommand, "copy builds, logs and labels to another store", copyUsage, copyDetails},
	{"config", "print the settings in effect", "",
		`Prints each variable with the value in effect, and "# default" after each variable that is
not set. Redacts passwords and queries in URLs. Exits with 78 if the settings are invalid.`},
	{tokenNewCommand, "make a token, and its entry for the access file", tokenNewArgs, tokenNewDetails},
	{accessCheckCommand, "say which rule of the access file allows an action", accessCheckArgs, accessCheckDetails},
	{"version", "print the version", "",
		`Prints the version.`},
}

// clientCommands talk to a service, and take none of its variables.
var clientCommands = func() (list []command) {
	for _, c := range client.Commands {
		list = append(list, command{c.Name, c.Summary, c.Args, c.Help()})
	}
	return list
}()

// allCommands are those of the service, then those that talk to one.
var allCommands = slices.Concat(commands, clientCommands)

func isClientCommand(name string) bool {
	return slices.ContainsFunc(clientCommands, func(c command) bool { return c.name == name })
}

// takesArgs reports whether the command has arguments or options of its own.
func (c command) takesArgs() bool { return c.args != "" || isClientCommand(c.name) }

const exitStatuses = `Exit status: 0 success; 2 the command or an argument is invalid; 3 not there; 4 a digest does
not match, or something is corrupt; 5 denied; 6 conflict; 7 incomplete, or something was
skipped; 78 a variable or a file of the configuration is invalid; 1 any other failure. After
2 and 78 running it again does not help until you correct it.
`

// parseArgs returns the command and its arguments, and whether its usage is asked for. The
// name is empty if the usage of the whole program is asked for.
func parseArgs(args []string) (name string, rest []string, help bool, err error) {
	if len(args) == 0 {
		return serveCommand, nil, false, nil
	}
	switch first := args[0]; {
	case first == "help" || isHelp(first):
		help, rest = true, args[1:]
	case first == "-version" || first == "--version":
		name, rest = "version", args[1:]
	default:
		c, n := findCommand(args)
		if n == 0 {
			return "", nil, false, unknownCommand(args)
		}
		name, rest = c.name, args[n:]
		if c.takesArgs() {
			return name, rest, slices.ContainsFunc(rest, isHelp), nil
		}
	}
	switch {
	case len(rest) == 0:
		return name, nil, help, nil
	case name != "" && len(rest) == 1 && isHelp(rest[0]):
		return name, nil, true, nil
	}
	return name, nil, false, usageError("%s takes no arguments, got %q", args[0], rest[0])
}

// findCommand returns the command that args begin with, and how many of args are its name: 0 if
// args name no command. Before -h the first word of the name is enough; if several commands begin
// with it, it is the name of a group.
func findCommand(args []string) (c command, words int) {
	for words := min(2, len(args)); words > 0; words-- {
		name := strings.Join(args[:words], " ")
		if i := slices.IndexFunc(allCommands, func(c command) bool { return c.name == name }); i >= 0 {
			return allCommands[i], words
		}
	}
	if group := commandsOf(args[0]); len(group) > 0 && len(args) == 2 && isHelp(args[1]) {
		if len(group) > 1 {
			return command{name: args[0]}, 1
		}
		return group[0], 1
	}
	return command{}, 0
}

// commandsOf returns the commands of two words that begin with the first one.
func commandsOf(first string) (group []command) {
	for _, c := range allCommands {
		if strings.HasPrefix(c.name, first+" ") {
			group = append(group, c)
		}
	}
	return group
}

// unknownCommand returns the error for args that name no command. If commands begin with the
// first word, the error names them.
func unknownCommand(args []string) error {
	text := "unknown command " + args[0] + "; run with -h to list all commands"
	var names []string
	for _, c := range commandsOf(args[0]) {
		names = append(names, strconv.Quote(c.name))
	}
	if n := len(names); n > 0 {
		meant := names[n-1]
		if n > 1 {
			meant = strings.Join(names[:n-1], ", ") + " or " + meant
		}
		text = fmt.Sprintf("unknown command %s; do you mean %s? Run with -h to list all commands", strings.Join(args[:min(2, len(args))], " "), meant)
	}
	return commandError{exitUsage, text}
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

// printHelp prints the usage of a command, the commands of a group, or the usage of the whole program.
func printHelp(w io.Writer, name string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, c := range allCommands {
		if c.name == name {
			fmt.Fprintf(t, "pagewright-storage %s: %s.\n\n", c.name, c.summary)
			if c.takesArgs() {
				fmt.Fprintf(t, "Usage: pagewright-storage %s\n\n%s\n\n%s", strings.TrimSpace(c.name+" "+c.args), c.details, exitStatuses)
				return t.Flush()
			}
			fmt.Fprintf(t, "%s\n\nThis command has no options. Run pagewright-storage -h to list the environment variables.\n\n%s", c.details, exitStatuses)
			return t.Flush()
		}
	}
	if group := commandsOf(name); name != "" {
		fmt.Fprintf(t, "pagewright-storage %s: %d commands. -h after one of them prints its usage.\n\n", name, len(group))
		for _, c := range group {
			fmt.Fprintf(t, "  %s\t%s\n", strings.TrimSpace(c.name+" "+c.args), c.summary)
		}
		return t.Flush()
	}
	fmt.Fprint(t, "pagewright-storage stores and serves the versioned builds of web sites.\n\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(t, "  %s\t%s\n", c.name, c.summary)
	}
	fmt.Fprint(t, "  -h\tprint this help; after a command, print the usage of that command\n\nCommands that talk to a service:\n")
	for _, c := range clientCommands {
		fmt.Fprintf(t, "  %s\t%s\n", c.name, c.summary)
	}
	fmt.Fprintf(t, "\n%s\nEnvironment variables of these commands:\n", exitStatuses)
	for _, v := range client.Variables {
		fmt.Fprintf(t, "  %s\t%s\n", v.Name, v.Help)
	}
	fmt.Fprint(t, "\nEnvironment variables of the service, and of all other commands:\n")
	for _, v := range (&Config{}).variables() {
		value := v.defaultValue
		if value != "" {
			value = "(" + value + ")"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\n", v.name, value, v.help)
	}
	return t.Flush()
}

// isServe reports whether args start the service.
func isServe(args []string) bool { return len(args) == 0 || args[0] == serveCommand }
