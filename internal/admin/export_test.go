package admin

import "time"

// Private is what gives a unix socket its mode before bind.
var Private = private

// Hurry gives everything d of time.
func (s *Server) Hurry(d time.Duration) { s.limits = limits{d, d, d, d, d} }
