//go:build unix

package admin

import "syscall"

// private makes the file of a unix socket appear with mode 0600, whatever the umask, which belongs to the whole process.
// Linux gives a bound socket's file the mode of the socket itself less the umask (unix_bind_bsd in net/unix/af_unix.c).
// Other systems refuse fchmod on a socket; there the mode is set after bind, before the address is answered on.
func private(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
}
