package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
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
