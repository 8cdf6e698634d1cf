package line

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzLine(f *testing.F) {
	for _, s := range []string{"", "\n", "\r\n", "ECHO hello\n", "echo \r\n", " ECHO x", "QUIT now", "\x00\xff", "ECHO a\rb\r\r\n"} {
		f.Add([]byte(s))
	}
	srv := &Server{Name: "fuzz"}
	f.Fuzz(func(t *testing.T, in []byte) {
		// A line ends at the first LF: what the reader hands to parse has none before its end.
		line, _, _ := bytes.Cut(in, []byte("\n"))
		verb, arg := parse(append(bytes.Clone(line), '\n'))
		bare, bareArg := parse(line)
		if !bytes.HasSuffix(line, []byte("\r")) && (verb != bare || !bytes.Equal(arg, bareArg)) {
			t.Fatalf("%q parses as %q %q with its line end and %q %q without", line, verb, arg, bare, bareArg)
		}
		if strings.ContainsAny(verb, " \n") || !bytes.HasSuffix(bytes.TrimSuffix(line, []byte("\r")), arg) {
			t.Fatalf("%q parses as %q %q", line, verb, arg)
		}
		answer, quit := srv.appendAnswer(nil, verb, arg)
		if n := bytes.IndexByte(answer, '\n'); n != len(answer)-1 {
			t.Fatalf("%q is answered by %q, not by one line", line, answer)
		}
		if quit != (verb == "QUIT") {
			t.Fatalf("%q: quit is %v", line, quit)
		}
		if len(answer) > len(line)+200 {
			t.Fatalf("%d bytes are answered by %d", len(line), len(answer))
		}
	})
}
