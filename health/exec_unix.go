//go:build unix

package health

import (
	"os/exec"
	"syscall"
)

// ownGroup starts the program in a process group of its own, and has the whole group killed.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
