package main

import "time"

// ArrivalTeller is a store in which CreatedAt of a version can be older than its arrival in the
// store, because a copy keeps times.
type ArrivalTeller interface {
	// ArrivedAt returns when the artifact of the build, or if it has none its log, was put into
	// the store, by the store's clock. It fails with ErrNotFound.
	ArrivedAt(siteID, buildID string) (time.Time, error)
}

// Leaser is a store in which one of several processes can do a job.
type Leaser interface {
	// TryLease takes the lease of that name, a word of the service, if nobody holds it;
	// otherwise ok is false. A lease ends by release, when its process or host is gone, or after
	// ttl. It only saves work: two holders at once must do no harm.
	TryLease(name string, ttl time.Duration) (release func(), ok bool, err error)
}

// ClockTeller is a store that has a clock of its own.
type ClockTeller interface {
	// StoreTime returns the time of the store's clock. It may write a file and remove it again.
	StoreTime() (time.Time, error)
}
