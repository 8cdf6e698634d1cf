package admin_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/proxy"
)

// follow opens an event stream and reads its first line, so that every event after it will come.
func follow(t *testing.T, addr string) (*bufio.Reader, net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte("GET /api/v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s, %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	body := bufio.NewReader(resp.Body)
	if l, err := body.ReadString('\n'); err != nil || !strings.HasPrefix(l, ":") {
		t.Fatalf("%q, %v", l, err)
	}
	return body, c
}

// next returns the name and the data of the next event.
func next(t *testing.T, r *bufio.Reader) (name, data string) {
	t.Helper()
	for {
		l, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("after event %q: %v", name, err)
		}
		l = strings.TrimSuffix(l, "\n")
		switch {
		case strings.HasPrefix(l, "event: "):
			name = l[7:]
		case strings.HasPrefix(l, "data: "):
			data = l[6:]
		case l == "" && name != "":
			return name, data
		}
	}
}

func TestFollowersGetEveryEventInOrder(t *testing.T) {
	var v admin.Events
	addr := start(t, &admin.Server{Events: &v})
	v.Observe(proxy.Event{Kind: proxy.SessionAccepted}) // nobody follows
	a, _ := follow(t, addr)
	b, _ := follow(t, addr)
	v.Observe(proxy.Event{Kind: proxy.SessionAccepted, ID: 7, Listener: "in"})
	v.Publish("health", map[string]string{"backend": "b\ndata: forged"})
	v.Observe(proxy.Event{Kind: proxy.SessionClosed, ID: 7, SNI: "x\n\nevent: forged", Reason: proxy.Denied, Err: syscall.ECONNRESET})
	for _, r := range []*bufio.Reader{a, b} {
		var names []string
		for range 3 {
			name, data := next(t, r)
			names = append(names, name)
			var m map[string]any
			if err := json.Unmarshal([]byte(data), &m); err != nil {
				t.Errorf("%s: %v", data, err)
			}
			if name == "close" && (m["session"] != "7" || m["reason"] != "denied" || m["error"] == "" || m["sni"] != "x\n\nevent: forged") {
				t.Errorf("close: %s", data)
			}
		}
		if got := strings.Join(names, " "); got != "accept health close" {
			t.Errorf("events %q", got)
		}
	}
}

func TestSlowFollowerIsCutOffAndHoldsUpNobody(t *testing.T) {
	var v admin.Events
	addr := start(t, &admin.Server{Events: &v})
	slow, _ := follow(t, addr)
	big := proxy.Event{Kind: proxy.SessionClosed, SNI: strings.Repeat("x", 4000)}
	for range 20_000 { // 80 MB into a socket that nobody reads
		v.Observe(big)
	}
	for n := 0; ; n++ {
		name, data := next(t, slow)
		if name == "dropped" {
			if !strings.Contains(data, "1024") || n == 20_000 {
				t.Errorf("after %d events: %s", n, data)
			}
			break
		}
	}
	if b, err := slow.ReadByte(); err == nil {
		t.Errorf("the stream goes on with %q", b)
	}
	quick, _ := follow(t, addr)
	v.Observe(proxy.Event{Kind: proxy.SessionOpened})
	if name, _ := next(t, quick); name != "open" {
		t.Errorf("event %q", name)
	}
}

func TestTooManyFollowersAreRefused(t *testing.T) {
	var v admin.Events
	addr := start(t, &admin.Server{Events: &v})
	var last net.Conn
	for range 16 {
		_, last = follow(t, addr)
	}
	if st, body, _ := do(t, addr, call{method: "GET", path: "/api/v1/events"}); st != 503 || errorOf(t, body) == "" {
		t.Errorf("%d %s", st, body)
	}
	last.Close()
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("GET /api/v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n"))
		l, err := bufio.NewReader(c).ReadString('\n')
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(l, " 200 ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a stream that ended did not give its place back")
		}
	}
}

func TestStreamOutlivesTheTimeLimitsOfOtherRequests(t *testing.T) {
	const limit = 500 * time.Millisecond
	v := &admin.Events{}
	s := &admin.Server{Events: v}
	s.Hurry(limit)
	r, c := follow(t, start(t, s))
	c.SetReadDeadline(time.Now().Add(3 * limit))
	if b, err := r.ReadString(0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the stream said %q and ended: %v", b, err)
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	v.Observe(proxy.Event{Kind: proxy.SessionOpened})
	if name, _ := next(t, r); name != "open" {
		t.Errorf("event %q", name)
	}
}

func TestObserveWithoutFollowersDoesNotAllocate(t *testing.T) {
	var v admin.Events
	if n := testing.AllocsPerRun(1000, func() { v.Observe(proxy.Event{Kind: proxy.SessionClosed}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
