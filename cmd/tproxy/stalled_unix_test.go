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

// TestStalledReaderStallsNobody runs commands whose output goes to a pipe that nobody reads after the first lines: they serve on, and end
// when they are told to.
func TestStalledReaderStallsNobody(t *testing.T) {
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
	}{
		{"forward", []string{"forward", "0=" + ln.Addr().String()}, `listen (\S+) `},
		{"run", []string{"run", "-c", file}, `msg=listening .*address=(\S+) `},
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
			const sessions = 700 // that is more than a pipe holds, 64 KiB
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
