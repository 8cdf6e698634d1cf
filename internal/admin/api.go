package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

const (
	defaultSessions = 1000
	maxSessions     = 100_000
	maxWeight       = 256
	maxRate         = 100_000
)

// DefaultRebalanceRate is how many sessions a rebalance closes in a second when nothing else is said.
const DefaultRebalanceRate = 10

var states = []string{"ready", "drain", "maint"}

// handler routes requests. streams ends the event streams.
func (s *Server) handler(streams context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/healthz", methods{"GET": s.healthz})
	mux.Handle("/readyz", methods{"GET": s.readyz})
	mux.Handle("/metrics", methods{"GET": s.metrics})
	mux.Handle("/api/v1/status", methods{"GET": s.status})
	mux.Handle("/api/v1/listeners", methods{"GET": s.listeners})
	mux.Handle("/api/v1/groups", methods{"GET": s.groups})
	mux.Handle("/api/v1/groups/{group}", methods{"GET": s.group})
	mux.Handle("/api/v1/groups/{group}/rebalance", methods{"POST": unhurried(s.rebalance)})
	mux.Handle("/api/v1/groups/{group}/backends/{backend...}", methods{"GET": s.backend, "PATCH": s.patchBackend})
	mux.Handle("/api/v1/sessions", methods{"GET": s.sessions})
	mux.Handle("/api/v1/sessions/{id}", methods{"DELETE": s.kill})
	mux.Handle("/api/v1/explain", methods{"GET": s.explain})
	mux.Handle("/api/v1/reload", methods{"POST": unhurried(s.reload)})
	mux.Handle("/api/v1/upgrade", methods{"POST": unhurried(s.upgrade)})
	mux.Handle("/api/v1/events", methods{"GET": unhurried(func(w http.ResponseWriter, r *http.Request) { s.events(streams, w, r) })})
	if s.PProf {
		mux.Handle("/debug/pprof/", methods{"GET": pprof.Index})
		mux.Handle("/debug/pprof/cmdline", methods{"GET": pprof.Cmdline})
		mux.Handle("/debug/pprof/profile", methods{"GET": unhurried(pprof.Profile)})
		mux.Handle("/debug/pprof/symbol", methods{"GET": pprof.Symbol, "POST": pprof.Symbol})
		mux.Handle("/debug/pprof/trace", methods{"GET": unhurried(pprof.Trace)})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fail(w, http.StatusNotFound, "nothing here: see /healthz, /readyz, /metrics, /api/v1/status, /api/v1/listeners, "+
			"/api/v1/groups, /api/v1/sessions, /api/v1/events")
	})
	return s.guard(mux)
}

// methods serves one path by method. Unlike the patterns of net/http it answers other methods in JSON.
type methods map[string]http.HandlerFunc

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h, ok := m[method]; ok {
		h(w, r)
		return
	}
	allowed := make([]string, 0, len(m))
	for k := range m {
		allowed = append(allowed, k)
	}
	slices.Sort(allowed)
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	fail(w, http.StatusMethodNotAllowed, "this method is not allowed here; use "+strings.Join(allowed, " or "))
}

// unhurried serves what may take longer than the time limits of the server. The body is read within them; without
// this a request's context would be cancelled when the time to read it is over, though it was read long ago.
func unhurried(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			badBody(w, err)
			return
		}
		c := http.NewResponseController(w)
		if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})); err != nil {
			fail(w, http.StatusInternalServerError, err.Error())
			return
		}
		h(w, r)
	}
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client is gone, or our types cannot be encoded, which tests exclude
}

func fail(w http.ResponseWriter, code int, text string) {
	reply(w, code, struct {
		Error string `json:"error"`
	}{text})
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string]bool{"alive": true})
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if st := s.Control.State(); st != Ready {
		fail(w, http.StatusServiceUnavailable, string(st))
		return
	}
	reply(w, http.StatusOK, map[string]bool{"ready": true})
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	if s.Metrics == nil {
		unsupported(w, "metrics")
		return
	}
	s.Metrics.ServeHTTP(w, r)
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, s.Control.Status().complete())
}

func (s *Server) listeners(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string][]Listener{"listeners": s.Control.Status().complete().Listeners})
}

func (s *Server) groups(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string][]Group{"groups": s.Control.Status().complete().Groups})
}

func (s *Server) group(w http.ResponseWriter, r *http.Request) {
	if g := s.findGroup(w, r); g != nil {
		reply(w, http.StatusOK, g)
	}
}

func (s *Server) backend(w http.ResponseWriter, r *http.Request) {
	if b := s.findBackend(w, r); b != nil {
		reply(w, http.StatusOK, b)
	}
}

// findGroup returns the group that the path names. If there is none it answers so and returns nil.
func (s *Server) findGroup(w http.ResponseWriter, r *http.Request) *Group {
	name := r.PathValue("group")
	st := s.Control.Status().complete()
	for i := range st.Groups {
		if st.Groups[i].Name == name {
			return &st.Groups[i]
		}
	}
	fail(w, http.StatusNotFound, fmt.Sprintf("no group %q", name))
	return nil
}

// findBackend returns the backend that the path names. If there is none it answers so and returns nil.
func (s *Server) findBackend(w http.ResponseWriter, r *http.Request) *Backend {
	g := s.findGroup(w, r)
	if g == nil {
		return nil
	}
	name := r.PathValue("backend")
	for i := range g.Backends {
		if g.Backends[i].Name == name {
			return &g.Backends[i]
		}
	}
	fail(w, http.StatusNotFound, fmt.Sprintf("no backend %q in group %q", name, g.Name))
	return nil
}

// patchBackend changes what the body names, and answers with the backend as it is then. Both values are checked before one is set.
func (s *Server) patchBackend(w http.ResponseWriter, r *http.Request) {
	var change struct {
		State  *string `json:"state"`
		Weight *int    `json:"weight"`
	}
	if !decode(w, r, &change) {
		return
	}
	switch {
	case change.State == nil && change.Weight == nil:
		fail(w, http.StatusBadRequest, `nothing to change: give "state" or "weight"`)
		return
	case change.State != nil && !slices.Contains(states, *change.State):
		fail(w, http.StatusBadRequest, fmt.Sprintf("state: unknown %q (ready, drain or maint)", *change.State))
		return
	case change.Weight != nil && (*change.Weight < 0 || *change.Weight > maxWeight):
		fail(w, http.StatusBadRequest, fmt.Sprintf("weight: %d is out of range (0..%d)", *change.Weight, maxWeight))
		return
	}
	if s.findBackend(w, r) == nil {
		return
	}
	group, backend := r.PathValue("group"), r.PathValue("backend")
	var err error
	if change.Weight != nil {
		err = s.Control.SetWeight(group, backend, *change.Weight)
	}
	if err == nil && change.State != nil {
		err = s.Control.SetState(group, backend, *change.State)
	}
	switch {
	case errors.Is(err, ErrNotFound): // gone since
		fail(w, http.StatusNotFound, fmt.Sprintf("no backend %q in group %q", backend, group))
	case err != nil:
		fail(w, http.StatusConflict, err.Error())
	default:
		s.backend(w, r)
	}
}

// decode reads a body of exactly one JSON object with known keys. If it is anything else it answers so and returns false.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("there is more than one value")
		}
	}
	if err != nil {
		badBody(w, err)
	}
	return err == nil
}

func badBody(w http.ResponseWriter, err error) {
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		fail(w, http.StatusRequestEntityTooLarge, "the body is larger than 64 KiB")
		return
	}
	fail(w, http.StatusBadRequest, "body: "+err.Error())
}

// sessions lists at most limit of the open sessions that match listener, group and backend, where given; sorted by age.
func (s *Server) sessions(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if !known(w, q, "limit", "listener", "group", "backend") {
		return
	}
	limit := defaultSessions
	if q.Has("limit") {
		n, err := strconv.Atoi(q.Get("limit"))
		if err != nil || n < 0 || n > maxSessions {
			fail(w, http.StatusBadRequest, fmt.Sprintf("limit: not a number of 0..%d", maxSessions))
			return
		}
		limit = n
	}
	matches := func(key, value string) bool { return !q.Has(key) || q.Get(key) == value }
	var answer struct {
		Total    int       `json:"total"` // that match, whether listed or not
		Sessions []Session `json:"sessions"`
	}
	answer.Sessions = []Session{}
	for x := range s.Control.Sessions() {
		if !matches("listener", x.Listener) || !matches("group", x.Group) || !matches("backend", x.Backend) {
			continue
		}
		answer.Total++
		if len(answer.Sessions) < limit {
			answer.Sessions = append(answer.Sessions, x)
		}
	}
	slices.SortStableFunc(answer.Sessions, func(a, b Session) int { return a.Started.Compare(b.Started) })
	reply(w, http.StatusOK, answer)
}

func (s *Server) kill(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("id")
	id, err := strconv.ParseUint(name, 10, 64)
	if err != nil || !s.Control.Kill(proxy.SessionID(id)) {
		fail(w, http.StatusNotFound, fmt.Sprintf("no session %q", name))
		return
	}
	reply(w, http.StatusOK, map[string]string{"killed": name})
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if !known(w, q, "dry_run") { // a mistyped dry_run must not be a reload
		return
	}
	dry := false
	if q.Has("dry_run") {
		var err error
		if dry, err = strconv.ParseBool(q.Get("dry_run")); err != nil {
			fail(w, http.StatusBadRequest, "dry_run: true or false")
			return
		}
	}
	if s.Reload == nil {
		unsupported(w, "reload")
		return
	}
	report, err := s.Reload(r.Context(), dry)
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	report.DryRun = dry
	reply(w, http.StatusOK, report.complete())
}

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if s.Upgrade == nil {
		unsupported(w, "upgrade")
		return
	}
	if err := s.Upgrade(r.Context()); err != nil {
		fail(w, http.StatusConflict, err.Error())
		return
	}
	reply(w, http.StatusOK, map[string]bool{"upgraded": true})
}

// rebalance answers when it is done. A client that goes away stops it.
func (s *Server) rebalance(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if !known(w, q, "rate") {
		return
	}
	rate := DefaultRebalanceRate
	if q.Has("rate") {
		n, err := strconv.Atoi(q.Get("rate"))
		if err != nil || n < 1 || n > maxRate {
			fail(w, http.StatusBadRequest, fmt.Sprintf("rate: not a number of 1..%d", maxRate))
			return
		}
		rate = n
	}
	group := r.PathValue("group")
	report, err := s.Control.Rebalance(r.Context(), group, rate)
	switch {
	case errors.Is(err, ErrNotFound):
		fail(w, http.StatusNotFound, fmt.Sprintf("no group %q", group))
	case err != nil:
		fail(w, http.StatusConflict, err.Error())
	default:
		reply(w, http.StatusOK, report)
	}
}

// known answers that a parameter is unknown, and returns false, if q has one that is not among names.
func known(w http.ResponseWriter, q map[string][]string, names ...string) bool {
	for k := range q {
		if !slices.Contains(names, k) {
			fail(w, http.StatusBadRequest, fmt.Sprintf("unknown parameter %q (%s)", k, strings.Join(names, ", ")))
			return false
		}
	}
	return true
}

func unsupported(w http.ResponseWriter, what string) {
	fail(w, http.StatusNotImplemented, what+": not supported yet")
}
