package proxyproto

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/vectors.txt")

// The vectors are also in a file, for tests of other packages. A line is: valid or invalid, a name, the header quoted, and of a
// valid one the source and the destination, "-" for LOCAL; with tabs between.
func TestVectorsFile(t *testing.T) {
	const file = "testdata/vectors.txt"
	var b strings.Builder
	for _, v := range valid {
		source, destination := "-", "-"
		if !v.want.Local {
			source, destination = v.want.Source.show(), v.want.Destination.show()
		}
		fmt.Fprintf(&b, "valid\t%s\t%q\t%s\t%s\n", v.name, v.wire, source, destination)
	}
	for _, v := range invalid {
		fmt.Fprintf(&b, "invalid\t%s\t%q\n", v.name, v.wire)
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Errorf("%s is not what the vectors are: go test -run %s -update", file, t.Name())
	}
}

func (a Addr) show() string {
	if a.IP.IsValid() {
		return a.IP.String()
	}
	return "unix:" + a.Path
}
