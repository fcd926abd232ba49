//go:build integration

package container

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The commands with which the pages start a container do that, and what they publish serves
// the API.
func TestContainersOfThePages(t *testing.T) {
	build(t)
	must(t, docker, "tag", image, "pagewright-storage")
	t.Cleanup(func() { run(docker, "rm", "-f", "pages"); run(docker, "volume", "rm", "pagewright") })
	for i, page := range []string{"README.md", "docs/operations.md"} {
		text, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		commands := regexp.MustCompile(`(?m)^docker run (?:.*\\\n)*.*$`).FindAllString(string(text), -1)
		starts := slices.IndexFunc(commands, func(c string) bool { return strings.HasSuffix(c, " pagewright-storage") }) // not doctor
		if starts < 0 {
			t.Errorf("%s: no command starts a container: %q", page, commands)
			continue
		}
		command := commands[starts]
		// In the background, under a name of its own.
		command = regexp.MustCompile(` --name \S+| -d\b| --restart \S+`).ReplaceAllString(command, "")
		must(t, "sh", "-euc", strings.Replace(command, "docker run", "docker run -d --name pages", 1))
		healthy(t, "pages").tour(t, fmt.Sprint("build-", i)) // they share a volume
		must(t, docker, "rm", "-f", "pages")
	}
}
