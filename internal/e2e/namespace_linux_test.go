package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// apartVariable is set in the process that runs in a network namespace of its own.
const apartVariable = "E2E_APART"

// isApart reports whether this process is alone in its network namespace: no other program takes its ports, and it may destroy sockets.
func isApart() bool { return os.Getenv(apartVariable) != "" }

// apart runs this test binary again in a network namespace of its own, where it may, and returns its exit status.
func apart() (status int, ok bool) {
	if isApart() {
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
