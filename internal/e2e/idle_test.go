//go:build linux

package e2e

import (
	"fmt"
	"testing"
)

func TestIdleSessionsAreSmallAndLeaveNothing(t *testing.T) {
	const (
		sessions = 9000
		// Bytes of resident memory a session: some 460 where nothing else runs, up to 620 where much does, because more garbage lies between
		// what stays. One goroutine or buffer would be 2,000.
		limit = 800
	)
	backend := perform(t, "echo")
	p := startProxy(t, 20000, backend.said)
	if err := p.serves(); err != nil {
		t.Fatal(err)
	}
	active := func() int { return int(p.metric("tproxy_sessions_active", "")) }
	eventually(t, soon, "the first session is over", func() bool { return active() == 0 })
	before := p.resident()
	descriptors, goroutines := p.descriptors(), p.metric("go_goroutines", "")

	hold := func() (end func()) {
		clients := perform(t, fmt.Sprintf("hold %s %d", p.address(), sessions))
		if want := fmt.Sprintf("%d <nil>", sessions); clients.said != want {
			t.Fatalf("sessions held: %s, want %s", clients.said, want)
		}
		return clients.end
	}
	end := hold()
	if n := active(); n != sessions {
		t.Errorf("%d sessions are active, want %d", n, sessions)
	}
	if n := p.descriptors() - descriptors; n > 2*sessions+64 {
		t.Errorf("%d descriptors for %d sessions", n, sessions)
	}
	if n := p.metric("go_goroutines", "") - goroutines; n > 16 {
		t.Errorf("%v goroutines more for %d idle sessions", n, sessions)
	}
	p.quiet()
	// What setting them up took is given back once their number stands still.
	var peak, each int
	await := func() bool {
		peak = p.resident()
		each = (peak - before) / sessions
		return each <= limit
	}
	defer func() { t.Logf("%d bytes before, %d with %d sessions", before, peak, sessions) }()
	eventually(t, soon, fmt.Sprintf("an idle session has at most %d bytes of resident memory", limit), await)
	t.Logf("an idle session: %d bytes resident", each)

	back := func() {
		t.Helper()
		eventually(t, soon, "all sessions are over", func() bool { return active() == 0 })
		eventually(t, soon, "descriptors are back", func() bool { return p.descriptors() <= descriptors+8 })
		eventually(t, soon, "goroutines are back", func() bool { return p.metric("go_goroutines", "") <= goroutines+4 })
	}
	end()
	back()
	// The same again fits into the memory of the first time.
	end = hold()
	eventually(t, soon, "as many sessions again take as much again", func() bool { return p.resident() <= peak+peak/10 })
	end()
	back()
	// What the runtime keeps for itself, the collector's own tables above all, does not shrink.
	eventually(t, soon, "most of the memory is back", func() bool { return p.resident() <= before+(peak-before)*6/10 })
}
