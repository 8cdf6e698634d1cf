package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/tproxy/tproxy/internal/config"
)

// The test binary is also the command tproxy, for the scripts in testdata.
func TestMain(m *testing.M) {
	testscript.Main(unleaking{m}, map[string]func(){"tproxy": main})
}

// unleaking fails tests that leave goroutines behind.
type unleaking struct{ *testing.M }

func (m unleaking) Run() int {
	status := m.M.Run()
	if err := goleak.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

func TestWrongUsageEndsWithTwo(t *testing.T) {
	for line, says := range map[string]string{
		"frobnicate":                        "frobnicate",
		"--nonsense":                        "nonsense",
		"run":                               `"config" not set`,
		"run --nonsense":                    "nonsense",
		"run -c a.yaml extra":               "extra",
		"check":                             `"config" not set`,
		"check -c":                          "needs an argument",
		"forward":                           "at least 1 arg",
		"forward 5432":                      "PORT=HOST:PORT",
		"forward --hold soon 1=localhost:2": "soon",
		"forward 1=nowhere":                 `"1=nowhere": no port in "nowhere"`,
		"forward 1=a:2 99999=b:3":           `port`,
		"forward --hold -1s 1=b:3":          `--hold`,
		"demo --listen nonsense":            "nonsense",
		"demo --listen unix:/x":             "host:port",
		"demo --admin ":                     "needs an argument",
		"demo --admin=":                     `""`,
		"version extra":                     "extra",
		"completion":                        "accepts 1 arg",
		"completion tcsh":                   "tcsh",
		"status extra":                      "extra",
		"status --admin nonsense":           "nonsense",
		"status --admin 127.0.0.1:1 -c x":   "admin config",
		"status --token-file x -c x":        "config token-file",
		"drain":                             "accepts 1 arg",
		"drain web":                         "GROUP/BACKEND",
		"drain web/":                        "GROUP/BACKEND",
		"drain /ONE":                        "GROUP/BACKEND",
		"drain --wait=soon web/ONE":         "soon",
		"ready --wait web/ONE":              "wait",
		"kill":                              "at least 1 arg",
		"rebalance":                         "accepts 1 arg",
		"rebalance web --rate many":         "many",
		"reload now":                        "now",
		"upgrade now":                       "now",
		"doctor":                            "accepts 1 arg",
		"doctor localhost":                  "localhost",
		"doctor localhost:0":                "localhost:0",
		"doctor :80":                        "host:port",
		"doctor fd:web":                     "host:port",
		"doctor --tries 0 localhost:80":     "--tries",
		"doctor --idle 0s localhost:80":     "--idle",
	} {
		var out, err strings.Builder
		if got := execute(strings.Fields(line), &out, &err); got != exitUsage {
			t.Errorf("%s: exit status %d", line, got)
		}
		if !strings.Contains(err.String(), says) || !strings.HasSuffix(err.String(), "Run 'tproxy --help' for usage.\n") || out.Len() > 0 {
			t.Errorf("%s: says\n%s\nand on the standard output\n%s", line, err.String(), out.String())
		}
	}
}

func TestHelpIsNoErrorAndNamesEveryCommand(t *testing.T) {
	commands := strings.Fields("run forward demo check explain status sessions drain maint ready kill rebalance reload upgrade doctor version completion")
	for _, line := range []string{"", "--help", "help"} {
		help := helpOf(t, line)
		for _, c := range commands {
			if !strings.Contains(help, "\n  "+c+" ") {
				t.Errorf("tproxy %s does not name %s", line, c)
			}
		}
	}
	for _, c := range commands {
		if help := helpOf(t, c+" --help"); !strings.Contains(help, "Usage:\n  tproxy "+c) {
			t.Errorf("help of %s:\n%s", c, help)
		}
	}
}

func helpOf(t *testing.T, line string) string {
	t.Helper()
	var out, err strings.Builder
	if got := execute(strings.Fields(line), &out, &err); got != exitDone || err.Len() > 0 {
		t.Errorf("tproxy %s: exit status %d, %s", line, got, err.String())
	}
	return out.String()
}

func TestCompletionOfThreeShells(t *testing.T) {
	for shell, says := range map[string]string{"bash": "__start_tproxy", "zsh": "#compdef tproxy", "fish": "complete -c tproxy"} {
		var out, err strings.Builder
		if got := execute([]string{"completion", shell}, &out, &err); got != exitDone || err.Len() > 0 || !strings.Contains(out.String(), says) {
			t.Errorf("%s: exit status %d\n%.200s\n%s", shell, got, out.String(), err.String())
		}
	}
}

func programOf(t *testing.T, text string, args ...any) program {
	t.Helper()
	c, err := config.Parse("test.yaml", fmt.Appendf(nil, text, args...), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return program{config: c, log: slog.New(slog.DiscardHandler)}
}
