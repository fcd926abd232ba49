package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// anchorsOf are the anchors that GitHub makes of the headings of a page.
func anchorsOf(page string) map[string]bool {
	anchors := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ +(.*)$`).FindAllStringSubmatch(page, -1) {
		anchor := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		anchors[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	return anchors
}

// Links between the pages lead to files and headings that exist.
func TestLinksOfTheDocs(t *testing.T) {
	pages := []string{"README.md", "CHANGELOG.md"}
	err := filepath.WalkDir("docs", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".md") {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			links++
			path, anchor, _ := strings.Cut(link[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			switch there, err := os.ReadFile(target); {
			case anchor == "" && path != "":
				if _, err := os.Stat(target); err != nil {
					t.Errorf("%s: %v", page, err)
				}
			case err != nil:
				t.Errorf("%s: %v", page, err)
			case !anchorsOf(string(there))[anchor]:
				t.Errorf("%s: %s has no heading for #%s", page, target, anchor)
			}
		}
	}
	if links == 0 {
		t.Error("no links")
	}
}
