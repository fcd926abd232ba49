package main

import "errors"

var errPending = errors.New("pending")

type buildLock struct{}

func (n *nfs) lockBuild(siteID, dir, buildID string, exclusive bool) (*buildLock, error) {
	return nil, errPending
}
func (l *buildLock) release()     {}
func (l *buildLock) alive() error { return errPending }

func (n *nfs) WriteLog(siteID string, entry LogEntry) error   { return errPending }
func (n *nfs) ListVersions(siteID string) ([]*Version, error) { return nil, errPending }
func (n *nfs) ListVersionsPage(siteID string, q VersionQuery) (*VersionPage, error) {
	return nil, errPending
}
