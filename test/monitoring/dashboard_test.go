package monitoring

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
)

// dashboard is the part of Grafana's model that dashboard.json uses. A member that is not
// here is an error.
type dashboard struct {
	Title, UID, Description, Refresh     string
	SchemaVersion, Version, GraphTooltip int
	Editable                             bool
	Time                                 struct{ From, To string }
	Tags                                 []string
	Templating                           struct{ List []variable }
	Panels                               []panel
}

type source struct{ Type, UID string }

type variable struct {
	Name, Label, Type, AllValue string
	Query                       any
	Datasource                  *source
	IncludeAll, Multi           bool
	Refresh, Sort               int
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               *source
	GridPos                  struct{ H, W, X, Y int }
	Collapsed                bool
	Panels                   []panel
	FieldConfig              struct {
		Defaults struct {
			Unit, NoValue string
			Min, Max      *float64
			Decimals      *int
			Thresholds    *struct {
				Mode  string
				Steps []struct {
					Color string
					Value *float64
				}
			}
			Custom map[string]any
		}
		Overrides []any
	}
	Options map[string]any
	Targets []struct {
		RefID, Expr, LegendFormat string
		Instant                   bool
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(string(read(t, dashFile))))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestTheDashboardIsComplete: it begins with whether the service is well, can be narrowed to
// one replica, and each panel has a place, a unit, a description, and the chosen data source.
func TestTheDashboardIsComplete(t *testing.T) {
	d := readDashboard(t)
	names := []string{}
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
	}
	if !slices.Equal(names, []string{"datasource", "job", "instance"}) {
		t.Errorf("the variables are %v", names)
	}
	first, used, ids, titles := []string{}, map[[2]int]int{}, map[int]bool{}, map[string]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || titles[p.Title+p.Type] && p.Type != "stat" {
			t.Errorf("the panel %d (%s) has no title, or the id or title of another", p.ID, p.Title)
		}
		ids[p.ID], titles[p.Title+p.Type] = true, true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				place := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if used[place] != 0 || place[0] >= 24 {
					t.Errorf("the panel %d is at the place of the panel %d, or outside", p.ID, used[place])
				}
				used[place] = p.ID
			}
		}
		if p.Type == "stat" {
			first = append(first, p.Title)
		}
		checkPanel(t, p)
	}
	if want := []string{"Replicas up", "Ready", "Writable", "Free space", "Failed requests, last hour", "Slowest of 100 calls"}; !slices.Equal(first, want) || d.Panels[1].Type != "stat" {
		t.Errorf("the first row is %q, not %q", first, want)
	}
}

func checkPanel(t *testing.T, p panel) {
	t.Helper()
	if p.Type == "row" {
		return
	}
	units := []string{"Bps", "bytes", "ops", "percentunit", "reqps", "s", "short"}
	if !slices.Contains(units, p.FieldConfig.Defaults.Unit) || p.Description == "" {
		t.Errorf("%s: the unit is %q, the description %q", p.Title, p.FieldConfig.Defaults.Unit, p.Description)
	}
	if p.Datasource == nil || *p.Datasource != (source{"prometheus", "${datasource}"}) {
		t.Errorf("%s: the data source is %v", p.Title, p.Datasource)
	}
	if th := p.FieldConfig.Defaults.Thresholds; p.Type == "stat" && (th == nil || len(th.Steps) < 2) {
		t.Errorf("%s has no thresholds", p.Title)
	}
	refs := map[string]bool{}
	for _, target := range p.Targets {
		if refs[target.RefID] || target.LegendFormat == "" {
			t.Errorf("%s: the target %s has no legend, or the name of another", p.Title, target.RefID)
		}
		refs[target.RefID] = true
	}
	if len(refs) == 0 {
		t.Errorf("%s has no query", p.Title)
	}
}

// TestTheDashboardAsksForWhatTheServiceExports: each query is valid, and asks for the chosen
// job and instance. None about requests counts probes and scrapes.
func TestTheDashboardAsksForWhatTheServiceExports(t *testing.T) {
	exported := exportedSeries(t)
	chosen := map[string]string{"job": "$job", "instance": "$instance"}
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			query := strings.ReplaceAll(target.Expr, "$__rate_interval", "1m")
			checkQuery(t, p.Title, query, exported, chosen)
			for _, route := range []string{"ready", "metrics"} {
				if countsRoute(query, route) {
					t.Errorf("%s counts the route %s: %s", p.Title, route, query)
				}
			}
		}
	}
}

// countsRoute reports whether a query counts the requests of a route.
func countsRoute(query, route string) (counts bool) {
	expr, err := promQL.ParseExpr(query)
	if err != nil {
		return false // reported by checkQuery
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok || !regexp.MustCompile(`^pagewright_http_request(s_total|_duration)`).MatchString(selector.Name) {
			return nil
		}
		all := true
		for _, m := range selector.LabelMatchers {
			all = all && (m.Name != "route" || m.Matches(route))
		}
		counts = counts || all
		return nil
	})
	return counts
}
