package main

import "testing"

// What a list of sites shows, and with what the ids of these sites begin.
func TestAccessScope(t *testing.T) {
	rule := func(allow action, sites ...string) accessRule { return accessRule{allow: allow, sites: sites} }
	for _, c := range []struct {
		what      string
		own       []accessRule
		anonymous []accessRule
		prefix    string
		has       string // of shop-a shop-b blog public, separated by spaces; none: -
	}{
		{"no rule", nil, nil, "", "-"},
		{"no right to see", []accessRule{rule(actionCreate|actionWrite|actionLog|actionLabel|actionDelete, "*")}, nil, "", "-"},
		{"read", []accessRule{rule(actionRead, "shop-*")}, nil, "shop-", "shop-a shop-b"},
		{"read among others", []accessRule{rule(actionWrite|actionRead, "shop-*")}, nil, "shop-", "shop-a shop-b"},
		{"admin", []accessRule{rule(actionAdmin, "*")}, nil, "", "shop-a shop-b blog public"},
		{"admin on one", []accessRule{rule(actionAdmin, "blog")}, nil, "blog", "blog"},
		{"one site", []accessRule{rule(actionRead, "shop-a")}, nil, "shop-a", "shop-a"},
		{"two sites", []accessRule{rule(actionRead, "shop-a", "shop-b")}, nil, "shop-", "shop-a shop-b"},
		{"two rules", []accessRule{rule(actionRead, "shop-a"), rule(actionAdmin, "shop-b*")}, nil, "shop-", "shop-a shop-b"},
		{"of which only one counts", []accessRule{rule(actionRead, "shop-a"), rule(actionWrite, "blog")}, nil, "shop-a", "shop-a"},
		{"nothing in common", []accessRule{rule(actionRead, "shop-a", "blog")}, nil, "", "shop-a blog"},
		{"one is the beginning of the other", []accessRule{rule(actionRead, "shop-*", "shop-a*")}, nil, "shop-", "shop-a shop-b"},
		{"in the other order", []accessRule{rule(actionRead, "shop-a*", "shop-*")}, nil, "shop-", "shop-a shop-b"},
		{"the end of an id", []accessRule{rule(actionRead, "*-a")}, nil, "", "shop-a"},
		{"the middle of an id", []accessRule{rule(actionRead, "s*-b")}, nil, "s", "shop-b"},
		{"anonymous", nil, []accessRule{rule(actionRead, "public")}, "public", "public"},
		{"anonymous and own", []accessRule{rule(actionRead, "shop-b")}, []accessRule{rule(actionRead, "public")}, "", "shop-b public"},
		{"anonymous without a right to see", []accessRule{rule(actionRead, "shop-b")}, []accessRule{rule(actionLog, "*")}, "shop-b", "shop-b"},
	} {
		policy := &accessPolicy{anonymous: c.anonymous}
		who := &actor{rules: c.own}
		if c.own == nil {
			who = nil
		}
		scope, some := policy.scope(who)
		has := ""
		for _, site := range []string{"shop-a", "shop-b", "blog", "public"} {
			if some && scope.has(site) {
				has += " " + site
			}
		}
		if some == (c.has == "-") || some && (has != " "+c.has || scope.prefix() != c.prefix) {
			t.Errorf("%s: %v,%s with the prefix %q", c.what, some, has, scope.prefix())
		}
	}
	var all *accessScope
	if !all.has("a") || all.prefix() != "" {
		t.Error("without access control some sites are missing")
	}
}
