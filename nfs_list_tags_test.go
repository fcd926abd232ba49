package main

import "testing"

// The tags are in a copy: lists without them share versions that have none.
func TestTagsAreNotInTheCache(t *testing.T) {
	n, all := openWithBuilds(t)
	for range 3 {
		tagged, err := n.ListVersionsPage("s", VersionQuery{Tags: true})
		if err != nil || len(tagged.Versions) != len(all) {
			t.Fatal(tagged, err)
		}
		plain, err := n.ListVersionsPage("s", VersionQuery{})
		if err != nil || plain.Tag != tagged.Tag {
			t.Fatalf("the tags of the pages are %q and %q, %v", plain.Tag, tagged.Tag, err)
		}
		for i, v := range plain.Versions {
			if v.etag != "" || v.logTag != "" || tagged.Versions[i].logTag == "" {
				t.Errorf("%+v, tagged: %+v", v, tagged.Versions[i])
			}
		}
	}
}
