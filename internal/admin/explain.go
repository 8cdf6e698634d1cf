package admin

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
)

// An Explanation says what a client of a listener would get, and why.
type Explanation struct {
	Listener string `json:"listener"`
	From     string `json:"from"`
	SNI      string `json:"sni"`
	Rule     string `json:"rule"`             // of allow and deny, the one that decides
	Route    string `json:"route"`            // the route that matches; "" for none
	Group    string `json:"group"`            // "" if the client would be refused before that
	Backend  string `json:"backend"`          // likewise
	Reason   string `json:"reason,omitempty"` // why it would be refused
	Error    string `json:"why,omitempty"`
}

// explain answers for ?listener=NAME&from=IP[&sni=NAME][&alpn=PROTOCOL…].
func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if !known(w, q, "listener", "from", "sni", "alpn") {
		return
	}
	if s.Explain == nil {
		unsupported(w, "explain")
		return
	}
	from, err := netip.ParseAddr(q.Get("from"))
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Sprintf("from: not an IP address: %q", q.Get("from")))
		return
	}
	e, err := s.Explain(q.Get("listener"), from, q.Get("sni"), q["alpn"])
	switch {
	case errors.Is(err, ErrNotFound):
		fail(w, http.StatusNotFound, fmt.Sprintf("no listener %q", q.Get("listener")))
	case err != nil:
		fail(w, http.StatusConflict, err.Error())
	default:
		reply(w, http.StatusOK, e)
	}
}
