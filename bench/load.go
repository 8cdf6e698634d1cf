//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	messageSize = 64
	// settle is how long a load runs before it is measured, or the time that it is measured if that is shorter.
	settle = 300 * time.Millisecond
	// idleSettle is how long idle sessions are quiet before they are measured, or five times as long as that if it is shorter: a proxy may have something
	// to do when they are a second old.
	idleSettle = 2500 * time.Millisecond
	// patience bounds every wait for a byte.
	patience = 20 * time.Second
)

// A load goes to address, where proxy listens; proxy is nil where there is none.
type load struct {
	address string
	proxy   *process
}

// A measurement is what one case cost through one target. Fields that a case does not measure are zero.
type measurement struct {
	units         float64 // messages, connections, GB or sessions
	elapsed       time.Duration
	cpu           time.Duration   // of the proxy
	latencies     []time.Duration // sorted
	residentEach  float64         // bytes a session
	descriptorsOf float64         // a session
}

// A scenario is one case of the benchmark.
type scenario struct {
	name      string
	unit      string // what measurement.units counts, in the singular
	loops     int    // of the proxy
	bothCores bool   // the proxy, the load and the backend share two cores; without it the proxy has one and the others the other
	paced     bool   // the rate is given, so that latencies can be compared
	run       func(load) (measurement, error)
}

// pacedRate is in messages a second over all sessions: a quarter of what one loop carries.
const pacedRate = 5000

// scale is the number of sessions of the cases that show growth, against the first.
var scale = []int{64, 1000, 9000}

// allCases are in the order of the tables. In all of them with several sessions every session is active, one like the other: there is no crowd that only
// waits, except in idle.
func allCases(window time.Duration, streamed int64, idle int) []scenario {
	fast := func(n int) func(load) (measurement, error) {
		return func(l load) (measurement, error) { return messages(l, n, 0, window) }
	}
	paced := func(n int) func(load) (measurement, error) {
		return func(l load) (measurement, error) { return messages(l, n, pacedRate, window) }
	}
	connect := func(l load) (measurement, error) { return connections(l, 16, window) }
	stream := func(role byte, n int) func(load) (measurement, error) {
		return func(l load) (measurement, error) { return streams(l, role, n, streamed) }
	}
	cases := []scenario{{name: "messages-1", unit: "message", loops: 1, run: fast(1)}}
	for _, n := range scale {
		cases = append(cases, scenario{name: fmt.Sprintf("messages-%d", n), unit: "message", loops: 1, run: fast(n)})
	}
	for _, n := range scale {
		cases = append(cases, scenario{name: fmt.Sprintf("paced-%d", n), unit: "message", loops: 1, paced: true, run: paced(n)})
	}
	cases = append(cases,
		scenario{name: "connect-16", unit: "connection", loops: 1, run: connect},
		scenario{name: "up-1", unit: "GB", loops: 1, run: stream(roleSink, 1)},
		scenario{name: "up-8", unit: "GB", loops: 1, run: stream(roleSink, 8)},
		scenario{name: "down-1", unit: "GB", loops: 1, run: stream(roleSource, 1)},
		scenario{name: "down-8", unit: "GB", loops: 1, run: stream(roleSource, 8)},
		scenario{name: fmt.Sprintf("idle-%d", idle), unit: "session", loops: 1, run: func(l load) (measurement, error) { return idleSessions(l, idle, window) }},
	)
	for _, loops := range []int{1, 2} {
		for _, c := range []scenario{
			{name: "messages-64", unit: "message", run: fast(64)},
			{name: "connect-16", unit: "connection", run: connect},
			{name: "down-8", unit: "GB", run: stream(roleSource, 8)},
		} {
			c.name, c.loops, c.bothCores = fmt.Sprintf("loops%d-%s", loops, c.name), loops, true
			cases = append(cases, c)
		}
	}
	return append(cases, scenario{name: "loops2-paced-64", unit: "message", loops: 2, bothCores: true, paced: true, run: paced(64)})
}

// dial connects and asks for a role.
func (l load) dial(role byte) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", l.address, patience)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{role}); err != nil {
		c.Close()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// A message is sent and must come back as it was.
type message struct{ out, in [messageSize]byte }

func (m *message) exchange(c net.Conn, n uint64) error {
	binary.BigEndian.PutUint64(m.out[:], n)
	if _, err := c.Write(m.out[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, m.in[:]); err != nil {
		return err
	}
	if m.in != m.out {
		return errors.New("the echo differs from the message")
	}
	return nil
}

// open opens n echo sessions with one round trip each, so that both directions of each have carried bytes.
func (l load) open(n int) (sessions []*net.TCPConn, err error) {
	sessions = make([]*net.TCPConn, n)
	errs := make([]error, min(n, 64))
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			var m message
			for i := w; i < n; i += len(errs) {
				c, err := l.dial(roleEcho)
				if err != nil {
					errs[w] = err
					return
				}
				sessions[i] = c
				c.SetDeadline(time.Now().Add(patience))
				if err := m.exchange(c, uint64(i)); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := firstOf(errs); err != nil {
		closeAll(sessions)
		return nil, err
	}
	return sessions, nil
}

// firstOf is the first error, with the number of all.
func firstOf(errs []error) error {
	errs = slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%d errors, the first: %w", len(errs), errs[0])
}

func closeAll(sessions []*net.TCPConn) {
	for _, c := range sessions {
		if c != nil {
			c.Close()
		}
	}
}

// A phase tells the workers of a load whether what they do counts.
type phase struct{ atomic.Int32 }

const (
	warming = iota
	counting
	stopping
)

// observe lets a load run warm, then counts for a window, and returns what the proxy used in it.
func (p *phase) observe(proxy *process, window time.Duration) (cpu, elapsed time.Duration, err error) {
	time.Sleep(min(settle, window))
	before, err1 := proxy.use()
	start := time.Now()
	p.Store(counting)
	time.Sleep(window)
	p.Store(stopping)
	elapsed = time.Since(start)
	after, err2 := proxy.use()
	return after.cpu - before.cpu, elapsed, errors.Join(err1, err2)
}

// messages exchanges messages on n sessions at once: as fast as answers come, or at a rate of messages a second in all. At a rate, a latency begins when
// the message was due, not when it could be sent.
func messages(l load, n, rate int, window time.Duration) (m measurement, err error) {
	sessions, err := l.open(n)
	if err != nil {
		return m, err
	}
	defer closeAll(sessions)
	var (
		state     phase
		wg        sync.WaitGroup
		latencies = make([][]time.Duration, n)
		errs      = make([]error, n)
		begin     = time.Now()
	)
	for i, c := range sessions {
		wg.Go(func() {
			c.SetDeadline(begin.Add(settle + window + patience))
			var msg message
			var interval time.Duration
			if rate > 0 {
				interval = time.Second * time.Duration(n) / time.Duration(rate)
			}
			due := begin.Add(interval * time.Duration(i) / time.Duration(n))
			for k := uint64(0); ; k++ {
				if rate > 0 {
					time.Sleep(time.Until(due))
				} else {
					due = time.Now()
				}
				if state.Load() == stopping {
					return
				}
				if errs[i] = msg.exchange(c, k); errs[i] != nil {
					return
				}
				if state.Load() == counting {
					latencies[i] = append(latencies[i], time.Since(due))
				}
				due = due.Add(interval)
			}
		})
	}
	m.cpu, m.elapsed, err = state.observe(l.proxy, window)
	wg.Wait()
	return m.timed(latencies), firstOf(append(errs, err))
}

// connections opens a connection, exchanges a message, closes it in order and begins again, n at once.
func connections(l load, n int, window time.Duration) (m measurement, err error) {
	var (
		state     phase
		wg        sync.WaitGroup
		latencies = make([][]time.Duration, n)
		errs      = make([]error, n)
	)
	for i := range n {
		wg.Go(func() {
			var msg message
			for k := uint64(0); state.Load() != stopping; k++ {
				start := time.Now()
				if errs[i] = l.visit(&msg, k); errs[i] != nil {
					return
				}
				if state.Load() == counting {
					latencies[i] = append(latencies[i], time.Since(start))
				}
			}
		})
	}
	m.cpu, m.elapsed, err = state.observe(l.proxy, window)
	wg.Wait()
	return m.timed(latencies), firstOf(append(errs, err))
}

// visit is one connection with one message, ended by FIN from both sides.
func (l load) visit(m *message, n uint64) error {
	c, err := l.dial(roleEcho)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := m.exchange(c, n); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(m.in[:]); n != 0 || err != io.EOF {
		return fmt.Errorf("%d bytes and %v in place of the end", n, err)
	}
	return nil
}

// timed adds the latencies of all sessions; each is one unit.
func (m measurement) timed(latencies [][]time.Duration) measurement {
	m.latencies = slices.Concat(latencies...)
	slices.Sort(m.latencies)
	m.units = float64(len(m.latencies))
	return m
}

// streams moves total bytes over n connections, up to a sink or down from a source, until all of them have arrived.
func streams(l load, role byte, n int, total int64) (m measurement, err error) {
	var wg sync.WaitGroup
	errs := make([]error, n)
	before, err1 := l.proxy.use()
	start := time.Now()
	for i := range n {
		wg.Go(func() { errs[i] = l.stream(role, uint64(total)/uint64(n)) })
	}
	wg.Wait()
	m.elapsed = time.Since(start)
	after, err2 := l.proxy.use()
	m.cpu = after.cpu - before.cpu
	m.units = float64(total) / 1e9
	return m, firstOf(append(errs, err1, err2))
}

func (l load) stream(role byte, count uint64) error {
	c, err := l.dial(role)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	var arrived uint64
	switch role {
	case roleSink:
		for left := count; left > 0; {
			c.SetDeadline(time.Now().Add(patience))
			n, err := c.Write(buf[:min(left, uint64(len(buf)))])
			if err != nil {
				return err
			}
			left -= uint64(n)
		}
		if err := c.CloseWrite(); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf[:8]); err != nil {
			return err
		}
		arrived = binary.BigEndian.Uint64(buf)
	case roleSource:
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, count)); err != nil {
			return err
		}
		for {
			c.SetDeadline(time.Now().Add(patience))
			n, err := c.Read(buf)
			arrived += uint64(n)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	if arrived != count {
		return fmt.Errorf("%d of %d bytes arrived", arrived, count)
	}
	return nil
}

// idleSessions holds n quiet sessions and says what one of them holds, and what CPU the proxy uses for all of them in a window.
func idleSessions(l load, n int, window time.Duration) (m measurement, err error) {
	// What the first sessions make a process hold for good is not the price of a session.
	first, err := l.open(64)
	if err != nil {
		return m, err
	}
	closeAll(first)
	empty, err := l.proxy.quiet()
	if err != nil {
		return m, err
	}
	sessions, err := l.open(n)
	if err != nil {
		return m, err
	}
	defer closeAll(sessions)
	time.Sleep(min(idleSettle, 5*window))
	before, err := l.proxy.use()
	if err != nil {
		return m, err
	}
	time.Sleep(window)
	after, err := l.proxy.use()
	if err != nil {
		return m, err
	}
	runtime.KeepAlive(sessions)
	m.units, m.elapsed, m.cpu = float64(n), window, after.cpu-before.cpu
	m.residentEach = float64(after.resident-empty.resident) / float64(n)
	m.descriptorsOf = float64(after.descriptors-empty.descriptors) / float64(n)
	return m, nil
}
