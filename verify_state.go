package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	verifyStatus       = "verify" // the name of the state in the store
	verifyStatusOfPart = "verify-part"
	verifyMaxFindings  = 100     // findings that the state has
	verifyMaxState     = 1 << 20 // bytes of a state that is read
)

// verifyState is what the store keeps of the latest run, in JSON, while it runs and when it has
// ended.
type verifyState struct {
	Started  time.Time       `json:"started"`
	Finished time.Time       `json:"finished,omitzero"` // zero: it runs, or was killed
	Complete bool            `json:"complete"`          // it came to the end
	Error    string          `json:"error,omitempty"`   // why it did not
	Options  verifyOptions   `json:"options"`
	Counts   verifyCounts    `json:"counts"`
	Findings []verifyFinding `json:"findings"` // the first verifyMaxFindings
	Position verifyPosition  `json:"position"` // where a resumed run begins
	Passed   verifyPassed    `json:"passed"`   // what is before Position
}

// verifyCounts counts builds by their result, and what else was found.
type verifyCounts struct {
	Sites          int64 `json:"sites"`
	OK             int64 `json:"ok"`
	Corrupt        int64 `json:"corrupt"`
	Changed        int64 `json:"changed"`
	Unknown        int64 `json:"unknown"`
	Filled         int64 `json:"filled"`
	Skipped        int64 `json:"skipped"`         // with sites that could not be listed
	Rebound        int64 `json:"rebound"`         // of those that are ok
	DamagedDigests int64 `json:"damaged_digests"` // builds whose digest cannot be read
	DamagedLogs    int64 `json:"damaged_logs"`
	Foreign        int64 `json:"foreign"` // files or objects that are not of the service
	Bytes          int64 `json:"bytes"`   // that were read
}

// of returns the count of a result.
func (c *verifyCounts) of(result string) *int64 {
	switch result {
	case resultOK:
		return &c.OK
	case resultCorrupt:
		return &c.Corrupt
	case resultChanged:
		return &c.Changed
	case resultUnknown:
		return &c.Unknown
	case resultFilled:
		return &c.Filled
	case resultDamagedDigest:
		return &c.DamagedDigests
	case resultDamagedLog:
		return &c.DamagedLogs
	case resultForeign:
		return &c.Foreign
	}
	return &c.Skipped
}

// builds returns the number of builds that have a result.
func (c *verifyCounts) builds() int64 {
	return c.OK + c.Corrupt + c.Changed + c.Unknown + c.Filled + c.DamagedDigests + c.Skipped
}

// bad reports whether something is wrong with what is stored.
func (c *verifyCounts) bad() bool { return c.Corrupt+c.Changed+c.DamagedDigests+c.DamagedLogs > 0 }

// verifyPosition is a place in the order in which builds are verified.
type verifyPosition struct {
	After  string `json:"after,omitempty"`  // the latest site that is done; not set if Site is
	Site   string `json:"site,omitempty"`   // the site that is being verified
	Cursor string `json:"cursor,omitempty"` // of its latest build that is done
}

// verifyPassed is how much is done, also of what was not read.
type verifyPassed struct {
	Builds int64 `json:"builds"`
	Bytes  int64 `json:"bytes"`
}

// begin sets the state of a new run, or, to resume, that of the latest run if it did not come
// to the end and had the same options. It reports whether it resumes.
func (v *verifier) begin(resume bool, now time.Time) (resumed bool, err error) {
	v.state = verifyState{Started: now.UTC(), Options: v.options, Findings: []verifyFinding{}}
	if !resume {
		return false, nil
	}
	old, err := v.latest()
	switch {
	case errors.Is(err, ErrNotFound):
		return false, nil
	case errors.Is(err, ErrDamaged):
		v.report.noState(err)
		return false, nil
	case err != nil:
		return false, err
	case old.Complete || !old.Options.equal(v.options):
		return false, nil
	case old.isNew():
		v.state.Started = old.Started
	case old.Position.valid():
		old.Finished, old.Error = time.Time{}, ""
		v.state, v.readBefore = old, old.Counts.Bytes
	default:
		return false, nil
	}
	return true, nil
}

// latest returns the state of the latest run. It fails with ErrNotFound if there is none, and
// with ErrDamaged if it cannot be used.
func (v *verifier) latest() (s verifyState, err error) {
	keeper, ok := v.store.(StatusKeeper)
	if !ok {
		return s, ErrNotFound
	}
	data, err := keeper.ReadStatus(v.options.status())
	if err == nil && len(data) > verifyMaxState {
		err = fmt.Errorf("%w: it has %d bytes", ErrDamaged, len(data))
	}
	if err == nil {
		if err = json.Unmarshal(data, &s); err != nil {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	return s, err
}

// isNew reports whether the run has not done any build or site.
func (s *verifyState) isNew() bool {
	return s.Position == verifyPosition{} && s.Passed == verifyPassed{}
}

// valid reports whether p can be of a run that was stopped, and was not new.
func (p verifyPosition) valid() bool {
	return p.Site != "" && p.After == "" && checkID(p.Site) == nil || p.Site == "" && p.After != "" && checkID(p.After) == nil
}

// ended returns the state of a run that has ended with err, or that hangs and is given up.
func (v *verifier) ended(err error) verifyState {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.state
	if s.Finished.IsZero() {
		s.Finished, s.Error = time.Now().UTC(), oneLine(err)
	}
	return s
}

// saveRegularly keeps the state in the store until ctx ends.
func (v *verifier) saveRegularly(ctx context.Context) {
	tick := time.NewTicker(verifySaveEvery)
	defer tick.Stop()
	for v.save(); ; v.save() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// save keeps the state in the store. If that fails, the run goes on: what it finds is reported
// anyway.
func (v *verifier) save() {
	keeper, ok := v.store.(StatusKeeper)
	if !ok || v.readOnly {
		return
	}
	v.mu.Lock()
	data, err := json.MarshalIndent(v.safe, "", " ")
	v.mu.Unlock()
	if err == nil {
		err = keeper.WriteStatus(v.options.status(), append(data, '\n'))
	}
	v.report.saved(err)
}

// add counts a finding and reports it.
func (v *verifier) add(f verifyFinding) error {
	v.update(func(s *verifyState) {
		*s.Counts.of(f.Result)++
		if f.notable() && len(s.Findings) < verifyMaxFindings {
			s.Findings = append(s.Findings, f)
		}
	})
	return v.report.finding(f)
}
