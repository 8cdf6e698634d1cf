//go:build linux

package e2e

import (
	"os/exec"
	"regexp"
	"testing"
)

// What the demo prints can be typed as it stands.
func TestDemoAnswersWhatItTellsToType(t *testing.T) {
	need(t, "nc", "netcat-openbsd")
	p := &proxy{t: t, log: &log{ready: make(chan struct{})}}
	p.start(exec.Command(binary, "demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"))
	commands := func() []string {
		return regexp.MustCompile(`printf '.*' \| nc (-N )?\S+ \d+`).FindAllString(p.log.String(), -1)
	}
	eventually(t, soon, "two commands are printed", func() bool { return len(commands()) >= 2 })
	for i, want := range []string{`^hello\nBYE\n$`, `^(one|two|three)\n$`} {
		command := commands()[i]
		if got := run(t, "sh", "-c", command); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: %q, want a match of %s", command, got, want)
		}
	}
}

func TestForwardWithoutAFile(t *testing.T) {
	backend := perform(t, "echo")
	p := &proxy{t: t, log: &log{ready: make(chan struct{})}}
	p.log.word = regexp.MustCompile(`listen 127\.0\.0\.1:\d+`)
	p.start(exec.Command(binary, "forward", "0="+backend.said))
	p.host, p.port = p.listening()
	for range 3 {
		if err := p.serves(); err != nil {
			t.Fatal(err)
		}
	}
}
