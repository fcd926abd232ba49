package main

import (
	"encoding/json"
	"os"
	"slices"
)

// sample is one measurement of one server. Samples of one round were taken one
// right after the other, so that their ratio says more than their values.
type sample struct {
	Load   string             `json:"load"`   // what was done
	X      float64            `json:"x"`      // its size: connections, bytes, builds
	Server string             `json:"server"` // to whom
	Round  int                `json:"round"`
	Values map[string]float64 `json:"values"`
}

// results is a whole run, as it is kept in JSON.
type results struct {
	Machine map[string]string `json:"machine"`
	Quick   bool              `json:"quick"`
	Seconds float64           `json:"seconds"`
	Samples []sample          `json:"samples"`
}

func (r *results) add(load string, x float64, server string, round int, values map[string]float64) {
	r.Samples = append(r.Samples, sample{load, x, server, round, values})
}

// values are those of every round, by round.
func (r *results) values(load string, x float64, server, metric string) map[int]float64 {
	byRound := map[int]float64{}
	for _, s := range r.Samples {
		if v, ok := s.Values[metric]; ok && s.Load == load && s.X == x && s.Server == server {
			byRound[s.Round] = v
		}
	}
	return byRound
}

// median is that of the rounds; ok is false if there are none.
func (r *results) median(load string, x float64, server, metric string) (m float64, ok bool) {
	var all []float64
	for _, v := range r.values(load, x, server, metric) {
		all = append(all, v)
	}
	return median(all), len(all) > 0
}

// ratio is the median over the rounds of a's value over b's in the same round.
func (r *results) ratio(load string, x float64, metric, a, b string) (m float64, ok bool) {
	var all []float64
	of := r.values(load, x, b, metric)
	for round, v := range r.values(load, x, a, metric) {
		if w := of[round]; w > 0 {
			all = append(all, v/w)
		}
	}
	return median(all), len(all) > 0
}

// xs are the sizes that were measured of load, in order; servers the servers, as met.
func (r *results) xs(load string) (xs []float64) {
	for _, s := range r.Samples {
		if s.Load == load && !slices.Contains(xs, s.X) {
			xs = append(xs, s.X)
		}
	}
	slices.Sort(xs)
	return xs
}

func (r *results) servers(load string) (names []string) {
	for _, s := range r.Samples {
		if s.Load == load && !slices.Contains(names, s.Server) {
			names = append(names, s.Server)
		}
	}
	return names
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func (r *results) save(path string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
