package admin

import "time"

// Private is what gives a unix socket its mode before bind.
var Private = private

// Hurry gives everything d of time.
func (s *Server) Hurry(d time.Duration) { s.limits = limits{d, d, d, d, d} }

// HurryEnd gives d of time to requests that run when the server ends, and everything else enough.
func (s *Server) HurryEnd(d time.Duration) {
	s.limits = limits{header: time.Minute, read: time.Minute, write: time.Minute, idle: time.Minute, end: d}
}
