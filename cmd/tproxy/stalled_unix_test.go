//go:build unix

package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/examples/line"
)

// TestReaderOfTheOutputDisturbsNobody runs commands whose output goes to a pipe that nobody reads after the first lines, or that nobody
// has open: they serve on, and end when they are told to.
func TestReaderOfTheOutputDisturbsNobody(t *testing.T) {
	tproxy, err := exec.LookPath("tproxy")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &line.Server{Name: "one"}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	file := filepath.Join(t.TempDir(), "tproxy.yaml")
	text := `{listeners: {web: {address: "127.0.0.1:0"}}, groups: {web: {backends: [` + strconv.Quote(ln.Addr().String()) + `]}},
admin: {address: ""}, log: {format: text, level: debug}}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		says string // with the address
		gone bool   // the reader; otherwise it stalls
	}{
		{"forward, stalled", []string{"forward", "0=" + ln.Addr().String()}, `listen (\S+) `, false},
		{"forward, gone", []string{"forward", "0=" + ln.Addr().String()}, `listen (\S+) `, true},
		{"run, stalled", []string{"run", "-c", file}, `msg=listening .*address=(\S+) `, false},
		{"run, gone", []string{"run", "-c", file}, `msg=listening .*address=(\S+) `, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := exec.Command(tproxy, tt.args...)
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			alive := true
			defer func() {
				if alive {
					cmd.Process.Kill()
					<-ended
				}
			}()
			lines := bufio.NewReaderSize(r, 16)
			address := ""
			for says := regexp.MustCompile(tt.says); address == ""; {
				text, err := lines.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if m := says.FindStringSubmatch(text); m != nil {
					address = m[1]
				}
			}
			sessions := 700 // that is more than a pipe holds, 64 KiB
			if tt.gone {
				r.Close()
				sessions = 20
			}
			for n := range sessions {
				c, err := net.DialTimeout("tcp", address, patience)
				if err != nil {
					t.Fatalf("session %d: %v", n, err)
				}
				c.SetDeadline(time.Now().Add(patience))
				io.WriteString(c, "QUIT\n")
				_, err = io.ReadAll(c)
				c.Close()
				if err != nil {
					t.Fatalf("session %d: %v", n, err)
				}
			}
			cmd.Process.Signal(syscall.SIGTERM)
			select {
			case err := <-ended:
				alive = false
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Error("it does not end")
			}
		})
	}
}
