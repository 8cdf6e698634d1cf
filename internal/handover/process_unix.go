//go:build unix

package handover

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func (c Command) start() (process, io.ReadCloser, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	names, files := []string{}, []*os.File{w}
	for _, s := range c.Sockets {
		names, files = append(names, s.Name), append(files, s.File)
	}
	list, err := json.Marshal(names)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	cmd := &exec.Cmd{Path: c.Path, Args: c.Args, Stdout: c.Stdout, Stderr: c.Stderr, ExtraFiles: files}
	for _, v := range c.Env {
		if !strings.HasPrefix(v, variable+"=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, variable+"="+string(list))
	// A group of its own, so that all of it can be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, nil, err
	}
	return child{cmd}, r, nil
}

type child struct{ cmd *exec.Cmd }

func (c child) pid() int { return c.cmd.Process.Pid }

func (c child) signal(s os.Signal) error { return c.cmd.Process.Signal(s) }

func (c child) kill() { unix.Kill(-c.pid(), unix.SIGKILL) }

func (c child) wait() error { return c.cmd.Wait() }

// Duplicate returns another descriptor of a listener's socket, which stays in non-blocking mode. (That of net.TCPListener.File leaves it
// when it is passed on.)
func Duplicate(ln syscall.Conn, name string) (*os.File, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	var fd int
	var dup error
	if err := raw.Control(func(from uintptr) { fd, dup = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	if dup != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, dup)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// inherited are the pipe and the sockets that a predecessor left, nil if there was none. Whatever this process starts does not get them.
func inherited() (io.WriteCloser, []Socket, error) {
	list, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil, nil
	}
	os.Unsetenv(variable)
	var names []string
	if err := json.Unmarshal([]byte(list), &names); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", variable, err)
	}
	const first = 3
	var st unix.Stat_t
	if err := unix.Fstat(first, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, nil, fmt.Errorf("%s is set, but descriptor %d is no pipe", variable, first)
	}
	unix.CloseOnExec(first)
	sockets := make([]Socket, len(names))
	for i, name := range names {
		fd := first + 1 + i
		unix.CloseOnExec(fd)
		sockets[i] = Socket{name, os.NewFile(uintptr(fd), name)}
	}
	return os.NewFile(first, "pipe to the predecessor"), sockets, nil
}
