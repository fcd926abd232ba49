package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// command is one of the commands of the program.
type command struct {
	name    string
	summary string // one line
	details string
}

const serveCommand = "serve" // the default

var commands = []command{
	{serveCommand, "serve the API (the default)",
		`Serves the API until SIGTERM or SIGINT. Requests in flight then have
PAGEWRIGHT_SHUTDOWN_GRACE to finish. A second signal ends it at once.
The service log goes to standard error.`},
	{"healthcheck", "check the health of the running service",
		`Requests /health from the service that runs on this host with the same variables, at
PAGEWRIGHT_ADMIN_LISTEN if that is set. Exits with 0 if the service is healthy, otherwise
with 1.`},
	{"doctor", "test whether the store supports what the service needs",
		`Tests the store that the variables name, and leaves nothing behind. Prints a line for each
check: ok, warn (the service works, but promises or does less) or FAIL. Exits with 0 if
there is no FAIL, otherwise with 1.`},
	{"config", "print the settings in effect",
		`Prints each variable with the value in effect, and "# default" after each variable that is
not set. Redacts passwords and queries in URLs. Exits with 78 if the settings are invalid.`},
	{"version", "print the version",
		`Prints the version.`},
}

const exitStatuses = `Exit status: 0 success; 78 the command or a variable is invalid (running it again does not
help until you correct it); 1 any other failure.
`

// parseArgs returns the command, and whether its usage is asked for. The name is empty if
// the usage of the whole program is asked for.
func parseArgs(args []string) (name string, help bool, err error) {
	if len(args) == 0 {
		return serveCommand, false, nil
	}
	switch name = args[0]; {
	case name == "help" || isHelp(name):
		name, help = "", true
	case name == "-version" || name == "--version":
		name = "version"
	case !slices.ContainsFunc(commands, func(c command) bool { return c.name == name }):
		return "", false, badConfig("unknown command %s; run with -h to list all commands", name)
	}
	switch rest := args[1:]; {
	case len(rest) == 0:
		return name, help, nil
	case name != "" && len(rest) == 1 && isHelp(rest[0]):
		return name, true, nil
	}
	return name, false, badConfig("%s takes no arguments, got %q; run with -h for usage", args[0], args[1])
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

// printHelp prints the usage of a command, or of the whole program.
func printHelp(w io.Writer, name string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, c := range commands {
		if c.name == name {
			fmt.Fprintf(t, "pagewright-storage %s: %s.\n\n%s\n\n", c.name, c.summary, c.details)
			fmt.Fprintf(t, "This command has no options. Run pagewright-storage -h to list the environment variables.\n\n%s", exitStatuses)
			return t.Flush()
		}
	}
	fmt.Fprint(t, "pagewright-storage stores and serves the versioned builds of web sites.\n\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(t, "  %s\t%s\n", c.name, c.summary)
	}
	fmt.Fprintf(t, "  -h\tprint this help; after a command, print the usage of that command\n\n%s\nEnvironment variables:\n", exitStatuses)
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
