package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

const (
	streamQueue = 1024 // events that a stream may be behind
	heartbeat   = 15 * time.Second
)

// Events hands events to those who follow /api/v1/events. It is a [proxy.Observer] that never waits for a follower: one
// that is more than 1024 events behind is told so and cut off. The zero value is ready; methods may be called concurrently.
type Events struct {
	mu      sync.Mutex
	streams map[*stream]struct{}
	n       atomic.Int32 // of streams: nobody follows most of the time, and then Observe costs one load
}

type stream struct{ queue chan happening }

// A happening is a session event, or something else with its data.
type happening struct {
	name    string
	data    any // nil: session
	session proxy.Event
}

// Observe passes e on.
func (v *Events) Observe(e proxy.Event) {
	if v.n.Load() > 0 {
		v.send(happening{name: e.Kind.String(), session: e})
	}
}

// Publish passes on something that is no event of a session or a listener, such as a backend that went down or a reload.
// The name is one word; data must be fit for encoding/json and must not change any more.
func (v *Events) Publish(name string, data any) {
	if v.n.Load() > 0 {
		v.send(happening{name: name, data: data})
	}
}

func (v *Events) send(h happening) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := range v.streams {
		select {
		case s.queue <- h:
		default:
			v.drop(s)
		}
	}
}

// follow returns a new stream, and nil if there are too many. The caller must leave it.
func (v *Events) follow() *stream {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.streams) >= maxStreams {
		return nil
	}
	s := &stream{make(chan happening, streamQueue)}
	if v.streams == nil {
		v.streams = map[*stream]struct{}{}
	}
	v.streams[s] = struct{}{}
	v.n.Add(1)
	return s
}

func (v *Events) leave(s *stream) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drop(s)
}

// drop ends a stream that has not ended yet; v.mu is held.
func (v *Events) drop(s *stream) {
	if _, ok := v.streams[s]; ok {
		delete(v.streams, s)
		v.n.Add(-1)
		close(s.queue)
	}
}

// events serves server-sent events until the client leaves, is too slow, or done is.
func (s *Server) events(done context.Context, w http.ResponseWriter, r *http.Request) {
	if s.Events == nil {
		unsupported(w, "events")
		return
	}
	st := s.Events.follow()
	if st == nil {
		w.Header().Set("Retry-After", "5")
		fail(w, http.StatusServiceUnavailable, fmt.Sprintf("more than %d clients follow events", maxStreams))
		return
	}
	defer s.Events.leave(st)

	c := http.NewResponseController(w)
	flush := func() bool { return c.Flush() == nil }
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, ": tproxy\n\n")
	if !flush() {
		return
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-done.Done():
			return
		case <-r.Context().Done():
			return
		case <-beat.C:
			_ = c.SetWriteDeadline(time.Now().Add(s.limits.write))
			fmt.Fprint(w, ": alive\n\n")
		case h, ok := <-st.queue:
			_ = c.SetWriteDeadline(time.Now().Add(s.limits.write))
			if !ok {
				fmt.Fprintf(w, "event: dropped\ndata: {\"error\":\"more than %d events behind\"}\n\n", streamQueue)
				flush()
				return
			}
			if !h.write(w) {
				return
			}
			if len(st.queue) > 0 {
				continue // one flush for what has gathered
			}
		}
		if !flush() {
			return
		}
	}
}

func (h happening) write(w http.ResponseWriter) bool {
	data := h.data
	if data == nil {
		data = newSessionEvent(&h.session)
	}
	b, err := json.Marshal(data)
	if err != nil {
		b, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", h.name, b)
	return err == nil
}

// A sessionEvent is an event with the keys that the journal uses; what the kind does not know is left out.
type sessionEvent struct {
	Time        time.Time `json:"time"`
	Event       string    `json:"event"`
	Listener    string    `json:"listener"`
	Session     string    `json:"session,omitempty"`
	Client      string    `json:"client,omitempty"`
	Claimed     string    `json:"client_claimed,omitempty"`
	Local       string    `json:"local,omitempty"`
	Group       string    `json:"group,omitempty"`
	Backend     string    `json:"backend,omitempty"`
	Attempts    int       `json:"attempts,omitempty"`
	SNI         string    `json:"sni,omitempty"`
	Up          uint64    `json:"up,omitempty"`
	Down        uint64    `json:"down,omitempty"`
	WaitMS      float64   `json:"wait_ms,omitempty"`
	ConnectMS   float64   `json:"connect_ms,omitempty"`
	FirstByteMS float64   `json:"first_byte_ms,omitempty"`
	DurationMS  float64   `json:"duration_ms,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Error       string    `json:"error,omitempty"`
}

func newSessionEvent(e *proxy.Event) sessionEvent {
	s := sessionEvent{
		Time: e.Time, Event: e.Kind.String(), Listener: e.Listener,
		Client: e.Client.String(), Claimed: e.Claimed.String(), Local: e.Local.String(),
		Group: e.Group, Backend: e.Backend, Attempts: e.Attempts, SNI: e.SNI, Up: e.Up, Down: e.Down,
		WaitMS: millis(e.Wait), ConnectMS: millis(e.Connect), FirstByteMS: millis(e.FirstByte), DurationMS: millis(e.Duration),
		Reason: e.Reason.String(),
	}
	if e.ID != 0 {
		s.Session = strconv.FormatUint(uint64(e.ID), 10)
	}
	if e.Err != nil {
		s.Error = e.Err.Error()
	}
	return s
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
