package main

// client stands here until the listener computes it once for each connection.
func (c *conn) client() string { return peerOf(c).String() }
