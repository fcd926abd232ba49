package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// doctor tests whether the store does what the service relies on, and writes a line
// for each result: ok, warn (the service works, and promises or does less) or FAIL.
// It fails if there is a FAIL, and leaves nothing behind in the store. foreign is that
// of parseConfig.
func doctor(ctx context.Context, store Backend, foreign []string, w io.Writer) error {
	c, ok := store.(checker)
	if !ok {
		return errors.New("doctor does not support this backend")
	}
	found := make(chan checkResult)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(found)
		send := func(r checkResult) {
			select {
			case found <- r:
			case <-ctx.Done():
			}
		}
		if len(foreign) > 0 {
			send(checkResult{what: "variables", err: errors.New(foreignVariables(foreign)), warning: true})
		}
		c.runChecks(send)
	}()
	return report(ctx, found, w)
}

// report writes results until found is closed. It fails if a check failed, or ctx ends.
func report(ctx context.Context, found <-chan checkResult, w io.Writer) error {
	failed := 0
	hung := time.NewTimer(checkTimeout)
	defer hung.Stop()
	for {
		var f checkResult
		var more bool
		select {
		case f, more = <-found:
		case <-ctx.Done():
			return ctx.Err()
		case <-hung.C:
			f, more = checkResult{what: "next check", err: fmt.Errorf("no response from the store for %s", checkTimeout)}, false
			fmt.Fprintln(w, f)
			failed++
		}
		if !more {
			break
		}
		hung.Reset(checkTimeout)
		if f.err != nil && !f.warning {
			failed++
		}
		if _, err := fmt.Fprintln(w, f); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of the checks failed", failed)
	}
	return nil
}
