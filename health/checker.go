package health

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Backend is what a [Checker] decides about.
type Backend interface {
	Name() string
	Address() string
	// SetUp says whether the backend is up. It is called once by [Checker.Add], and then at each change, in order, by one
	// goroutine at a time and with no lock held.
	SetUp(up bool)
}

// Config says how the backends of one group are checked.
type Config struct {
	// Group is the name of the group, for events.
	Group string
	// Prober is the probe; nil: backends are not probed, only the dials of sessions count, and a backend that went
	// down comes back on trial (see [Rule]).
	Prober Prober
	// Interval is the time from the start of one probe of a backend to the start of the next, spread by ±10 %; 0 means 2s. A
	// probe that takes longer is followed by the next at once: there is one at a time.
	Interval time.Duration
	// FastInterval is used instead while a backend changes its state: the last results are contrary to it, but too few. It is
	// also the least time between two probes that failed dials hasten. 0 means Interval.
	FastInterval time.Duration
	// Timeout is the time for one probe from first to last, absolute; 0 means 1s.
	Timeout time.Duration
	// Rule decides. Its field Trial is set from Prober.
	Rule Rule
	// InitialDown lets backends begin as down; probes bring them up. Without a Prober it has no effect.
	InitialDown bool
	// FastProbe hastens the next probe of a backend when a session's dial failed.
	FastProbe bool
	// MaxProbes is how many probes run at once; 0 means 256. More that are due wait.
	MaxProbes int
	// Observer is told of results and changes, after SetUp; nil for nobody.
	Observer Observer
}

func (c Config) withDefaults() Config {
	c.Interval = cmp.Or(c.Interval, 2*time.Second)
	c.FastInterval = cmp.Or(c.FastInterval, c.Interval)
	c.Timeout = cmp.Or(c.Timeout, time.Second)
	c.MaxProbes = cmp.Or(c.MaxProbes, 256)
	c.Rule.Trial = c.Prober == nil
	return c
}

// A Checker decides which backends of one group are up: by probes, and by how the dials of sessions went. Make one
// with [New]. All methods may be called concurrently.
type Checker struct {
	poke chan struct{} // one token: the schedule has changed

	mu      sync.Mutex
	cfg     Config
	running bool
	watches map[*Watch]struct{}
	due     schedule
	added   int     // so far; numbers the watches, and spreads their first probes
	offset  float64 // of that spread, so that groups do not begin together
	up      int     // watches that are up
	flying  int     // probes that run

	news    []news // not yet told
	telling bool
}

// news is an event, and the backend to set when it is a change.
type news struct {
	Event
	backend Backend
}

// A Watch is one backend under a Checker, and the handle with which sessions report how their dials went.
type Watch struct {
	checker *Checker
	backend Backend
	target  Target
	number  int

	dials atomic.Int32 // state.Dials, for the quick look in Report

	// Everything below is under checker.mu.
	state   State
	due     time.Time          // of the next probe or retry
	index   int                // in the schedule; -1: not in it
	cancel  context.CancelFunc // of the running probe; nil: none runs
	hasten  bool               // a dial failed while the probe ran
	paused  bool
	removed bool
	begun   time.Time // start of the last probe
	ended   time.Time
	result  Result
	took    time.Duration
	err     error // of the last probe, or of the dial that took it down
}

// Status is what a Checker knows about one backend.
type Status struct {
	Backend   string
	Address   string
	State     State
	Held      bool // in hold-down now
	Paused    bool
	Result    Result
	Text      string // the last result in words; empty before the first
	LastProbe time.Time
	Took      time.Duration // of the last probe
}

// New returns a Checker that watches nothing yet.
func New(c Config) *Checker {
	return &Checker{
		poke:    make(chan struct{}, 1),
		cfg:     c.withDefaults(),
		watches: make(map[*Watch]struct{}),
		offset:  rand.Float64(),
	}
}

// Configure replaces the configuration and keeps what is known about the backends. Probes that run end as they began.
func (c *Checker) Configure(cfg Config) {
	c.mu.Lock()
	defer c.unlock()
	c.cfg = cfg.withDefaults()
	now := time.Now()
	for w := range c.watches {
		switch {
		case w.cancel != nil || w.paused:
		case c.cfg.Prober != nil && w.index >= 0 && w.due.Sub(now) <= c.cfg.Interval*11/10:
			// Soon enough; and configuring again and again must not put it off for ever.
		default:
			c.first(w, now)
		}
	}
}

// Add begins to watch b, and sets it up or down as the configuration says for the beginning. The first probe comes
// within an interval, at a moment that spreads the backends evenly.
func (c *Checker) Add(b Backend) *Watch {
	c.mu.Lock()
	w := &Watch{
		checker: c,
		backend: b,
		target:  Target{Group: c.cfg.Group, Backend: b.Name(), Address: b.Address()},
		number:  c.added,
		state:   State{Up: !c.cfg.InitialDown || c.cfg.Prober == nil},
		index:   -1,
	}
	c.added++
	c.mu.Unlock()
	b.SetUp(w.state.Up)

	c.mu.Lock()
	defer c.unlock()
	c.watches[w] = struct{}{}
	if w.state.Up {
		c.up++
	}
	c.first(w, time.Now())
	return w
}

// Remove ends the watch and the probe that runs for it. The backend keeps the state it has. Removing twice is no error.
func (w *Watch) Remove() {
	w.Pause()
	c := w.checker
	c.mu.Lock()
	defer c.unlock()
	w.removed = true
	delete(c.watches, w)
}

// Pause stops probes and ignores dials, until Resume. The backend keeps its state, but does not count as one that is up for
// the others of its group.
func (w *Watch) Pause() {
	c := w.checker
	c.mu.Lock()
	defer c.unlock()
	if w.paused {
		return
	}
	w.paused = true
	if w.state.Up {
		c.up--
	}
	c.unschedule(w)
	if w.cancel != nil {
		w.cancel()
	}
}

// Resume ends a Pause. The first probe comes within a fast interval. A Watch that was removed stays so.
func (w *Watch) Resume() {
	c := w.checker
	c.mu.Lock()
	defer c.unlock()
	if !w.paused || w.removed {
		return
	}
	w.paused = false
	if w.state.Up {
		c.up++
	}
	if w.cancel == nil {
		c.first(w, time.Now())
	}
	c.hurry(w)
}

// Hurry makes the next probe, the first one too, come as soon as FastInterval allows: somebody waits for what it says.
func (w *Watch) Hurry() {
	c := w.checker
	c.mu.Lock()
	defer c.unlock()
	if !w.paused {
		c.hurry(w)
	}
}

// Report tells how a session's dial of the backend ended; nil is a success. Local failures do not count, see [Local]. A success
// after a success costs one atomic load.
func (w *Watch) Report(err error) {
	if err == nil && w.dials.Load() == 0 || err != nil && Local(err) {
		return
	}
	c := w.checker
	c.mu.Lock()
	defer c.unlock()
	if w.paused {
		return
	}
	now := time.Now()
	wasUp := w.state.Up
	c.change(w, c.cfg.Rule.Dial(w.state, err == nil, now), ByDial, err, now)
	if wasUp && !w.state.Up {
		w.err = err
		if c.cfg.Prober == nil {
			c.retry(w, now)
		}
	}
	if err != nil && c.cfg.FastProbe {
		c.hurry(w)
	}
}

// hurry makes the next probe of w come as soon as FastInterval allows.
func (c *Checker) hurry(w *Watch) {
	switch soon := w.begun.Add(c.cfg.FastInterval); {
	case c.cfg.Prober == nil:
	case w.cancel != nil:
		w.hasten = true
	case soon.Before(w.due):
		c.schedule(w, soon)
	}
}

// Status is a snapshot, in the order in which the backends were added.
func (c *Checker) Status() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*Watch, 0, len(c.watches))
	for w := range c.watches {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b *Watch) int { return cmp.Compare(a.number, b.number) })
	now := time.Now()
	status := make([]Status, len(all))
	for i, w := range all {
		status[i] = Status{
			Backend:   w.target.Backend,
			Address:   w.target.Address,
			State:     w.state,
			Held:      now.Before(w.state.HeldUntil()),
			Paused:    w.paused,
			Result:    w.result,
			LastProbe: w.ended,
			Took:      w.took,
		}
		if w.err != nil {
			status[i].Text = w.err.Error()
		} else {
			status[i].Text = w.result.String()
		}
	}
	return status
}

// errRunning is returned by a second Run.
var errRunning = errors.New("health: Run is running already")

// Run probes until ctx is done, and returns nil when the last probe has ended. One goroutine keeps the schedule; there
// are others only while probes run.
func (c *Checker) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return errRunning
	}
	c.running = true
	c.mu.Unlock()

	// Probes see a cancelled context when Run ends, also if ctx ends by a deadline: that is not their timeout.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var probes sync.WaitGroup
	defer func() {
		cancel()
		probes.Wait()
		c.mu.Lock()
		c.running = false
		c.mu.Unlock()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-c.poke:
		}
		timer.Reset(c.begin(running, &probes))
	}
}

// begin starts what is due, and returns how long nothing will be.
func (c *Checker) begin(ctx context.Context, probes *sync.WaitGroup) time.Duration {
	c.mu.Lock()
	defer c.unlock()
	now := time.Now()
	for len(c.due) > 0 {
		w := c.due[0]
		if wait := w.due.Sub(now); wait > 0 {
			return wait
		}
		if c.cfg.Prober == nil {
			heap.Pop(&c.due)
			c.change(w, c.cfg.Rule.Retry(w.state, c.up == 0, now), OnTrial, nil, now)
			c.retry(w, now)
			continue
		}
		if c.flying >= c.cfg.MaxProbes {
			break // the first to end pokes
		}
		heap.Pop(&c.due)
		c.flying++
		w.begun, w.hasten = now, false
		ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
		w.cancel = cancel
		p := c.cfg.Prober
		probes.Go(func() {
			err := p.Probe(ctx, w.target)
			if err != nil && ctx.Err() == context.Canceled {
				err = context.Canceled // by Remove or by the end of Run, whatever the probe made of it
			}
			cancel()
			c.ended(w, err)
		})
	}
	return math.MaxInt64
}

// ended counts the result of a probe.
func (c *Checker) ended(w *Watch, err error) {
	c.mu.Lock()
	defer c.unlock()
	if c.flying >= c.cfg.MaxProbes {
		c.wake()
	}
	c.flying--
	w.cancel = nil
	now := time.Now()
	if w.paused {
		return
	}
	w.ended, w.took, w.result, w.err = now, now.Sub(w.begun), classify(err), err
	c.tell(w, Event{Kind: Probed, Time: now, Result: w.result, Took: w.took, Err: err})
	if c.cfg.Prober == nil { // since Configure
		c.retry(w, now)
		return
	}
	if w.result != NotRun {
		c.change(w, c.cfg.Rule.Probe(w.state, err == nil, c.up == 0, now), ByProbe, err, now)
	}
	interval := c.cfg.Interval
	if w.hasten || w.state.Changing() {
		interval = c.cfg.FastInterval
	}
	c.schedule(w, w.begun.Add(jitter(interval)))
}

// change gives w its next state, and says so if the backend came up or went down.
func (c *Checker) change(w *Watch, next State, by Cause, err error, now time.Time) {
	before := w.state.Up
	w.state = next
	w.dials.Store(int32(next.Dials))
	if next.Up == before {
		return
	}
	if next.Up {
		c.up++
		c.tell(w, Event{Kind: WentUp, Time: now, Cause: by})
	} else {
		c.up--
		c.tell(w, Event{Kind: WentDown, Time: now, Cause: by, Err: err, Hold: next.Hold})
	}
}

// first schedules w as new. Multiples of the golden ratio, taken modulo 1, are spread evenly however many there are.
func (c *Checker) first(w *Watch, now time.Time) {
	if c.cfg.Prober == nil {
		c.retry(w, now)
		return
	}
	interval := c.cfg.Interval
	if !w.state.Up || w.state.Changing() {
		interval = min(interval, c.cfg.FastInterval)
	}
	_, part := math.Modf(c.offset + float64(w.number)*math.Phi)
	c.schedule(w, now.Add(time.Duration(part*float64(interval))))
}

// retry schedules when a backend that nothing probes is tried again: when its hold-down is over, and every HoldBase until then,
// because it may be alone meanwhile. One that is up is not in the schedule.
func (c *Checker) retry(w *Watch, now time.Time) {
	if w.state.Up {
		c.unschedule(w)
		return
	}
	at := c.cfg.Rule.RetryAt(w.state, true)
	if !at.After(now) {
		at = now.Add(c.cfg.Rule.base())
	}
	if end := c.cfg.Rule.RetryAt(w.state, false); end.Before(at) {
		at = end
	}
	c.schedule(w, at)
}

// schedule sets when w is due next.
func (c *Checker) schedule(w *Watch, at time.Time) {
	w.due = at
	if w.index < 0 {
		heap.Push(&c.due, w)
	} else {
		heap.Fix(&c.due, w.index)
	}
	if w.index == 0 {
		c.wake()
	}
}

func (c *Checker) unschedule(w *Watch) {
	if w.index >= 0 {
		heap.Remove(&c.due, w.index)
	}
}

func (c *Checker) wake() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// tell queues news of w until mu is given up.
func (c *Checker) tell(w *Watch, e Event) {
	if c.cfg.Observer == nil && e.Kind == Probed {
		return
	}
	e.Group, e.Backend = w.target.Group, w.target.Backend
	c.news = append(c.news, news{e, w.backend})
}

// unlock gives up mu. News are told first, in order, with mu released; if another goroutine is at it, it tells
// these too.
func (c *Checker) unlock() {
	if !c.telling {
		c.telling = true
		for len(c.news) > 0 {
			all, o := c.news, c.cfg.Observer
			c.news = nil
			c.mu.Unlock()
			for _, n := range all {
				n.tell(o)
			}
			c.mu.Lock()
		}
		c.telling = false
	}
	c.mu.Unlock()
}

func (n news) tell(o Observer) {
	if n.Kind != Probed {
		n.backend.SetUp(n.Kind == WentUp)
	}
	if o != nil {
		o.Observe(n.Event)
	}
}

func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// A schedule is a heap of watches, the one that is due first at the top.
type schedule []*Watch

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].due.Before(s[j].due) }
func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push implements [heap.Interface].
func (s *schedule) Push(x any) {
	w := x.(*Watch)
	w.index = len(*s)
	*s = append(*s, w)
}

// Pop implements [heap.Interface].
func (s *schedule) Pop() any {
	last := len(*s) - 1
	w := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	w.index = -1
	return w
}
