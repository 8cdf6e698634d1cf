//go:build unix && !linux

package reactor

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const fionread = 0x4004667f // FIONREAD, <sys/filio.h>

// hasReset must not be asked after a FIN was sent: a write of nothing then fails as it does after a reset. A unix
// socket cannot be told from one whose peer was closed in order.
func hasReset(raw syscall.RawConn, tcp bool) bool {
	return tcp && control(raw, func(fd int) error {
		_, err := syscall.Write(fd, nil)
		if err == syscall.EAGAIN {
			return nil
		}
		return err
	}) != nil
}

// look sees an end only when all bytes before it were read.
func look(raw syscall.RawConn) (s sight) {
	control(raw, func(fd int) (err error) {
		if s.waiting, err = unix.IoctlGetInt(fd, fionread); err != nil || s.waiting > 0 {
			return err
		}
		var b [1]byte
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		s.ended = n == 0 && err == nil || err != nil && err != unix.EAGAIN
		return err
	})
	return s
}
