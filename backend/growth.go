package backend

import "time"

// A growth is the slow start of a tier's candidates. For a while after it came up, a backend has only a part of its weight and of
// its limit. No timer changes weights: a balancer that chose such a backend goes on to another with the probability of the part
// that is missing, which comes to the same.
type growth struct {
	duration int64 // 0 if no slow start was under way when the view was made
	ends     int64 // when the last of them is over
	oldest   int64 // when the candidate that is furthest came up: parts are relative to its part
}

// whole is the part of a backend that is not in a slow start.
const whole = 1 << 16

func newGrowth(duration time.Duration, t *tier, now int64) growth {
	g := growth{duration: int64(duration), ends: now, oldest: now}
	for i := range t.candidates {
		rose := t.candidate(i).rose.Load()
		g.oldest = min(g.oldest, rose)
		g.ends = max(g.ends, rose+g.duration)
	}
	if g.ends == now {
		return growth{}
	}
	return g
}

func (g *growth) running() bool { return g.duration != 0 }

// part returns the part of its weight and limit that a backend has which came up at rose: never 0, up to whole.
func (g *growth) part(rose, now int64) int64 {
	age := now - rose
	if age >= g.duration {
		return whole
	}
	return max(whole/256, int64(float64(age)/float64(g.duration)*whole))
}

// limit returns how many sessions b may have now; 0 is any number.
func (g *growth) limit(b *Backend, now int64) int64 {
	limit := b.limit.Load()
	if limit == 0 || !g.running() {
		return limit
	}
	return max(1, limit*g.part(b.rose.Load(), now)/whole)
}

// admits decides for b with the probability of its part, given 16 random bits.
func (g *growth) admits(b *Backend, random uint16, now int64) bool {
	if !g.running() {
		return true
	}
	return int64(random)*g.part(g.oldest, now) < g.part(b.rose.Load(), now)*whole
}
