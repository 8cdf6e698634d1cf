// Package stage is what tests of the built program stand on: the program, and a network namespace of their own.
package stage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// Run is the body of a TestMain in a package two folders below the module: it runs the tests, in a network namespace of their own where that
// may be, and returns the exit status. program is set to the one under test: built, or built now where that is empty.
func Run(m *testing.M, built string, program *string) int {
	if status, ok := apart(); ok {
		return status
	}
	if *program = built; built != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "tproxy-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	*program = filepath.Join(dir, "tproxy")
	build := exec.Command("go", "build", "-o", *program, "../../cmd/tproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as `make build` does
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build tproxy: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// apartVariable is set in the process that runs in a network namespace of its own.
const apartVariable = "STAGE_APART"

// Apart reports whether this process is alone in its network namespace: no other program takes its ports, and it may destroy sockets.
func Apart() bool { return os.Getenv(apartVariable) != "" }

// apart runs this test binary again in a network namespace of its own, where it may, and returns its exit status.
func apart() (status int, ok bool) {
	if Apart() {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ip link set lo up: %v\n%s", err, out)
			return 1, true
		}
		return 0, false
	}
	if _, err := exec.LookPath("ip"); os.Getuid() != 0 || err != nil {
		return 0, false
	}
	runtime.LockOSThread() // Pdeathsig is the end of the thread that started the process
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), apartVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, false // not permitted in this container
	}
	var ended *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	if status = cmd.ProcessState.ExitCode(); status < 0 { // a signal
		status = 1
	}
	return status, true
}
