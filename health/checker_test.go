package health

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A fake is a backend and the answers of its probes.
type fake struct {
	name string

	mu     sync.Mutex
	err    error         // what probes find
	delay  time.Duration // how long they take
	up     bool
	starts []time.Time // of probes
	flying int
	most   int // probes at once
}

func (f *fake) Name() string    { return f.name }
func (f *fake) Address() string { return f.name + ":1" }
func (f *fake) SetUp(up bool)   { f.mu.Lock(); defer f.mu.Unlock(); f.up = up }
func (f *fake) Up() bool        { f.mu.Lock(); defer f.mu.Unlock(); return f.up }

func (f *fake) answer(err error) { f.mu.Lock(); defer f.mu.Unlock(); f.err = err }

func (f *fake) probed() int { f.mu.Lock(); defer f.mu.Unlock(); return len(f.starts) }

func (f *fake) hang() { f.mu.Lock(); defer f.mu.Unlock(); f.delay = 24 * time.Hour }

// later lets the time pass, and everything that happens meanwhile.
func later(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// fakes is the Prober of fake backends, and records events.
type fakes struct {
	all    map[string]*fake
	events []string
}

func (f *fakes) Probe(ctx context.Context, t Target) error {
	b := f.all[t.Backend]
	b.mu.Lock()
	b.starts = append(b.starts, time.Now())
	b.flying++
	b.most = max(b.most, b.flying)
	delay, err := b.delay, b.err
	b.mu.Unlock()
	defer func() { b.mu.Lock(); b.flying--; b.mu.Unlock() }()
	select {
	case <-time.After(delay):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakes) Observe(e Event) {
	switch e.Kind {
	case Probed:
		f.events = append(f.events, e.Backend+" "+e.Result.String())
	default:
		f.events = append(f.events, fmt.Sprintf("%s %v by %v", e.Backend, e.Kind, e.Cause))
	}
}

var errRefused = syscall.ECONNREFUSED

// checked runs a Checker with the named backends inside a bubble.
func checked(t *testing.T, cfg Config, test func(t *testing.T, c *Checker, f *fakes, w []*Watch), names ...string) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakes{all: make(map[string]*fake)}
		if cfg.Observer == nil {
			cfg.Observer = f
		}
		if cfg.Prober == Prober(probedByFakes) {
			cfg.Prober = f
		}
		c := New(cfg)
		var watches []*Watch
		for _, name := range names {
			f.all[name] = &fake{name: name}
			watches = append(watches, c.Add(f.all[name]))
		}
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- c.Run(ctx) }()
		test(t, c, f, watches)
		stop()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// probedByFakes stands for the fakes that checked makes.
var probedByFakes = &fakes{}

func TestFirstProbesAreSpreadOverTheInterval(t *testing.T) {
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("b", i)
	}
	checked(t, Config{Prober: probedByFakes, Interval: time.Second}, func(t *testing.T, c *Checker, f *fakes, _ []*Watch) {
		start := time.Now()
		later(time.Second)
		synctest.Wait()
		var tenths [10]int
		for _, name := range names {
			b := f.all[name]
			if b.probed() == 0 {
				t.Fatalf("%s was not probed", name)
			}
			tenths[b.starts[0].Sub(start)*10/time.Second]++
		}
		if slices.Min(tenths[:]) < 8 || slices.Max(tenths[:]) > 12 {
			t.Errorf("probes in each tenth of the interval: %v", tenths)
		}
	}, names...)
}

func TestIntervalHasTenPercentOfJitter(t *testing.T) {
	checked(t, Config{Prober: probedByFakes, Interval: time.Second}, func(t *testing.T, c *Checker, f *fakes, _ []*Watch) {
		later(200 * time.Second)
		b := f.all["a"]
		least, most := time.Hour, time.Duration(0)
		for i := range b.starts[1:] {
			d := b.starts[i+1].Sub(b.starts[i])
			least, most = min(least, d), max(most, d)
		}
		if least < 900*time.Millisecond || least > 940*time.Millisecond || most < 1060*time.Millisecond || most > 1100*time.Millisecond {
			t.Errorf("intervals from %v to %v", least, most)
		}
	}, "a")
}

func TestIntervalIsFastWhileChanging(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: 10 * time.Second, FastInterval: time.Second, Rule: Rule{Rise: 3, Fall: 3}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, _ []*Watch) {
		b := f.all["a"]
		nextProbe := func() (after time.Duration) {
			for n := b.probed(); b.probed() == n; {
				later(100 * time.Millisecond)
			}
			return b.starts[len(b.starts)-1].Sub(b.starts[len(b.starts)-2])
		}
		later(10 * time.Second)
		for i, step := range []struct {
			err  error
			slow bool // the interval before
		}{
			{nil, true}, {errRefused, true}, {errRefused, false}, {errRefused, false}, // down
			{errRefused, true}, {nil, true}, {nil, false}, {nil, false}, // up
			{nil, true}, {errRefused, true}, {nil, false}, {nil, true},
		} {
			b.answer(step.err)
			if after := nextProbe(); (after > 2*time.Second) != step.slow {
				t.Errorf("probe %d came after %v", i, after)
			}
		}
	}, "a")
}

func TestAtMostOneProbeOfABackendRuns(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second, Timeout: 5 * time.Second, FastProbe: true, Rule: Rule{Fall: 1000}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		f.all["a"].hang()
		for range 60 {
			later(time.Second / 2)
			w[0].Report(errRefused)
		}
		b := f.all["a"]
		if b.most != 1 {
			t.Errorf("%d probes at once", b.most)
		}
		if n := b.probed(); n < 5 || n > 7 {
			t.Errorf("%d probes of 5s each in 30s", n)
		}
		if b.Up() != true || !slices.Contains(f.events, "a timeout") {
			t.Errorf("events %q", f.events)
		}
	}, "a")
}

func TestProbesAtOnceAreBounded(t *testing.T) {
	names := make([]string, 50)
	for i := range names {
		names[i] = fmt.Sprint("b", i)
	}
	var mu sync.Mutex
	running, most, total := 0, 0, 0
	prober := proberFunc(func(context.Context, Target) error {
		mu.Lock()
		running++
		total++
		most = max(most, running)
		mu.Unlock()
		time.Sleep(200 * time.Millisecond)
		mu.Lock()
		running--
		mu.Unlock()
		return nil
	})
	checked(t, Config{Prober: prober, Interval: time.Second, MaxProbes: 4}, func(t *testing.T, c *Checker, f *fakes, _ []*Watch) {
		later(10*time.Second + 100*time.Millisecond)
		if most != 4 {
			t.Errorf("%d probes at once, want 4", most)
		}
		if total < 190 { // 4 at once, 5 a second each
			t.Errorf("%d probes in 10s: the schedule stood still", total)
		}
	}, names...)
}

type proberFunc func(context.Context, Target) error

func (f proberFunc) Probe(ctx context.Context, t Target) error { return f(ctx, t) }

func TestEventsTellTheStory(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second, Rule: Rule{Rise: 2, Fall: 2, Failures: 2}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		b := f.all["a"]
		next := func() {
			n := b.probed()
			for b.probed() == n {
				later(100 * time.Millisecond)
			}
			synctest.Wait()
		}
		next()
		b.answer(errRefused)
		next()
		next()
		b.answer(syscall.EMFILE)
		next()
		b.answer(nil)
		next()
		next()
		w[0].Report(errRefused)
		w[0].Report(syscall.EMFILE)
		w[0].Report(errRefused)
		next()
		next()
		want := "a passed, a failed, a failed, a down by probe, a local, a passed, a passed, a up by probe, a down by dial, a passed, a passed, a up by probe"
		if got := strings.Join(f.events, ", "); got != want {
			t.Errorf("events\n got %s\nwant %s", got, want)
		}
	}, "a")
}

func TestInitialDownWaitsForRise(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: 10 * time.Second, FastInterval: time.Second, InitialDown: true, Rule: Rule{Rise: 2}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, _ []*Watch) {
		b := f.all["a"]
		if b.Up() {
			t.Error("up from the beginning")
		}
		later(3 * time.Second)
		if !b.Up() {
			t.Error("not up after two fast probes")
		}
	}, "a")
}

func TestFailedDialHastensTheNextProbe(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Minute, FastInterval: time.Second, FastProbe: true, Rule: Rule{Fall: 3}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		b := f.all["a"]
		later(time.Minute)
		n := b.probed()
		for b.probed() == n {
			later(time.Millisecond)
		}
		n = b.probed()
		for range 1000 { // a storm of failed dials
			w[0].Report(errRefused)
			w[0].Report(nil)
		}
		later(990 * time.Millisecond)
		if b.probed() != n {
			t.Error("probed sooner than FastInterval allows")
		}
		later(20 * time.Millisecond)
		if b.probed() != n+1 {
			t.Errorf("%d probes a fast interval after the failed dials, want 1", b.probed()-n)
		}
	}, "a")
}

func TestDialThatFailsDuringAProbeHastensTheNext(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Minute, FastInterval: time.Second, FastProbe: true}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		b := f.all["a"]
		b.mu.Lock()
		b.delay = 500 * time.Millisecond
		b.mu.Unlock()
		for b.probed() == 0 {
			later(100 * time.Millisecond)
		}
		w[0].Report(errRefused)
		later(1200 * time.Millisecond)
		if n := b.probed(); n != 2 {
			t.Errorf("%d probes, want a second one a fast interval after the first", n)
		}
	}, "a")
}

func TestNotProbedBackendComesBackOnTrial(t *testing.T) {
	cfg := Config{Rule: Rule{Failures: 3, HoldBase: time.Second, HoldMax: 4 * time.Second}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		b := f.all["a"]
		for range 3 {
			w[0].Report(errRefused)
		}
		for i, hold := range []time.Duration{1, 2, 4, 4} {
			if b.Up() {
				t.Fatalf("round %d: up after failed dials", i)
			}
			later(hold*time.Second - time.Millisecond)
			if b.Up() {
				t.Errorf("round %d: up before %ds", i, hold)
			}
			later(2 * time.Millisecond)
			if !b.Up() {
				t.Errorf("round %d: not up after %ds", i, hold)
			}
			w[0].Report(errRefused) // one is enough on trial
		}
		later(5 * time.Second)
		w[0].Report(nil) // trial passed
		w[0].Report(errRefused)
		w[0].Report(errRefused)
		if !b.Up() {
			t.Error("down by two failures after a passed trial")
		}
	}, "a", "b")
}

func TestBackendAloneIsTriedEveryBase(t *testing.T) {
	cfg := Config{Rule: Rule{Failures: 1, HoldBase: time.Second, HoldMax: time.Minute}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		for i := range 10 {
			w[0].Report(errRefused)
			later(1001 * time.Millisecond)
			if !f.all["a"].Up() {
				t.Fatalf("round %d: not tried after a second: %+v", i, c.Status())
			}
		}
	}, "a")
}

func TestLocalFailuresNeverTakeDown(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second, Rule: Rule{Fall: 1, Failures: 1}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		b := f.all["a"]
		b.answer(fmt.Errorf("dial: %w", syscall.EMFILE))
		for range 100 {
			w[0].Report(syscall.EADDRNOTAVAIL)
			w[0].Report(context.Canceled)
			later(time.Second)
		}
		if !b.Up() || slices.Contains(f.events, "a down by probe") {
			t.Errorf("down: %+v", c.Status())
		}
	}, "a")
}

func TestPausedBackendIsNeitherProbedNorJudged(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Minute, FastInterval: time.Second, Rule: Rule{Fall: 1, Failures: 1}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		b := f.all["a"]
		later(2 * time.Minute)
		w[0].Pause()
		w[0].Pause()
		n := b.probed()
		b.answer(errRefused)
		w[0].Report(errRefused)
		later(10 * time.Minute)
		if b.probed() != n || !b.Up() {
			t.Errorf("%d probes while paused; up %v", b.probed()-n, b.Up())
		}
		w[0].Resume()
		w[0].Resume()
		later(time.Second)
		if b.probed() == n || b.Up() {
			t.Errorf("%d probes in the fast interval after the pause; up %v", b.probed()-n, b.Up())
		}
	}, "a")
}

func TestRemovedBackendIsLeftAlone(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second, Timeout: time.Minute, Rule: Rule{Fall: 1, Failures: 1}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		b := f.all["a"]
		b.hang()
		later(5 * time.Second) // a probe runs
		w[0].Remove()
		w[0].Remove()
		w[0].Resume()
		synctest.Wait()
		if b.flying != 0 {
			t.Error("the probe of a removed backend goes on")
		}
		n := b.probed()
		w[0].Report(errRefused)
		later(time.Minute)
		if b.probed() != n || !b.Up() || len(c.Status()) != 1 {
			t.Errorf("%d probes after Remove, up %v, status %+v", b.probed()-n, b.Up(), c.Status())
		}
	}, "a", "b")
}

func TestConfigureKeepsWhatIsKnown(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second, Rule: Rule{Fall: 2}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		f.all["a"].answer(errRefused)
		later(10 * time.Second)
		before := c.Status()
		c.Configure(Config{Prober: f, Observer: f, Interval: time.Hour, FastInterval: time.Hour})
		after := c.Status()
		if before[0].State != after[0].State || f.all["a"].Up() {
			t.Errorf("state before %+v, after %+v", before[0].State, after[0].State)
		}
		n := f.all["a"].probed() + f.all["b"].probed()
		later(time.Hour)
		if got := f.all["a"].probed() + f.all["b"].probed() - n; got < 2 || got > 4 {
			t.Errorf("%d probes of two backends in the new interval", got)
		}
		c.Configure(Config{Observer: f}) // no probes any more: what was down is tried
		later(time.Minute)
		if !f.all["a"].Up() {
			t.Error("not tried when probes were turned off")
		}
	}, "a", "b")
}

func TestConfiguringOftenDoesNotPutProbesOff(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		for range 100 {
			later(100 * time.Millisecond)
			c.Configure(Config{Prober: f, Interval: time.Second})
		}
		for _, b := range f.all {
			if n := b.probed(); n < 8 || n > 12 {
				t.Errorf("%s: %d probes in 10s at one a second", b.name, n)
			}
		}
	}, "a", "b", "c")
}

func TestStatus(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second, Rule: Rule{Rise: 2, Fall: 2, HoldBase: time.Minute, HoldMax: time.Minute}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		idle := New(cfg)
		idle.Add(&fake{name: "a"})
		if s := idle.Status(); s[0].Text != "" || s[0].Result != NoResult || !s[0].LastProbe.IsZero() {
			t.Errorf("before the first probe: %+v", s[0])
		}
		b := f.all["a"]
		b.mu.Lock()
		b.delay = 10 * time.Millisecond
		b.mu.Unlock()
		later(5 * time.Second)
		if s := c.Status(); s[0].Text != "passed" || s[0].State.Passed < 3 || s[0].Took != b.delay || time.Since(s[0].LastProbe) > time.Second+200*time.Millisecond {
			t.Errorf("after some probes: %+v", s[0])
		}
		for _, err := range []error{errRefused, nil, errRefused} {
			b.answer(err)
			later(5 * time.Second)
		}
		s := c.Status()
		if s[0].State.Up || s[0].Text != errRefused.Error() || s[0].Result != Failed || !s[0].Held {
			t.Errorf("when flapping: %+v", s[0])
		}
		if s[0].Backend != "a" || s[1].Backend != "b" || s[1].Address != "b:1" || !s[1].State.Up {
			t.Errorf("order or names: %+v", s)
		}
	}, "a", "b")
}

func TestObserverMayCallTheChecker(t *testing.T) {
	var c *Checker
	var seen []bool
	cfg := Config{Prober: proberFunc(func(context.Context, Target) error { return errRefused }), Interval: time.Second, Rule: Rule{Fall: 1}}
	cfg.Observer = ObserverFunc(func(e Event) {
		if e.Kind == WentDown {
			seen = append(seen, c.Status()[0].State.Up)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c = New(cfg)
		b := &fake{name: "a"}
		c.Add(b)
		ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
		defer stop()
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		if !slices.Equal(seen, []bool{false}) {
			t.Errorf("seen %v", seen)
		}
	})
}

func TestObserverIsCalledInOrderAndByOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		first := make(chan struct{})
		c := New(Config{Rule: Rule{Failures: 1}, Observer: ObserverFunc(func(e Event) {
			if len(seen) == 0 {
				<-first
			}
			seen = append(seen, e.Backend)
		})})
		a, b := &fake{name: "a"}, &fake{name: "b"}
		wa, wb := c.Add(a), c.Add(b)
		go wa.Report(errRefused)
		synctest.Wait()
		wb.Report(errRefused) // does not wait for the observer
		if a.Up() || c.Status()[1].State.Up {
			t.Errorf("state %+v", c.Status())
		}
		close(first)
		synctest.Wait()
		if !slices.Equal(seen, []string{"a", "b"}) || b.Up() {
			t.Errorf("seen %q, b up %v", seen, b.Up())
		}
	})
}

func TestSecondRunIsRefused(t *testing.T) {
	checked(t, Config{Prober: probedByFakes}, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		synctest.Wait()
		if err := c.Run(t.Context()); err == nil {
			t.Error("a second Run runs")
		}
	}, "a")
}

func TestRunEndsWithItsProbes(t *testing.T) {
	cfg := Config{Prober: probedByFakes, Interval: time.Second, Timeout: time.Hour, Rule: Rule{Fall: 1}}
	checked(t, cfg, func(t *testing.T, c *Checker, f *fakes, w []*Watch) {
		f.all["a"].hang()
		later(10 * time.Second)
		if f.all["a"].flying != 1 {
			t.Fatal("no probe runs")
		}
		t.Cleanup(func() { // after Run
			if f.all["a"].flying != 0 || !f.all["a"].Up() {
				t.Errorf("%d probes run after Run; up %v", f.all["a"].flying, f.all["a"].Up())
			}
		})
	}, "a")
}

func TestDeadlineOfRunIsNoTimeoutOfAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakes{all: map[string]*fake{"a": {name: "a"}}}
		f.all["a"].hang()
		c := New(Config{Prober: f, Observer: f, Interval: time.Second, Timeout: time.Hour, Rule: Rule{Fall: 1}})
		c.Add(f.all["a"])
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		if !slices.Equal(f.events, []string{"a local"}) || !f.all["a"].Up() {
			t.Errorf("events %q", f.events)
		}
	})
}

// Everything at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	f := &fakes{all: map[string]*fake{}}
	for i := range 20 {
		name := fmt.Sprint("b", i)
		f.all[name] = &fake{name: name}
	}
	var observed sync.Mutex // Observe is never called twice at once
	c := New(Config{Prober: f, Interval: time.Millisecond, Rule: Rule{Fall: 1, Failures: 2, Rise: 1}, FastProbe: true, MaxProbes: 5,
		Observer: ObserverFunc(func(Event) {
			if !observed.TryLock() {
				t.Error("Observe is called twice at once")
				return
			}
			observed.Unlock()
		})})
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var work sync.WaitGroup
	for _, b := range f.all {
		work.Go(func() {
			w := c.Add(b)
			for i := range 200 {
				switch i % 7 {
				case 0:
					b.answer(errRefused)
				case 1:
					b.answer(nil)
				case 2:
					w.Pause()
				case 3:
					w.Resume()
				case 4:
					c.Status()
				default:
					w.Report(errRefused)
					w.Report(nil)
				}
			}
			w.Remove()
		})
	}
	work.Wait()
	stop()
	all.Wait()
	if len(c.Status()) != 0 || len(c.due) != 0 || c.up != 0 || c.flying != 0 {
		t.Errorf("left over: %d watches, %d due, %d up, %d flying", len(c.Status()), len(c.due), c.up, c.flying)
	}
}

func TestReportOfSuccessDoesNotAllocate(t *testing.T) {
	w := New(Config{Prober: TCP{}}).Add(&fake{name: "a"})
	if n := testing.AllocsPerRun(1000, func() { w.Report(nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkReportSuccess(b *testing.B) {
	w := New(Config{Prober: TCP{}}).Add(&fake{name: "a"})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w.Report(nil)
		}
	})
}
