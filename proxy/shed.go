package proxy

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// shedStep is the least time between two looks at all sessions, and shedPace how much longer it is than a look took: where there are many,
// looking costs a fiftieth of a processor.
const (
	shedStep = 50 * time.Millisecond
	shedPace = 50
)

// shedQuiet is how long a session must have been quiet to be ended before the window is over.
const shedQuiet = time.Second

// A candidate is a session that may be shed.
type candidate struct {
	session *session
	quiet   time.Duration
}

// Shed ends the sessions that match, with that reason: evenly over the window and the quietest first. Those in which bytes move are left
// until the window is over; 0 ends all at once. It returns when none is left that matches, new ones included, or ctx is done.
func (s *Server) Shed(ctx context.Context, window time.Duration, match func(SessionInfo) bool, why Reason) {
	if s.init() != nil {
		return
	}
	end := clock() + window
	var left []candidate
	for {
		looked := clock()
		var ending int
		left, ending = s.candidates(left[:0], match)
		if len(left)+ending == 0 {
			return
		}
		remaining := end - clock()
		if remaining <= 0 || len(left) == 0 {
			for _, c := range left {
				c.session.kill(why)
			}
			if !pause(ctx, shedStep) {
				return
			}
			continue
		}
		step := min(max(remaining/time.Duration(len(left)+1), shedStep, shedPace*(clock()-looked)), remaining)
		if !pause(ctx, step) {
			return
		}
		slices.SortFunc(left, func(a, b candidate) int { return cmp.Compare(b.quiet, a.quiet) })
		share := max(int(int64(len(left))*int64(step)/int64(remaining)), 1)
		for _, c := range left[:share] {
			if c.session.quiet() >= shedQuiet {
				c.session.kill(why)
			}
		}
		clear(left) // sessions that have ended are not held in memory
	}
}

// candidates appends the sessions that match, and counts those that match and are about to end.
func (s *Server) candidates(left []candidate, match func(SessionInfo) bool) (_ []candidate, ending int) {
	for x := range s.open.all() {
		i := x.info()
		switch {
		case !match(i):
		case x.killed.Load() != 0:
			ending++
		default:
			left = append(left, candidate{x, i.Quiet})
		}
	}
	return left, ending
}

// quiet is how long no byte has moved; 0 while there is no backend.
func (x *session) quiet() (d time.Duration) {
	x.locked(func() {
		if x.link != nil {
			d = x.link.Quiet()
		}
	})
	return d
}

// pause returns false when ctx is done first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
